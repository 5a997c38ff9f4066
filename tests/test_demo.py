"""`diti demo` on a tiny model in the place of the shipped one: edits first, a training within the minutes, a report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_budget import Clock, plan_at
from test_training import tiny

from diticli import demo
from diticli.demo import FRESH, SHIPPED_MODEL, UNTRAINED, run_demo
from diticli.errors import ConfigError, DataError, ModelError
from diticli.models import hub
from diticli.progress import SilentReporter
from diticli.training import budget
from diticli.training.rundir import RunDirectory


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_pipeline: Callable[..., Any]) -> Path:
    folder = tmp_path / "package" / "shipped"
    make_pipeline().save_pretrained(folder)
    monkeypatch.setattr(hub, "SHIPPED_FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


class Notes(SilentReporter):
    """Keeps the notes. A step of training takes a second of `clock`, anything else no time."""

    def __init__(self, clock: Clock) -> None:
        self.notes: list[str] = []
        self.clock, self.title = clock, ""

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self.title = title

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self.clock.now += self.title.startswith("Stage")

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_the_demo_edits_trains_and_reports(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "make_plan", lambda config, **_: plan_at({"features": 12.0}, config))
    monkeypatch.setattr(budget, "seconds_to_read", lambda source: 0.0)
    clock, out = Clock(), Path("runs/demo")
    notes = Notes(clock)
    config = tiny("minutes=0.5", "log_every=5", "checkpoint_every=1000")
    result = run_demo(config, out, held_out=200, steps=3, reporter=notes, clock=clock)
    assert clock.now - 100 == pytest.approx(30, rel=0.2), "planned at 1.5 steps a second, trained at one"
    assert [note.split("/")[-1] for note in notes.notes[:2]] == ["demo-edit-1.png", "demo-edit-2.png"], "seen first"
    assert all(path.is_file() for path in result.pictures)
    assert RunDirectory(out).finished
    settings = json.loads((out / "config.json").read_text())["config"]
    assert settings["base_model"] == "shipped"
    assert list(result.scores) == [SHIPPED_MODEL, FRESH, UNTRAINED]
    assert len(result.scores[FRESH]) == 13
    page = result.report.read_text()
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[0].startswith("Edits by the shipped model")
    explained = headings.index("What the chunks are")
    assert explained < headings.index("What can be read from the features"), (
        "chunks are explained before they are measured"
    )
    assert page.index("1 is all, 0 is none") < page.index("mean of 10"), "R2 is explained before it is used"
    assert json.loads((out / "demo.json").read_text())["models"][SHIPPED_MODEL]["model"] == "shipped"
    again = run_demo(config, out, held_out=200, steps=3, reporter=notes, clock=clock)
    assert any("trained already" in note for note in notes.notes)
    assert again.scores[FRESH] == result.scores[FRESH]


def test_a_demo_that_goes_on_keeps_the_minutes_it_began_with(shipped: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": {"minutes": 1.25}}))
    assert demo._within_budget(tiny("minutes=3"), tmp_path, 10.0, {}).minutes == 1.25
    assert demo._within_budget(tiny("minutes=3"), tmp_path / "new", 30.0, {"probe": 20.0}).minutes == pytest.approx(
        (180 - 30 - 26) / 60, abs=0.01
    )
    with pytest.raises(ConfigError, match="too short") as error:
        demo._within_budget(tiny("minutes=1"), tmp_path / "new", 30.0, {"probe": 20.0})
    assert "--minutes 1.4" in error.value.remedy


def test_without_a_shipped_model_the_demo_names_the_long_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHIPPED_FOLDER", tmp_path / "none")
    with pytest.raises(ModelError, match="no shipped model") as error:
        run_demo(tiny(), tmp_path / "runs" / "demo")
    assert "--full" in error.value.remedy


def test_the_long_way_trains_both_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SHIPPED_FOLDER", tmp_path / "none")
    result = run_demo(tiny(), tmp_path / "demo", full=True, held_out=200, steps=2)
    assert list(result.models) == [FRESH]
    assert list(result.scores) == [FRESH, UNTRAINED, demo.PIXELS]
    assert (tmp_path / "demo" / "base" / "unet").is_dir()
    assert result.report.is_file()


def test_a_demo_in_a_run_with_links_inside_is_refused_by_name(tmp_path: Path) -> None:
    """A finished run is measured again, and its probe written: not to where a link leads."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "probe").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="run/probe is a link"):
        run_demo(tiny(), tmp_path / "run", full=True)
    assert not list((tmp_path / "elsewhere").iterdir())
