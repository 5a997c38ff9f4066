"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diticli.commands.printable import printable
from diticli.progress import Reporter


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    """One line for the person, on stderr; of several processes of a run, the first says it."""
    if _speaks():
        _stderr().print(printable(text), markup=False)


def say_model(model: Any) -> None:
    """Which model is used and why, so that a forgotten variable or a newer run is seen."""
    if origin := getattr(model, "origin", ""):
        say(f"Model: {origin}, {model.resolution} px.")


def emit_json(data: Any) -> None:
    """JSON on stdout, for scripts; of several processes of a run, from the first."""
    if _speaks():
        sys.stdout.write(json.dumps(data, indent=2) + "\n")


def show_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout, its texts as they are; columns after the first are right-aligned where they hold numbers."""
    table = Table(title=_literal(title), title_justify="left")
    for i, column in enumerate(columns):
        numeric = i > 0 and any(_is_number(row[i]) for row in rows)
        table.add_column(_literal(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_literal, row))
    # Without a terminal rich assumes 80 columns and would fold names that a script may look for.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    console.print(table)


def reporter() -> Reporter:
    """Progress on stderr: a live bar on a terminal, a line now and then elsewhere."""
    from diticli.commands.reporting import LineReporter, RichReporter

    console = _stderr()
    return RichReporter(console) if console.is_terminal else LineReporter(console)


def _speaks() -> bool:
    """Whether this is the first process of those that `torchrun` or `accelerate launch` started, or the only one."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def _literal(text: str) -> Text:
    """For rich, a str would be markup."""
    return Text(printable(text))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True
