"""docs/cli.md, made by `make docs`, knows every command and option; README and docs keep to what a newcomer needs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from diticli.commands.app import app
from diticli.models import hub
from diticli.models.hub import has_shipped

ROOT = Path(__file__).parents[1]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def sections() -> dict[str, str]:
    parts = re.split(r"^## `diti ([a-z]+)`$", (ROOT / "docs" / "cli.md").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_reference_has_a_section_for_every_command() -> None:
    assert sorted(sections()) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_lists_every_option_and_no_other(name: str) -> None:
    parts = re.split(r"^### `diti [a-z]+ ([a-z]+)`$", sections()[name], flags=re.MULTILINE)
    commands = {"": COMMANDS[name]} | {
        sub: command for sub, command in getattr(COMMANDS[name], "commands", {}).items() if not command.hidden
    }
    assert ["", *parts[1::2]] == list(commands)
    for command, section in zip(commands.values(), parts[::2], strict=True):
        shown = [p for p in command.params if not getattr(p, "hidden", False)]
        options = {opt for p in shown for opt in (*p.opts, *p.secondary_opts) if opt.startswith("--")}
        listed = re.findall(r"^\* `([^`]*)`", section.split("**Options**")[-1], flags=re.MULTILINE)
        found = {opt for line in listed for opt in re.findall(r"--[a-z][a-z0-9-]*", line)}
        assert found - {"--help"} == options - {"--help"}, "run `make docs`"


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DIALECT = (
    "comes in at",
    "carried over",
    "as it lies",
    "told in",
    "what is lost",
    "reader that",
    "worth most",
    "time-step",
)
WITH_FIGURES = ("results", "evaluation", "official", "running", "performance", "editing")


def test_the_readme_is_a_front_page() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    picture = next(i for i, line in enumerate(lines) if line.startswith("!["))
    assert picture < 12, "an edit is seen before anything is explained"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [page.parent / link for link in links if not re.match(r"[a-z]+:", link)]
    made = {ROOT / "docs" / "edit.png", ROOT / "diticli" / "shipped" / "README.md"}  # by `make model`
    missing = [path for path in local if not path.exists() and not (path.resolve() in made and not has_shipped())]
    assert not missing


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "cli.md"], ids=lambda p: p.name)
def test_pages_use_the_words_of_the_field(page: Path) -> None:
    text = page.read_text().lower().replace("exploring diffusion time-steps", "")
    assert [word for word in DIALECT if word in text] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_uses_the_words_of_the_field(name: str) -> None:
    text = sections()[name].lower()
    assert [word for word in DIALECT if word in text] == []


def test_the_help_of_edit_begins_with_what_a_chunk_is() -> None:
    lines = [line for line in (COMMANDS["edit"].help or "").splitlines() if line.strip()]
    assert any("A chunk is" in line for line in lines[:3])


@pytest.mark.parametrize("name", WITH_FIGURES)
def test_a_page_of_figures_names_the_command_that_makes_them(name: str) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text()
    assert re.search(r"^    (python -m benchmarks|diti [a-z]+|make [a-z]+)", page, flags=re.MULTILINE)


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pipeline: Callable[..., Any]) -> None:
    """Every cell, in order, in one namespace, on a tiny model where the shipped one is missing."""
    cells = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())["cells"]
    monkeypatch.chdir(tmp_path)
    if not has_shipped():
        make_pipeline().save_pretrained(tmp_path / "shipped")
        monkeypatch.setattr(hub, "SHIPPED_FOLDER", tmp_path / "shipped")
    names: dict[str, Any] = {"display": lambda *shown: None}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert names["edited"].shape[0] == 2
    assert 0 <= names["report"].means["binary"]["average_precision"] <= 1
