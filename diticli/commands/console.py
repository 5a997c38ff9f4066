"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diticli.progress import Reporter
from diticli.reading import printable

if TYPE_CHECKING:  # its import takes as long as that of diti's own modules, and tables and bars alone need it
    from rich.text import Text

PATH_LENGTH = 24
"""Characters that are left of a path which is too long for a table."""
WORD_LENGTH = 30
"""Likewise of a word: a table of labels may have a column whose name is thousands of characters."""


def say(text: str) -> None:
    """One line for the person, on stderr; of several processes of a run, the first says it."""
    if _speaks():
        sys.stderr.write(_between_words(printable(text)) + "\n")


def _between_words(text: str) -> str:
    """Lines as wide as a terminal, which would break inside words; what holds a command stays whole, to be copied."""
    if not sys.stderr.isatty() or "diti " in text:
        return text
    width = shutil.get_terminal_size().columns
    lines = text.split("\n")
    return "\n".join(textwrap.fill(x, width, break_long_words=False, break_on_hyphens=False) for x in lines)


def say_model(model: Any) -> None:
    """Which model is used and why, so that a forgotten variable or a newer run is seen."""
    if origin := getattr(model, "origin", ""):
        say(f"Model: {origin}, {model.resolution} px.")


def emit_json(data: Any) -> None:
    """JSON on stdout, for scripts; of several processes of a run, from the first."""
    if _speaks():
        sys.stdout.write(json.dumps(data, indent=2) + "\n")


def show_table(title: str, columns: list[str], rows: list[list[str]], *, spare: Sequence[str] = ()) -> None:
    """A table on stdout, its texts as they are; columns after the first are right-aligned where they hold numbers.

    Where the lines do not fit, spare columns are left out, lines break between words, and where whole words do not fit,
    the columns furthest to the right are left out too. What is left out is said below.

    Args:
        title: text above.
        columns: headings.
        rows: a text for each column.
        spare: headings of the columns that are left out first.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Without a terminal rich assumes 80 columns; scripts look for whole names.
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else 140
    console = Console(highlight=False, width=wide)
    cells = [[printable(text) for text in column] for column in zip(columns, *rows, strict=True)]
    kept, shown = _fitted(cells, console.width, [printable(name) for name in spare])
    table = Table()
    for index, (column, width) in zip(kept, shown, strict=True):
        numeric = index > 0 and any(map(_is_number, column[1:]))
        table.add_column(Text(column[0]), justify="right" if numeric else "left", overflow="fold", width=width)
    for row in zip(*(column[1:] for column, _ in shown), strict=True):
        table.add_row(*map(Text, row))
    console.print(Text(printable(title)))  # a title of the table's own would wrap at the table's width
    console.print(table)
    if left_out := [column[0] for index, column in enumerate(cells) if index not in kept]:
        named = ", ".join(f'"{name}"' for name in left_out)
        say(
            f"Not shown, as a line has {console.width} characters: the column{'s' * (len(left_out) > 1)} {named}. "
            f"COLUMNS=160 or a wider terminal shows {'them' if len(left_out) > 1 else 'it'}."
        )


def reporter() -> Reporter:
    """Progress on stderr: a live bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty() or "FORCE_COLOR" in os.environ:
        from rich.console import Console

        from diticli.commands.bars import RichReporter

        return RichReporter(Console(stderr=True, highlight=False, soft_wrap=True, emoji=False))
    from diticli.commands.reporting import LineReporter

    return LineReporter(sys.stderr)


def _speaks() -> bool:
    """Whether this is the first process of those that `torchrun` or `accelerate launch` started, or the only one."""
    return "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0"


def _fitted(
    columns: list[list[str]], width: int, spare: Sequence[str]
) -> tuple[list[int], list[tuple[list[str], int]]]:
    """Which columns are shown, with shortened paths where it takes that, and how wide each is."""
    kept = list(range(len(columns)))
    first = [index for name in spare for index in kept if columns[index][0] == name]
    short = [[_short(text) for text in column] for column in columns]
    for spared in first:
        if sum(_width(short[index]) for index in kept) + 3 * len(kept) + 1 > width:
            kept.remove(spared)
    drop = (index for index in range(len(columns) - 1, 0, -1) if index not in first)
    while True:
        room = width - 3 * len(kept) - 1
        for form in (columns, short):
            chosen = [form[index] for index in kept]
            if sum(map(_longest_word, chosen)) <= room:
                return kept, list(zip(chosen, _widths(chosen, room), strict=True))
        if len(kept) == 1:
            return kept, [(chosen[0], max(1, room))]
        kept.remove(next(drop))


def _widths(columns: list[list[str]], room: int) -> list[int]:
    """As wide as the texts are, the widest narrowed down to its longest word until all fit."""
    widths = list(map(_width, columns))
    least = [_longest_word(column) for column in columns]
    while sum(widths) > room:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _width(column: list[str]) -> int:
    return max(map(_cells, column))


def _longest_word(column: list[str]) -> int:
    return max((_cells(word) for text in column for word in text.split()), default=0)


def _short(text: str) -> str:
    """The end of a long path; of any other word the beginning."""
    if _cells(text) > PATH_LENGTH and "/" in text and " " not in text:
        return "…" + text[1 - PATH_LENGTH :]
    return " ".join(word if len(word) <= WORD_LENGTH else word[: WORD_LENGTH - 1] + "…" for word in text.split(" "))


def _cells(text: str) -> int:
    """How wide a terminal draws a text."""
    from rich.cells import cell_len

    return cell_len(text)


def _literal(text: str) -> Text:
    """For rich, a str would be markup."""
    from rich.text import Text

    return Text(printable(text))


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").rstrip("%"))
    except ValueError:
        return False
    return True
