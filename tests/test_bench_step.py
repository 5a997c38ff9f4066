"""The training step as it is measured: the same on both sides, and with each feature switched off."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import train
from benchmarks.agreement import Gate
from benchmarks.cases import CASES, pictures, random_pipeline
from benchmarks.official_side import OfficialCodeError, OfficialModel, load_code
from benchmarks.step_agreement import Setting, check_agreement
from benchmarks.train import candidates
from diticli.official.convert import pipeline_from_official

CPU_DEVICE = torch.device("cpu")


@pytest.fixture
def setting():
    case = CASES["tiny64"]
    return Setting(
        case=case,
        batch_size=2,
        device=CPU_DEVICE,
        pipeline=lambda: random_pipeline(case),
        model=None,
        images=pictures(case, 2),
        precision="fp32",
        compile=False,
    )


def test_our_step_agrees_with_itself_and_a_wrong_one_is_refused(setting):
    assert check_agreement(setting).passed

    def wrong():
        pipeline = random_pipeline(setting.case)
        calls.append(None)
        if len(calls) > 1:  # the first one is taken as right
            pipeline.shift_decoder.conv_out.weight.data.mul_(1.01)
        return pipeline

    calls: list[None] = []
    gate = check_agreement(replace(setting, pipeline=wrong))
    assert not gate.passed
    assert gate.refusal().startswith("No speed-up: fp32")


def test_a_step_trains_and_the_loop_goes_on_from_it(setting):
    trainer = setting.ours()
    before = trainer.objective.encoder.head.weight.detach().clone()
    trainer.step(setting.images)
    assert trainer.trainer.step == 1
    assert not torch.equal(before, trainer.objective.encoder.head.weight)
    trainer.run_with_loader(1)
    assert trainer.trainer.step == 2


def test_features_switched_off(setting, monkeypatch):
    for variable in ("DITI_LAYOUT", "DITI_KERNELS", "DITI_ATTENTION"):
        monkeypatch.delenv(variable, raising=False)
    sides, skipped = candidates(replace(setting, precision="bf16"), features=True, compiled=False)
    assert [side.name for side in sides] == [
        *("ours", "no frozen copy", "not merged", "contiguous", "sdpa", "fp32", "plain Adam")
    ]
    assert skipped.keys() == {"reference ops"}
    monkeypatch.setenv("DITI_KERNELS", "reference")  # as where there is no C compiler
    sides, skipped = candidates(setting, features=True, compiled=False)
    assert skipped["contiguous"] == "ours is contiguous here anyway"
    assert not any(side.compiled for side in sides)
    sides, _ = candidates(replace(setting, compile=True), features=False, compiled=True, limit=9)
    assert [(side.name, side.compiled, side.limit) for side in sides] == [("ours", False, 9), ("no compile", False, 9)]


def test_what_is_switched_off_is_off(setting):
    def layers(kind, **changes):
        base = setting.ours(**{"precision": "bf16"} | changes).objective.unet
        return [module.weight for module in base.modules() if isinstance(module, kind)]

    assert layers(torch.nn.ConvTranspose2d)
    assert not layers(torch.nn.ConvTranspose2d, merge=False)
    assert not layers(torch.nn.ConvTranspose2d, frozen_copy=False)
    weights = layers(torch.nn.Conv2d, environment={"DITI_LAYOUT": "contiguous"})
    assert all(weight.is_contiguous() for weight in weights)
    assert not all(weight.is_contiguous() for weight in layers(torch.nn.Conv2d))
    assert "DITI_LAYOUT" not in os.environ


def test_compiling_that_takes_too_long_leaves_no_ours(setting, monkeypatch):
    """Compiled apart from the check; what then runs uncompiled has another name, and nothing is compared with it."""

    def slow(setting):
        for _ in range(500):
            time.sleep(0.02)

    gate = Gate()
    monkeypatch.setattr(train, "check_agreement", lambda setting: gate)
    monkeypatch.setattr(train, "compile_step", slow)
    found = train.checked(replace(setting, compile=True), 0.6)
    assert found[0] == replace(setting, compile=False)
    assert found[1:] == (gate, {"ours": "out of time: compiling it had not ended after 1 s"})
    assert train.checked(setting, 0.6) == (setting, gate, {})
    sides, _ = candidates(found[0], features=False, compiled=False, own="ours, uncompiled")
    assert [side.name for side in sides] == ["ours, uncompiled"]


def test_a_compiler_that_fails_leaves_no_ours(setting, monkeypatch):
    monkeypatch.setattr(train, "check_agreement", lambda setting: setting.heard.warn("torch.compile failed on it"))
    monkeypatch.setattr(train, "compile_step", lambda setting: None)
    assert train.checked(replace(setting, compile=True), 9)[2] == {"ours": "torch.compile failed on it"}


@pytest.mark.skipif("DITI_OFFICIAL" not in os.environ, reason="DITI_OFFICIAL names no checkout of the official code")
def test_our_step_agrees_with_the_official_one(setting, tmp_path):
    model = OfficialModel(load_code(Path(os.environ["DITI_OFFICIAL"])), setting.case)
    folder = model.save(tmp_path / "run")
    gate = check_agreement(replace(setting, model=model, pipeline=lambda: pipeline_from_official(folder)))
    assert gate.passed, gate.refusal()
    assert len(gate.checks) == 6


def test_a_folder_without_the_official_code_is_refused(tmp_path):
    with pytest.raises(OfficialCodeError, match="no checkout of the official DiTi code"):
        load_code(tmp_path)
