"""Self-supervised baselines end to end at the smallest size: beside stage 2, alone, resumed, and free when off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.processes import run_world
from safetensors.torch import load_file
from test_training import StopAfter, losses, same, tiny

from diticli.errors import ModelError
from diticli.models.load import load_pipeline
from diticli.models.pipeline import DiTiPipeline
from diticli.settings import to_dict
from diticli.training import augment as augment_module
from diticli.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from diticli.training.plan import make_plan
from diticli.training.run import train
from diticli.training.stopping import TrainingInterrupted

SMALL_HEAD = ("ssl.hidden_dim=24", "ssl.out_dim=12", "ssl.bottleneck_dim=8", "ssl.weight=0.5")
ALONE = {"ssl.only": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base the others use."""
    run = tmp_path_factory.mktemp("runs") / "base"
    train(tiny("base.images=16"), run)
    return run


def config(base: Path, method: str, *more: str, **options: Any) -> Any:
    given = {} if options.get("ssl.only") else {"base_model": str(base)}
    return tiny(*SMALL_HEAD, *more, **{"ssl.method": method, **given, **options})


def ssl_losses(run: Path) -> list[float | None]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line.get("ssl_loss") for line in lines]


def model_weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "model").glob("*/*.safetensors"))
    return {f"{file.parent.name}.{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_beside_stage_two(base: Path, tmp_path: Path, method: str) -> None:
    train(config(base, method), tmp_path / "run")
    got = ssl_losses(tmp_path / "run")
    assert len(got) == 8
    assert all(loss is not None and (-1 <= loss <= 1 if method == "simsiam" else loss > 0) for loss in got)
    names = {name.split(".")[0] for name in model_weights(tmp_path / "run")}
    assert names == {"encoder", "shift_decoder", "unet"}, "the head stays behind"
    assert not same(model_weights(tmp_path / "run"), model_weights(base))


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_alone(tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    train(config(tmp_path, method, "sample_every=4", **ALONE), run)
    assert [stage for stage, _, _ in losses(run)] == ["features"] * 8
    assert [0.5 * loss for loss in ssl_losses(run)] == pytest.approx([loss for _, _, loss in losses(run)])
    assert not (run / "base").exists()
    assert {name.split(".")[0] for name in model_weights(run)} == {"encoder"}
    pipeline = load_pipeline(str(run), "cpu")
    assert (pipeline.unet, pipeline.shift_decoder, pipeline.chunks.ends) == (None, None, (16,))
    assert pipeline.encode(torch.zeros(3, 3, 16, 16)).shape == (3, 16)
    pipeline.save_pretrained(tmp_path / "copy")
    assert DiTiPipeline.from_pretrained(tmp_path / "copy").model_hash == pipeline.model_hash


def test_an_encoder_alone_refuses_to_edit(tmp_path: Path) -> None:
    train(config(tmp_path, "simclr", **ALONE), tmp_path / "run")
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "run")
    x, z = torch.zeros(2, 3, 16, 16), torch.zeros(2, 16)
    for refused in (
        lambda: pipeline.predict(x, torch.tensor([1, 2]), z),
        lambda: pipeline.invert(x, z, steps=2),
        lambda: pipeline.decode(x, z, steps=2),
    ):
        with pytest.raises(ModelError, match="an encoder alone") as error:
            refused()
        assert "without --ssl-only" in error.value.remedy


def test_half_a_model_is_refused(make_pipeline: Any) -> None:
    with pytest.raises(ModelError, match="need each other"):
        make_pipeline(shift_decoder=None)


@pytest.mark.parametrize(
    ("method", "options", "images"),
    [
        ("simsiam", {}, 40),
        ("simclr", {"ssl.start_step": 4}, 16),
        ("simsiam", {"ssl.start_step": 3}, 32),
        ("simsiam", ALONE, 40),
        ("simclr", ALONE, 24),
    ],
)
def test_stopped_run_goes_on_bit_for_bit(
    base: Path, tmp_path: Path, method: str, options: dict[str, Any], images: int
) -> None:
    wanted = config(base, method, **options)

    def stop(run: Path, images: int) -> Checkpoint:
        with pytest.raises(TrainingInterrupted):
            train(wanted, run, reporter=StopAfter("features", images))
        return load_checkpoint(list_checkpoints(run / "checkpoints")[-1])

    whole, run = tmp_path / "whole", tmp_path / "run"
    reference = stop(whole, 56)
    stop(run, images)
    resumed = stop(run, 56)
    for name in ("weights", "ema", "optimizer", "totals"):
        assert same(resumed.tensors[name], reference.tensors[name]), name
    if method == "simsiam":
        assert resumed.tensors["weights"]["head.projector.1.running_mean"].any()
        assert resumed.tensors["weights"]["head.projector.1.num_batches_tracked"] > 0
    for folder in (whole, run):
        train(wanted, folder)
    assert losses(run) == losses(whole)
    assert ssl_losses(run) == ssl_losses(whole)
    assert same(model_weights(run), model_weights(whole))


def test_a_zero_weight_costs_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("views were made")

    plain, zero = tmp_path / "plain", tmp_path / "zero"
    train(tiny(base_model=str(base)), plain)
    monkeypatch.setattr(augment_module, "augment", refuse)
    train(config(base, "simclr", "ssl.weight=0"), zero)
    assert losses(zero) == losses(plain)
    assert ssl_losses(zero) == [None] * 8
    assert same(model_weights(zero), model_weights(plain))


def test_before_its_start_it_costs_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    augment = augment_module.augment
    monkeypatch.setattr(augment_module, "augment", lambda *a: calls.append(1) or augment(*a))
    plain, late = tmp_path / "plain", tmp_path / "late"
    train(tiny(base_model=str(base)), plain)
    assert not calls
    train(config(base, "simsiam", "ssl.start_step=5"), late)
    assert len(calls) == 2 * 3
    assert losses(late)[:5] == losses(plain)[:5]
    assert [loss is None for loss in ssl_losses(late)] == [True] * 5 + [False] * 3
    assert losses(late)[5:] != losses(plain)[5:]


def test_bf16_trains(base: Path, tmp_path: Path) -> None:
    for name, options in (("beside", {}), ("alone", ALONE)):
        train(config(base, "simsiam", "precision=bf16", "features.images=16", **options), tmp_path / name)
        assert all(loss is not None for loss in ssl_losses(tmp_path / name))


def test_dry_run_plans_what_is_trained(base: Path, tmp_path: Path) -> None:
    plain, beside = make_plan(tiny(base_model=str(base))), make_plan(config(base, "simclr"))
    alone = make_plan(config(base, "simclr", **ALONE))
    head = 16 * 24 + 24 + 24 * 12 + 12
    assert [p.ssl for p in (plain, beside, alone)] == ["none", "simclr", "simclr"]
    assert beside.stages[0].trained_parameters == plain.stages[0].trained_parameters + head
    assert [(s.name, s.frozen_parameters) for s in alone.stages] == [("features", 0)]
    assert alone.chunks == 1


def test_two_processes_train_as_one(base: Path, tmp_path: Path) -> None:
    """Gathered negatives, shared views, and a head that DDP must not wait for before its start."""
    wanted = config(base, "simclr", "ssl.start_step=3", "features.images=48", "features.grad_clip=0")
    train(wanted, tmp_path / "one")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(wanted)))
    ended = run_world(["train", "--config", tmp_path / "config.json", "--out", tmp_path / "two"], 2, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended[0].text + ended[1].text
    one, two = (torch.tensor([loss for _, _, loss in losses(tmp_path / n)]) for n in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
    one, two = (torch.tensor(ssl_losses(tmp_path / n)[3:]) for n in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
