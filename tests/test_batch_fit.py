"""`--batch-size auto`: the largest batch that fits, kept by a run that goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_cli import TINY
from test_largest_batch import CPU, ERRORS, MIB, Memory
from test_training import StopAfter, tiny
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.errors import ConfigError, DeviceError
from diticli.progress import SilentReporter
from diticli.training import batch_fit, plan
from diticli.training.accelerator import make_accelerator, resolve
from diticli.training.batch_fit import fit_batches
from diticli.training.plan import make_plan
from diticli.training.run import train
from diticli.training.stopping import TrainingInterrupted


class Notes(SilentReporter):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


BOTH = ("base.batch_size=40", "base.images=80", "features.batch_size=40", "features.images=120")


def test_it_fits_and_a_run_that_goes_on_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, heard = tiny(*BOTH, "fit_batch=true"), Notes()
    with Memory(8 * MIB, ERRORS["CUDA"], monkeypatch) as memory:
        fitted = fit_batches(resolve(config), tmp_path / "none", reporter=heard)
        sizes = {name: fitted.stage(name).batch_size for name in ("base", "features")}
        with pytest.raises(TrainingInterrupted):
            train(config, tmp_path / "run", reporter=StopAfter("features", sizes["features"]))
        assert memory.failures == 0
    assert all(4 <= size < 40 for size in sizes.values())
    assert heard.notes[0].startswith(f"Batch of stage base: {sizes['base']} images, with a learning rate of ")
    saved = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert {name: saved[name]["batch_size"] for name in sizes} == sizes
    train(config, tmp_path / "run")  # where all of memory is free
    again = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert again == saved
    given = [f"{name}.batch_size={size}" for name, size in sizes.items()]
    train(tiny(*BOTH, *given), tmp_path / "run")  # the same run


def test_on_a_cpu_it_is_at_most_the_presets(tmp_path: Path) -> None:
    fitted = fit_batches(resolve(tiny(fit_batch=True)), tmp_path / "run")
    assert (fitted.base.batch_size, fitted.features.batch_size) == (8, 8)


def test_on_a_gpu_it_is_at_most_1024(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(resolve(tiny()), device="cuda")
    assert batch_fit._most(config, "base") == plan.MOST_IMAGES == 1024


@pytest.mark.parametrize(("found", "most", "size"), [(1024, 1024, 1024), (333, 1024, 328), (7, 1024, 7), (0, 8, 0)])
def test_batches_are_multiples_of_eight(monkeypatch: pytest.MonkeyPatch, found: int, most: int, size: int) -> None:
    monkeypatch.setattr(plan, "largest_batch", lambda *args, **kwargs: found)
    accelerator = make_accelerator(resolve(tiny()))
    assert plan.largest_for(None, accelerator, most) == size  # type: ignore[arg-type]


def test_where_nothing_fits_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_fit, "largest_for", lambda *args: 0)
    with pytest.raises(DeviceError, match="Not even one image fits"):
        fit_batches(resolve(tiny(fit_batch=True)), tmp_path / "run")


def test_a_dry_run_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Memory(8 * MIB, ERRORS["CUDA"], monkeypatch):
        stages = make_plan(tiny(), memory=True).stages
    assert all(4 <= (stage.largest_batch or 0) < 1024 for stage in stages)
    assert all(stage.largest_batch is None for stage in make_plan(tiny()).stages)
    assert CPU.type == "cpu"


def test_the_command_says_and_takes_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_fit, "largest_for", lambda *args: 48)
    monkeypatch.setattr(plan, "largest_for", lambda *args: plan.MOST_IMAGES)
    command = ["train", "--data", "faces", "--out", str(tmp_path / "run"), *TINY, "--batch-size", "auto", "--dry-run"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "Batch of stage base: 48 images, with a learning rate of " in result.output
    words = "1,024 or more in stage base, 1,024 or more in stage features (--batch-size auto)"
    assert f"Largest batch that fits in the memory that is free now: {words}" in result.output


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5"])
def test_the_option_takes_a_number_or_auto(text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--batch-size", text, "--out", str(tmp_path / "run"), "--dry-run"])
    assert isinstance(result.exception, ConfigError | SystemExit)
    assert result.exit_code != 0
