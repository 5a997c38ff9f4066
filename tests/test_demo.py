"""`diti demo` on a tiny model in the place of the shipped one: edits first, a training within the minutes, a report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
    short = r"Do not expect much of the new model\. It was trained on [0-9,]+ images in stage 2: features"
    assert re.search(short, page)
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
    late = demo._within_budget(tiny("minutes=1"), tmp_path / "new", 30.0, {"probe": 20.0})
    assert late.minutes == pytest.approx(20 / 60, abs=0.01), "after minutes of work nothing is refused"


def test_a_training_too_slow_for_what_is_left_takes_longer(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def train(config: Any, out: Path, **_: Any) -> None:
        asked.append(config.minutes)
        if config.minutes < 1:
            raise budget.TooShortError("0.5 minutes are too short.", minutes=1.25)

    monkeypatch.setattr(demo, "train", train)
    notes = Notes(Clock())
    demo._Demo(tiny(), Path("runs/demo"), 200, 3, notes, Clock()).train(tiny("minutes=0.5"))
    assert asked == [0.5, 1.3]
    assert notes.notes == ["The machine is busy: the training takes 1.3 min, 0.5 min were left."]


def test_minutes_that_are_too_few_are_refused_before_anything_is_edited(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, too: by a few timed steps, in the first seconds."""
    monkeypatch.setattr(demo._Demo, "_edits", lambda *_, **__: pytest.fail("edited first"))
    monkeypatch.setattr(demo._Demo, "_seconds_to_measure", lambda *_: 45.0)
    clock = Clock()
    with pytest.raises(ConfigError, match="busy as it is now") as error:
        run_demo(tiny("minutes=1"), Path("runs/demo"), held_out=200, steps=3, clock=clock)
    assert "--minutes 2.1" in error.value.remedy, "45 s, 56 s for the second model, 20 s of training"
    assert not Path("runs").exists()


def test_the_time_to_measure_is_estimated_from_a_few_steps(shipped: Path) -> None:
    """A stand-in of a second a step and 0.1 s an encoding of 8 faces."""
    clock = Clock()
    begun = demo._Demo(tiny(), Path("runs/demo"), 200, 3, SilentReporter(), clock)

    class Slow:
        chunks = demo.load_model("shipped").chunks

        def encode(self, x: torch.Tensor) -> torch.Tensor:
            clock.now += 0.1
            return x

        def decode(self, x: torch.Tensor, z: torch.Tensor, *, steps: int) -> None:
            clock.now += steps

    model: Any = Slow()
    edited = 2 * (4 + 2 * len(demo._sets(model)))
    assert begun._seconds_to_measure(model) == pytest.approx(0.1 * 200 / 8 + 3 / 8 * (edited + 16))


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
