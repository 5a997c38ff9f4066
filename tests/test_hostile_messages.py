"""Messages quote little of what files hold, whatever that is; numbers that no float holds end in words as well."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import edit_json
from test_training import TINY, tiny
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.commands.failure import explain
from diticli.errors import ConfigError, DataError
from diticli.models.load import Located
from diticli.probing.read_scores import read_scores
from diticli.studio.serve import read_effects
from diticli.training.run import train

LONG = "x" * 10**6
DEEP: list[Any] = [LONG[:1000]] * 1000
HUGE = int("9" * 400)
SET = [part for setting in TINY for part in ("--set", setting)]
ENCODE = ["encode", "faces:8", "-o", "out.npy", "--model", "model"]
PROBE = ["probe", "feats.npy", "-o", "out", "--labels", "labels.csv"]


def columns(*header: str) -> Callable[[Path], None]:
    def write(here: Path) -> None:
        rows = [",".join(header), *(",".join([f"{i}.png", *("1.5" for _ in header[1:])]) for i in range(8))]
        (here / "labels.csv").write_text("\n".join(rows))

    return write


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "a setting": (lambda here: (here / "s.toml").write_text(f'seed = "{LONG}"'), ["train", "--config", "s.toml"]),
    "an unknown setting": (lambda here: (here / "s.toml").write_text(f"{LONG} = 1"), ["train", "--config", "s.toml"]),
    "a list of settings": (
        lambda here: (here / "s.json").write_text(json.dumps({"encoder": {"widths": DEEP}})),
        ["train", "--config", "s.json"],
    ),
    "a crop": (lambda here: edit_json(here / "model/model_index.json", crop=LONG), ENCODE),
    "a form of the shift": (lambda here: edit_json(here / "model/model_index.json", shift_form=DEEP), ENCODE),
    "a huge number": (lambda here: edit_json(here / "model/encoder/config.json", latent_dim=HUGE), ENCODE),
    "a way of resampling": (
        lambda here: edit_json(here / "model/unet/config.json", downsample_type=LONG),
        [*ENCODE[:-2], "--model", "model"],
    ),
    "columns of one name": (columns("file_name", LONG, LONG), PROBE),
    "names of files": (columns("file_name" + LONG, "age"), PROBE),
    "changed settings": (lambda here: change_run(here, config={"ssl": {"kind": LONG}, LONG: DEEP}), ["run"]),
    "changed images": (lambda here: change_run(here, data={"kind": LONG, LONG: HUGE}), ["run"]),
}


def change_run(here: Path, **parts: dict[str, Any]) -> None:
    path = here / "run" / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {name: saved[name] | part for name, part in parts.items()}))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, make_pipeline: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_pipeline().save_pretrained(folder / "model")
    np.save(folder / "feats.npy", np.ones((8, 16), np.float32))
    (folder / "feats.json").write_text(json.dumps({"files": [f"{i}{LONG}.png" for i in range(8)]}))
    train(tiny(), folder / "run")
    return folder


@pytest.mark.parametrize("what", CASES)
def test_messages_are_short_whatever_files_hold(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    here = Path(shutil.copytree(made, tmp_path / "here"))
    monkeypatch.chdir(here)
    spoil, line = CASES[what]
    spoil(here)
    result = CliRunner().invoke(app, ["train", "-o", "run", *SET] if line == ["run"] else line)
    assert isinstance(result.exception, SystemExit | None), result.output[:2000]
    assert result.exit_code in (2, 65, 66), result.output[:2000]
    assert "Traceback" not in result.output
    assert len(result.output) < 3000


def test_a_message_that_lists_without_end_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    explain(DataError("a" * 10**6, remedy="b" * 10**6))
    assert 8_000 < len(capsys.readouterr().err) < 8_200


def test_numbers_that_no_float_holds(tmp_path: Path) -> None:
    """Where a file of a run, a probe or an evaluation is optional, it is as if it were not there."""
    shares = {"hat": [{"value": HUGE}]}
    for atlas in ({"groups": [[0]], "shares": shares}, {"groups": [[]], "shares": {"hat": [{"value": 0.5}]}}):
        (tmp_path / "evaluation.json").write_text(json.dumps({"models": [{"atlas": atlas}]}))
        with pytest.raises(ConfigError, match="holds no swap effects"):
            read_effects(tmp_path)
    attributes = [{"name": "hat", "value": HUGE, "low": 0, "high": 1, "base_rate": 0.5}]
    (tmp_path / "report.json").write_text(json.dumps({"attributes": attributes}))
    assert read_scores(tmp_path) == {}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text("{}")
    for value in (HUGE, -1, float("nan"), float("inf"), LONG):
        (tmp_path / "quality.json").write_text(json.dumps({"reconstruction_psnr_db": value}))
        assert Located(name=str(tmp_path), reason="--model").usual_psnr is None
    (tmp_path / "config.json").write_text(json.dumps({"config": {"data": {"source": LONG}}}))
    assert len(Located(name=str(tmp_path), reason="--model").trained_on) == 200
