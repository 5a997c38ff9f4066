"""`python -m benchmarks forward`: both sides compute the same estimate, and no ratio is shown where they do not."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import cases, forward
from benchmarks.__main__ import main
from benchmarks.forward import Setting, candidates, check_agreement, count_flops
from benchmarks.forward_sides import Inputs
from benchmarks.official_side import OfficialModel, load_code
from diticli.models.layout import layout_choice
from diticli.official.convert import pipeline_from_official

CPU = torch.device("cpu")
CASE = cases.Case(
    name="least64",
    resolution=64,
    encoder="CELEBA64Encoder",
    latent_dim=16,
    denoise_fn=cases._denoise_fn(32, [1, 1], 1, []),
    chunks={"k": 4},
    preset="celeba64",
    settings={},
)
needs_official = pytest.mark.skipif(
    "DITI_OFFICIAL" not in os.environ, reason="DITI_OFFICIAL names no checkout of the official code"
)


def setting(part: str, precision: str = "fp32", **changes: Any) -> Setting:
    pipeline = changes.pop("pipeline", None) or cases.random_pipeline(CASE)
    inputs = Inputs.draw(CASE, 2, CPU)
    return Setting(part=part, pipeline=pipeline, inputs=inputs, precision=precision, **{"model": None} | changes)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("part", forward.PARTS)
def test_our_copies_agree_with_the_networks_they_are_made_of(part: str, precision: str) -> None:
    gate = check_agreement(setting(part, precision))
    assert gate.passed, gate.refusal()
    assert len(gate.checks) == (2 if precision == "bf16" else 1)


@pytest.mark.parametrize("part", forward.PARTS)
def test_a_wrong_estimate_is_refused(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Setting.ours

    def wrong(self: Setting, **changes: Any) -> Any:
        made = ours(self, **changes)
        last = made.pair.base.unet if part == "base" else made.pair.shift.decoder
        last.conv_out.weight.data.mul_(1.01)
        return made

    monkeypatch.setattr(Setting, "ours", wrong)
    assert check_agreement(setting(part)).refusal().startswith("No speed-up: fp32 estimate")


def test_sides_and_what_is_switched_off() -> None:
    names = {
        part: [c.name for c in candidates(setting(part, "bf16"), compiled=False, limit=9)] for part in forward.PARTS
    }
    assert names == {"base": ["ours", "fp32", "not merged", "contiguous"], "pair": ["ours", "fp32", "contiguous"]}
    in_fp32 = candidates(setting("pair"), compiled=True, limit=9)
    assert [(c.name, c.compiled, c.limit) for c in in_fp32][:2] == [("ours", False, 9), ("compiled", True, 9)]
    laid = layout_choice(torch.device("cpu"), torch.float32).name == "channels_last"
    assert [c.name for c in in_fp32][2:] == (["contiguous"] if laid else [])


def test_settings_hold_for_their_side_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_LAYOUT", raising=False)
    plain = setting("base", "bf16").ours(environment={"DITI_LAYOUT": "contiguous"})
    assert "DITI_LAYOUT" not in os.environ
    seen: list[bool] = []
    plain.pair.base.unet.conv_in.register_forward_hook(lambda m, inputs, out: seen.append(out.is_contiguous()))
    usual = setting("base", "bf16").ours()
    usual.pair.base.unet.conv_in.register_forward_hook(lambda m, inputs, out: seen.append(out.is_contiguous()))
    torch.testing.assert_close(plain(417).float(), usual(417).float(), rtol=0.05, atol=0.05)
    assert seen == [True, False]
    assert "DITI_LAYOUT" not in os.environ
    monkeypatch.setenv("DITI_KERNELS", "reference")  # Winograd's algorithm may be faster than merging
    merged, apart = setting("base").ours(), setting("base").ours(merge=False)
    kinds = [[type(m) for m in side.pair.base.modules()].count(torch.nn.ConvTranspose2d) for side in (merged, apart)]
    assert kinds[0] > kinds[1] == 0
    torch.testing.assert_close(merged(417), apart(417), rtol=1e-4, atol=1e-4)


def test_the_command_leaves_both_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cases.CASES, CASE.name, CASE)
    out = tmp_path / "forward.json"
    options = f"forward --cases {CASE.name}:1 --device cpu --precision fp32 --rounds 3 --budget 0.1 --retries 0"
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks", *options.split(), "--out", str(out)])
    assert main() == 0
    found = json.loads(out.read_text())["cases"][f"{CASE.name}:1"]
    assert found["batch_size"] == 1
    shown = capsys.readouterr().out
    for part, name in forward.PARTS.items():
        assert f"{CASE.name}, batch 1, {name}: " in shown
        assert found[part]["agreement"]["passed"]
        assert found[part]["sides"].keys() >= {"ours"}
        assert found[part]["flops_per_run"] == count_flops(setting(part)) / 2
    assert found["pair"]["gflop_per_image"] > found["base"]["gflop_per_image"] > 0.1


@needs_official
@pytest.mark.parametrize("part", forward.PARTS)
def test_our_estimate_is_the_official_one(part: str, tmp_path: Path) -> None:
    model = OfficialModel(load_code(Path(os.environ["DITI_OFFICIAL"])), CASE)
    pipeline = pipeline_from_official(model.save(tmp_path / "run"))
    both = setting(part, "bf16", model=model, pipeline=pipeline)
    gate = check_agreement(both)
    assert gate.passed, gate.refusal()
    sides = {c.name: c for c in candidates(both, compiled=False, limit=9)}
    assert sides.keys() >= {"ours", "A0", "A1", "A3"}
    for name in ("A1", "A3"):
        sides[name].build()()
    exact, tuned = both.theirs(precision="fp32")(417), both.theirs(precision="bf16", tuned=True)(417)
    torch.testing.assert_close(tuned.float(), exact, rtol=0.1, atol=0.1)
