"""Named pipes wherever a command reads or writes a file: it ends, with the reason or as if the file were not there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from test_training import TINY, tiny
from typer.testing import CliRunner

from diticli import demo
from diticli.commands.app import app
from diticli.data.faces import write_faces
from diticli.training import batch_fit, budget
from diticli.training.run import train

LONGEST = 120
"""Seconds after which a command is taken to wait for the other end of a pipe: far more than any of these takes."""
SET = [part for setting in TINY for part in ("--set", setting)]
TRAIN = ["train", "--device", "cpu", *SET]
ENCODE = ["-o", "out.npy", "--model", "model", "--device", "cpu"]
EDIT = ["edit", "faces:1", "faces:2", "--steps", "2", "--chunks", "0", "--model", "model", "-o"]
MOVE = [
    "edit",
    "faces:1",
    "--attribute",
    "hat",
    "--steps",
    "2",
    "--model",
    "model",
    "--probe",
    "probe",
    "-o",
    "out.png",
]
PROBE = ["-o", "out", "--device", "cpu"]
COMPARE = ["compare", "feats.npy", "--data", "faces:200", "--baselines", "none", "--no-metrics", "--shown", "0", "-o"]

# What is a pipe -> the command that meets it. An order: what the first ones make, the later ones read.
INPUTS: dict[str, list[str]] = {
    "in.png": ["encode", "in.png", *ENCODE],
    "photos/000001.png": ["encode", "photos", *ENCODE],
    "photos/run/config.json": ["encode", "photos", *ENCODE],
    "in.tar": ["encode", "in.tar", *ENCODE],
    "in.npz": ["encode", "in.npz", *ENCODE],
    "in.h5": ["encode", "in.h5", *ENCODE],
    "in.parquet": ["encode", "in.parquet", *ENCODE],
    "in.mat": ["encode", "in.mat", *ENCODE],
    "cars/car_001_mesh.mat": ["encode", "cars", *ENCODE],
    "norb/smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat": ["encode", "norb", *ENCODE],
    "tars/a.tar": ["encode", "tars", *ENCODE],
    "tables/a.parquet": ["encode", "tables", *ENCODE],
    "db/data.mdb": ["encode", "db", *ENCODE],
    "list.txt": ["encode", "@list.txt", *ENCODE],
    "model/model_index.json": ["encode", "faces:8", *ENCODE],
    "model/encoder/config.json": ["encode", "faces:8", *ENCODE],
    "model/encoder/diffusion_pytorch_model.safetensors": ["encode", "faces:8", *ENCODE],
    "model/unet/config.json": [*EDIT, "out.png"],
    "model/scheduler/scheduler_config.json": [*EDIT, "out.png"],
    "in.jpg": ["edit", "in.jpg", "faces:2", *EDIT[3:], "out.png"],
    "pairs.csv": ["edit", "pairs.csv", *EDIT[3:], "pairs"],
    "probe/probe.safetensors": MOVE,
    "probe/directions.json": MOVE,
    "probe/directions.safetensors": MOVE,
    "probe/report.json": MOVE,
    "feats.npy": ["probe", "feats.npy", *PROBE],
    "feats.json": ["probe", "feats.npy", "--labels", "photos/labels.csv", *PROBE],
    "feats.npz": ["probe", "feats.npz", *PROBE],
    "feats.safetensors": ["probe", "feats.safetensors", *PROBE],
    "feats.parquet": ["probe", "feats.parquet", *PROBE],
    "shards/features.json": ["probe", "shards", *PROBE],
    "labels.csv": ["probe", "feats.npy", "--labels", "labels.csv", *PROBE],
    "labels.parquet": ["probe", "feats.npy", "--labels", "labels.parquet", *PROBE],
    "groups.txt": ["probe", "feats.npy", "--labels", "photos/labels.csv", "--groups", "groups.txt", *PROBE],
    "split.csv": ["probe", "feats.npy", "--labels", "photos/labels.csv", "--split", "split.csv", *PROBE],
    "metadata.jsonl": ["evaluate", "model", "--data", "photos", "--labels", "metadata.jsonl", "-o", "out"],
    "people.txt": [
        *("evaluate", "model", "--data", "photos", "--labels", "photos/labels.csv", "--groups", "people.txt"),
        *("-o", "out"),
    ],
    "settings.toml": [*TRAIN, "--config", "settings.toml", "-o", "new"],
    "settings.json": [*TRAIN, "--config", "settings.json", "-o", "new"],
    "base/unet/config.json": [*TRAIN, "--base", "base", "-o", "new"],
    "base/scheduler/scheduler_config.json": [*TRAIN, "--base", "base", "-o", "new"],
    "official/config.yml": ["convert", "official", "-o", "new"],
    "official/latest.pt": ["convert", "official", "-o", "new"],
    "one.pt": ["convert", "one.pt", "-o", "new"],
    "measured.json": ["studio", "--no-browser", "--model", "model", "--evaluation", "measured.json"],
    "near.npy": ["studio", "--no-browser", "--model", "model", "--features", "near.npy"],
}
# What a run, a result or an interrupted command left, as a pipe.
OUTPUTS: dict[str, list[str]] = {
    **{
        f"run/{name}": [*TRAIN, "-o", "run"]
        for name in (
            *("config.json", "gap.json", "quality.json", "kernels.json", "metrics.jsonl", "extending.json"),
            *("skipped.txt", "model/model_index.json", "base/unet/config.json", "samples/features-00000003.png"),
        )
    },
    "stopped/checkpoints/step-00000002/state.json": [*TRAIN, "-o", "stopped"],
    "stopped/metrics.jsonl": [*TRAIN, "-o", "stopped"],
    "out.npy": ["encode", "faces:8", *ENCODE],
    "out.json": ["encode", "faces:8", *ENCODE],
    "out.npy.partial": ["encode", "faces:8", *ENCODE],
    "out.npy.partial.json": ["encode", "faces:8", *ENCODE],
    "folder/units/000000.json": ["encode", "faces:8", "-o", "folder", *ENCODE[2:]],
    "folder/000000.npy": ["encode", "faces:8", "-o", "folder", *ENCODE[2:]],
    "out.png": [*EDIT, "out.png"],
    "drawn/labels.csv": ["faces", "drawn", "-n", "2"],
    "drawn/000000.png": ["faces", "drawn", "-n", "2", "--overwrite"],
    "compared/report.json": [*COMPARE, "compared"],
}


PASSED_OVER = {"photos/000001.png", "photos/run/config.json", "probe/report.json", "probe/probe.safetensors"}
"""A folder's entries that are no images, and what an edit does not need."""


class Waiting(BaseException):
    """Nothing in a command may catch it."""


@pytest.fixture
def ends(request: pytest.FixtureRequest) -> Iterator[None]:
    """The test fails when it waits for the other end of a pipe."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Waiting

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Any]) -> Path:
    """Whole files of every kind."""
    folder = tmp_path_factory.mktemp("made")
    make_pipeline().save_pretrained(folder / "model")
    shutil.copytree(folder / "model", folder / "base")
    write_faces(folder / "photos", 60, size=16)
    (folder / "photos" / "run" / "samples").mkdir(parents=True)
    feats, labels, model = (str(folder / name) for name in ("feats.npy", "photos/labels.csv", "model"))
    for line in (
        ["encode", str(folder / "photos"), "-o", feats, "--model", model],
        ["probe", feats, "--labels", labels, "-o", str(folder / "probe")],
    ):
        assert CliRunner().invoke(app, line, catch_exceptions=False).exit_code == 0
    train(tiny(), folder / "run")
    return folder


@pytest.mark.usefixtures("ends", "no_network")
@pytest.mark.parametrize("name", [*INPUTS, *OUTPUTS])
def test_no_command_waits_for_a_pipe(name: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(here)
    pipe = here / name
    pipe.parent.mkdir(parents=True, exist_ok=True)
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe)
    result = CliRunner().invoke(app, (INPUTS | OUTPUTS)[name])
    assert isinstance(result.exception, SystemExit | None), result.output
    assert "Traceback" not in result.output
    if name in INPUTS:
        assert result.exit_code in ((0,) if name in PASSED_OVER else (2, 65, 66)), result.output
        assert name in PASSED_OVER or pipe.name in result.output or pipe.parent.name in result.output
        assert pipe.is_fifo()
    else:
        assert result.exit_code in (0, 2, 65, 66, 74), result.output


@pytest.mark.usefixtures("ends")
def test_no_plan_waits_for_a_pipe(tmp_path: Path) -> None:
    """What looks into a run's settings before the run does."""
    os.mkfifo(tmp_path / "config.json")
    (tmp_path / "base").mkdir()
    config = tiny("minutes=3")
    assert batch_fit._kept(config, tmp_path) is None
    assert budget._kept_plan(config, tmp_path) is None
    assert demo._within_budget(config, tmp_path, 30.0, {"probe": 20.0}).minutes < 3
