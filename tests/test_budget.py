"""`--minutes`: the plan fits the time, the warm-up fits the stage, and a run that goes on keeps its plan."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from test_training import StopAfter, losses, same, tiny, weights

from diticli.config import RunConfig
from diticli.config_groups import StageConfig
from diticli.errors import ConfigError
from diticli.settings import build_config
from diticli.training import budget
from diticli.training.budget import Speeds, fit_to_minutes, within
from diticli.training.loop import learning_rate
from diticli.training.plan import Plan, StagePlan
from diticli.training.run import train
from diticli.training.stopping import TrainingInterrupted


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan_at(rates: dict[str, float], config: RunConfig) -> Plan:
    stages = tuple(
        StagePlan(
            name=name, images=1, steps=1, batch_size=64, learning_rate=1e-3, trained_parameters=1, frozen_parameters=0,
            images_per_second=rate, compile_seconds=0.0,
        )
        for name, rate in rates.items()
    )  # fmt: skip
    return Plan(
        preset=config.preset, device="cpu", precision="fp32", compile=False, data="faces", data_images=1,
        resolution=32, chunks=4, latent_dim=16, ssl="none", stages=stages, peak_memory_mb=1.0,
    )  # fmt: skip


@pytest.mark.parametrize("minutes", [1.0, 2.0, 10.0, 240.0])
@pytest.mark.parametrize("given", [False, True])
def test_a_run_ends_within_a_tenth_of_its_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float, given: bool
) -> None:
    """A simulated machine, some percent slower or faster at every step, with its own cost of sample pictures."""
    clock, random = Clock(), np.random.default_rng(3)
    true = {"features": 55.0} if given else {"base": 70.0, "features": 55.0}
    config = build_config("faces32", options={"minutes": minutes, "base_model": "x" if given else ""})

    def make_plan(config: RunConfig, *, seconds: float, reporter: object) -> Plan:
        clock.now += len(true) * (seconds + 1.0)
        return plan_at({name: rate * random.uniform(0.97, 1.03) for name, rate in true.items()}, config)

    monkeypatch.setattr(budget, "make_plan", make_plan)
    monkeypatch.setattr(budget, "_seconds_to_read", lambda source: 1e-4)
    started = clock.now
    clock.now += 7.0  # imports
    fitted = fit_to_minutes(config, tmp_path / "run", started=started, clock=clock)
    clock.now += fitted.data.faces_count * 1e-4 / len(os.sched_getaffinity(0))
    for name, rate in true.items():
        stage = fitted.base if name == "base" else fitted.features
        clock.now += sum(stage.batch_size / rate * random.uniform(0.95, 1.05) for _ in range(stage.steps))
        pictures = -(-stage.steps // fitted.sample_every) if fitted.sample_every else 0
        clock.now += pictures * budget._ESTIMATES[name] / rate * 0.4
    assert (clock.now - started) / 60 == pytest.approx(minutes, rel=0.1)


def test_stages_share_the_time_as_their_images_would() -> None:
    config = build_config("faces32", options={"minutes": 20.0, "features.images": 160_000})
    fitted = within(config, 1200.0, Speeds(training={"base": 100.0, "features": 50.0}, compiling={}))
    assert fitted.features.images / fitted.base.images == pytest.approx(2, rel=0.01)
    assert fitted.base.images % fitted.base.batch_size == 0
    assert fitted.base.decay == "cosine"
    assert learning_rate(fitted.base, fitted.base.steps - 1) < 0.02 * fitted.base.peak_learning_rate


def test_too_little_time_is_refused_with_what_would_do() -> None:
    config = build_config("faces32", options={"minutes": 0.2})
    slow = Speeds(training={"base": 100.0, "features": 50.0}, compiling={}, loading=5.0)
    with pytest.raises(ConfigError, match="too short") as error:
        within(config, 10.0, slow)
    needed = float(error.value.remedy.split("--minutes ")[1].split(",")[0])
    assert 0.2 < needed < 2
    within(config, 60 * needed, slow)


@pytest.mark.parametrize("images", [640, 6_400, 640_000])
def test_the_announced_learning_rate_is_reached(images: int) -> None:
    stage = StageConfig(images=images, batch_size=64, warmup_images=5_000, decay="cosine")
    rates = [learning_rate(stage, step) for step in range(stage.steps)]
    assert max(rates) == pytest.approx(stage.peak_learning_rate, rel=0.05)
    assert rates.index(max(rates)) <= stage.steps / 10 + 1


def test_a_run_that_goes_on_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([{"base": 40.0, "features": 60.0}, {"base": 900.0, "features": 900.0}])
    monkeypatch.setattr(budget, "CLOSING", 0.0)
    monkeypatch.setattr(budget, "make_plan", lambda config, **_: plan_at(next(speeds), config))
    config = tiny("minutes=0.1")
    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(TrainingInterrupted):
        train(config, run, reporter=StopAfter("features", 24))
    planned = json.loads((run / "config.json").read_text())["config"]
    assert planned["minutes"] == 0.1
    assert planned["base"]["images"] not in (40, 0)
    train(config, run)
    done = losses(run)
    assert [step for stage, step, _ in done if stage == "base"][-1] == planned["base"]["images"] // 8
    images = [f"{name}.images={planned[name]['images']}" for name in ("base", "features")]
    train(tiny("minutes=0", *images), whole)
    assert losses(whole) == done
    assert same(weights(run), weights(whole))
