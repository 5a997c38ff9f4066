"""docs/cli.md, made by `make docs`, knows every command and option."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from diticli.commands.app import app

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def sections() -> dict[str, str]:
    parts = re.split(r"^## `diti ([a-z]+)`$", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_has_a_section_for_every_command() -> None:
    assert list(sections()) == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_lists_every_option_and_no_other(name: str) -> None:
    options = {opt for p in COMMANDS[name].params for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")}
    listed = re.findall(r"^\* `([^`]*)`", sections()[name].split("**Options**")[-1], flags=re.MULTILINE)
    found = {opt for line in listed for opt in re.findall(r"--[a-z][a-z0-9-]*", line)}
    assert found - {"--help"} == options - {"--help"}, "run `make docs`"
