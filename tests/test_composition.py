"""Composition: drift of images that are edited by nothing, with editors whose drift is known, and in the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.evaluation.composition import Composition, measure_composition
from diticli.evaluation.evidence_tables import composition_table
from diticli.evaluation.settings import EvaluationSettings

GREY = torch.full((5, 3, 8, 8), 100, dtype=torch.uint8)


def editor(levels: float) -> Any:
    """Every inversion and decoding brightens by so many grey levels."""
    sampler = SimpleNamespace(
        invert=lambda x, z, steps: x, decode=lambda x_T, z, steps: x_T + levels / 127.5 + 0 * z.view(-1, 1, 1, 1)
    )
    return SimpleNamespace(model_hash="", encode=lambda x: x.mean(dim=(1, 2, 3))[:, None], sampler=lambda **_: sampler)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_a_drift_adds_up(batch_size: int) -> None:
    found = measure_composition(editor(2), GREY, 3, settings=EvaluationSettings(batch_size=batch_size))
    assert found.images == 5
    assert found.change == (2, 4, 6)
    assert found.psnr == pytest.approx([20 * math.log10(255 / change) for change in (2, 4, 6)])


def test_a_perfect_editor_gives_the_image_back() -> None:
    found = measure_composition(editor(0), GREY, 2)
    assert found == Composition(images=5, change=(0, 0), psnr=(math.inf, math.inf))
    assert found.to_dict()["psnr"] == [None, None]
    assert composition_table(found)[1] == [["1", "0.00", "exact"], ["2", "0.00", "exact"]]


def test_the_first_edit_is_the_reconstruction(make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(str(tmp_path / "a"))
    arguments = ["evaluate", str(tmp_path / "a"), "--pairs", "4", "--learn", "200", "--epochs", "1", "--steps", "2"]
    arguments += ["--no-moves", "--chunks", "0", "--composition", "2", "--force", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "edits by nothing" in result.output
    (model,) = json.loads((tmp_path / "out" / "evaluation.json").read_text())["models"]
    assert model["composition"]["psnr"][0] == pytest.approx(model["reconstruction_psnr"], abs=0.05)
    assert len(model["composition"]["change"]) == 2
    assert "edits by nothing" in (tmp_path / "out" / "report.html").read_text()
