"""The shipped model as `make model` exports it: half the bytes, the same pictures, and a card that says what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.export_model import export, write_card
from diticli.models.load import load_model, load_pipeline
from diticli.settings import build_config, to_dict
from diticli.training.rundir import versions


@pytest.fixture
def run(tmp_path: Path, make_pipeline: Callable[..., Any]) -> Path:
    folder = tmp_path / "runs" / "shipped"
    make_pipeline().save_pretrained(folder / "model")
    config = to_dict(build_config("faces32", options={"data.source": "faces:200000", "seed": 7}))
    (folder / "config.json").write_text(json.dumps({"config": config, "data": {}, "versions": versions()}))
    return folder


def test_weights_are_halved_and_still_give_the_same_features(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(run), out)
    theirs, ours = load_pipeline(str(run), "cpu"), load_model(str(out), "cpu")
    images = torch.rand(2, 3, theirs.resolution, theirs.resolution) * 2 - 1
    with torch.no_grad():
        wanted, got = theirs.encode(images), ours.encode(images)
    assert got.dtype == torch.float32
    assert torch.allclose(got, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))
    assert not torch.equal(got, wanted)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (out / weights).stat().st_size < 0.7 * (run / "model" / weights).stat().st_size
    assert not [path for path in out.rglob("*.json") if str(tmp_path) in path.read_text()], "no path of this machine"
    assert ours.origin.endswith("trained on built-in faces")


def test_the_card_has_data_seed_versions_and_figures(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(run), out)
    write_card(run, out)
    card = (out / "README.md").read_text()
    assert "mean R2" not in card, "nothing was measured yet"
    kept = json.loads((out / "training.json").read_text())["reconstruction_psnr_db"]
    assert kept["least"] <= kept["lower_quartile"] <= kept["median"] <= kept["upper_quartile"]
    assert load_model(str(out), "cpu").usual_range == (kept["lower_quartile"], kept["upper_quartile"], 48)
    interval = [0.84, 0.88]
    number = {"name": "skin", "kind": "number", "metric": "pearson_r", "value": 0.93, "extras": {"r2": 0.86}}
    binary = {"name": "hat", "kind": "binary", "metric": "average_precision", "value": 0.999, "extras": {}}
    intervals = {"number": {"r2": interval}, "binary": {"average_precision": [0.99, 1.0]}}
    report = {
        "attributes": [number | {"intervals": intervals["number"]}, binary | {"intervals": intervals["binary"]}],
        "means": {"number": {"r2": 0.86, "attributes": 1}, "binary": {"average_precision": 0.999, "attributes": 1}},
        "mean_intervals": intervals,
    }
    shares = {"skin": {"value": 0.9, "low": 0.85, "high": 0.95}, "hat": {"value": 0.7, "low": 0.6, "high": 0.8}}
    judged = {"unreadable": ["smile"], "models": [{"reconstruction_psnr": 51.24, "swaps": [{"shares": shares}]}]}
    for name, facts in (("probe/report.json", report), ("evaluation/evaluation.json", judged)):
        path = run / name
        path.parent.mkdir()
        path.write_text(json.dumps(facts))
    write_card(run, out)
    assert load_model(str(out), "cpu").transfer_rates == {"skin": 0.9, "hat": 0.7}
    card = (out / "README.md").read_text()
    for word in (
        f"the least {kept['least']:.1f} dB",
        "`faces:200000`",
        "| seed | 7 |",
        f"torch {versions()['torch']}",
        "mean R2 of 1 factors, linear probe | 0.860 [0.840, 0.880]",
        "| hat | AP 0.999 | 0.990 to 1.000 |",
        "mean of the factors | 0.80 |",
        "51.2 dB",
        "| skin | 0.90 | 0.85 to 0.95 |",
        "reads poorly: smile",
    ):
        assert word in card, f"{word} is not in\n{card}"
    assert not (out / "atlas.png").exists()
