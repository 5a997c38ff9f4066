"""`--minutes`: the plan fits the time, the warm-up fits the stage, and a run that goes on keeps its plan."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_training import StopAfter, losses, same, tiny, weights

from diticli.commands.plan_view import show_plan
from diticli.config import RunConfig
from diticli.config_groups import StageConfig
from diticli.errors import ConfigError
from diticli.settings import build_config
from diticli.training import budget, plan
from diticli.training.advice import budget_warnings, few_pictures, images_notes, learning_rate_note
from diticli.training.budget import Speeds, TimeBudget, fit_to_minutes, within
from diticli.training.pace import Horizon, Pace
from diticli.training.plan import RunPlan, StagePlan
from diticli.training.run import train
from diticli.training.stage import learning_rate
from diticli.training.stopping import TrainingInterrupted


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plan_at(rates: dict[str, float], config: RunConfig) -> RunPlan:
    stages = tuple(
        StagePlan(
            name=name, images=1, steps=1, batch_size=64, learning_rate=1e-3, trained_parameters=1, frozen_parameters=0,
            images_per_second=rate, compile_seconds=0.0,
        )
        for name, rate in rates.items()
    )  # fmt: skip
    return RunPlan(
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

    def make_plan(config: RunConfig, *, seconds: float, **options: object) -> RunPlan:
        clock.now += len(true) * (seconds + 1.0)
        return plan_at({name: rate * random.uniform(0.97, 1.03) for name, rate in true.items()}, config)

    monkeypatch.setattr(budget, "make_plan", make_plan)
    monkeypatch.setattr(budget, "seconds_to_read", lambda source: 1e-4)
    started = clock.now
    clock.now += 7.0  # imports
    fitted, _ = fit_to_minutes(config, tmp_path / "run", started=started, clock=clock)
    clock.now += fitted.data.faces_count * 1e-4 / len(os.sched_getaffinity(0))
    for name, rate in true.items():
        stage = fitted.base if name == "base" else fitted.features
        clock.now += sum(stage.batch_size / rate * random.uniform(0.95, 1.05) for _ in range(stage.steps))
        pictures = -(-stage.steps // fitted.sample_every) if fitted.sample_every else 0
        clock.now += pictures * plan._ESTIMATES[name] / rate * 0.4
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
    assert error.value.message.startswith("--minutes 0.2 is too short")
    assert "take 13 s, and starting, timing and saving 10 s" in error.value.message
    needed = float(error.value.remedy.split("--minutes ")[1].split(",")[0])
    assert 0.2 < needed < 2
    within(config, 60 * needed, slow)


@pytest.mark.parametrize("images", [640, 6_400, 640_000])
def test_the_announced_learning_rate_is_reached(images: int) -> None:
    stage = StageConfig(images=images, batch_size=64, warmup_images=5_000, decay="cosine")
    rates = [learning_rate(stage, step) for step in range(stage.steps)]
    assert max(rates) == pytest.approx(stage.peak_learning_rate, rel=0.05)
    assert rates.index(max(rates)) <= stage.steps / 10 + 1


LOADS = {
    "none": lambda done: 1.0,
    "rises to three times": lambda done: 1.0 if done < 0.3 else 3.0,
    "rises late": lambda done: 1.0 if done < 0.8 else 2.0,
    "falls to a third": lambda done: 3.0 if done < 0.3 else 1.0,
    "comes and goes": lambda done: 2.5 if int(10 * done) % 2 else 1.0,
    "was only there while the plan was made": lambda done: 0.4,
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("steps", [300, 20_000])
@pytest.mark.parametrize("pictures", [0.0, 2.0])
def test_a_stage_ends_in_its_time_whatever_the_load(load: str, steps: int, pictures: float) -> None:
    """A step takes (600 s / steps) times the load, which changes with the share of the time that has passed."""
    clock, random, seconds = Clock(), np.random.default_rng(1), 600.0
    pace, plan, decay = Pace(seconds, clock=clock), Horizon(steps), Horizon(steps, since=steps / 10)
    began, step, rates = clock.now, 0, [0.0]
    while step < plan.steps:
        passed = (clock.now - began) / seconds
        clock.now += random.uniform(0.8, 1.2) * (seconds - 10 * pictures) / steps * LOADS[load](passed)
        step += 1
        if pace.due(step):
            total = pace.plan(step, plan.steps)
            plan, decay = plan.moved(step, total), decay.moved(step, total)
            pace.planned(step, total)
        if pictures and step % (steps // 10) == 0:
            with pace.apart():
                clock.now += pictures * LOADS[load](passed)
        rates.append(decay.share(step))
    assert clock.now - began == pytest.approx(seconds, rel=0.1)
    assert max(np.diff(rates)) < 0.25, "the learning rate makes no leap"
    assert plan.share(step) == pytest.approx(1, abs=0.06)


def test_what_is_done_stays_done_when_the_end_moves() -> None:
    plan = Horizon(100)
    assert [plan.share(step) for step in (0, 25, 100)] == [0, 0.25, 1]
    moved = plan.moved(25, 50)
    assert [moved.share(step) for step in (25, 50)] == [0.25, 1]
    assert moved.moved(50, 50).share(50) == 1
    warm = Horizon(100, since=10.0)
    assert warm.moved(5, 60) == Horizon(60, since=10.0), "the warm-up is as long as it was"


def test_a_stage_without_time_of_its_own_keeps_its_steps() -> None:
    budget_ = TimeBudget(None, {})
    pace = budget_.pace("features")
    assert not pace.due(1)
    assert pace.to_dict() is None
    assert budget_.pace("features").seconds_left is None


def test_later_stages_get_what_an_earlier_one_leaves() -> None:
    clock = Clock()
    time_ = TimeBudget(100.0, {"base": 30.0, "features": 70.0}, clock)
    base = time_.pace("base")
    assert (base.seconds_left, base.later) == (30.0, 70.0)
    clock.now += 40.0
    assert time_.pace("features").seconds_left == 60.0
    resumed = TimeBudget(None, {}, clock)
    first = resumed.pace("base")
    first.restore(json.loads(json.dumps(base.to_dict())))
    assert (first.seconds_left, first.later) == (-10.0, 70.0)
    assert resumed.pace("features").seconds_left == 60.0


class Machine(StopAfter):
    """A machine of 1/32 s a step, and twice that from some image of stage 2 on, which may stop."""

    def __init__(self, clock: Clock, slow_from: int = 10**9, stop_at: int = -1) -> None:
        super().__init__("features", stop_at)
        self.clock, self.slow_from = clock, slow_from

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        super().start(title, total, unit, done)
        if done == 0:
            self._step()

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        self._step()  # the next one, which begins now
        super().advance(amount, **fields)

    def _step(self) -> None:
        if self.title.startswith("Stage"):
            self.clock.now += 2 / 32 if self.title == "Stage features" and self.done >= self.slow_from else 1 / 32


def plans(run: Path) -> list[tuple[str, int, int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["step"], line["planned_steps"], line["lr"]) for line in lines]


def test_a_run_under_load_ends_in_time_and_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planned at the speed of the beginning; the machine becomes half as fast on the way."""
    monkeypatch.setattr(budget, "CLOSING", 0.0)
    monkeypatch.setattr(budget, "make_plan", lambda config, **_: plan_at({"base": 256.0, "features": 256.0}, config))
    monkeypatch.setattr(budget, "seconds_to_read", lambda source: 0.0)
    config = tiny("minutes=0.03", "sample_every=0", "checkpoint_every=10", "features.decay=cosine")
    whole, run = tmp_path / "whole", tmp_path / "run"
    clock = Clock()
    train(config, whole, reporter=Machine(clock, slow_from=80), clock=clock)
    assert clock.now - 100.0 == pytest.approx(1.8, rel=0.1)
    found = plans(whole)
    first, last = next(line for line in found if line[0] == "features"), found[-1]
    assert last[1] == last[2] < 0.9 * first[2], "fewer steps than planned"
    assert last[3] < 0.05 * max(rate for stage, _, _, rate in found if stage == "features")
    clock = Clock()
    with pytest.raises(TrainingInterrupted):
        train(config, run, reporter=Machine(clock, slow_from=80, stop_at=120), clock=clock)
    clock.now = 5000.0
    train(config, run, reporter=Machine(clock, slow_from=80), clock=clock)
    assert plans(run) == found
    assert losses(run) == losses(whole)
    assert same(weights(run), weights(whole))


def test_a_run_that_goes_on_keeps_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its images, its seed and its clock: a plan that later seconds would make otherwise is not made again."""
    speeds = iter([{"base": 256.0, "features": 256.0}, {"base": 900.0, "features": 900.0}])
    monkeypatch.setattr(budget, "CLOSING", 0.0)
    monkeypatch.setattr(budget, "make_plan", lambda config, **_: plan_at(next(speeds), config))
    monkeypatch.setattr(budget, "seconds_to_read", lambda source: 0.0)
    config, clock = tiny("minutes=0.03", "sample_every=0", "checkpoint_every=10"), Clock()
    run, whole = tmp_path / "run", tmp_path / "whole"
    with pytest.raises(TrainingInterrupted):
        train(config, run, reporter=Machine(clock, stop_at=24), clock=clock)
    planned = json.loads((run / "config.json").read_text())["config"]
    assert planned["minutes"] == 0.03
    train(config, run, reporter=Machine(clock), clock=clock)
    done = losses(run)
    assert [step for stage, step, _ in done if stage == "base"][-1] == planned["base"]["images"] // 8
    images = [f"{name}.images={planned[name]['images']}" for name in ("base", "features")]
    train(tiny("minutes=0", "sample_every=0", *images), whole)
    assert losses(whole) == done, "at the planned speed a run of minutes is that of its images"
    assert same(weights(run), weights(whole))


@pytest.mark.parametrize(("rate", "read"), [(55.0, 1e-4), (400.0, 5e-3), (2000.0, 1e-2)])
def test_a_dry_run_tells_the_time_of_a_simulated_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: float, read: float
) -> None:
    """Training, sample pictures and reading together; the machine is some percent faster or slower at every step."""
    random = np.random.default_rng(1)
    config = tiny("sample_every=2", "base.images=4000", "features.images=4000", "data.workers=1")

    def time_steps(trainer: object, seconds: float) -> tuple[float, float]:
        usual = trainer.stage.budget.batch_size / rate * random.uniform(0.95, 1.05)
        return usual, usual

    monkeypatch.setattr(plan, "_time_steps", time_steps)
    monkeypatch.setattr(plan, "seconds_to_read", lambda source: read)
    clock = Clock()
    clock.now = config.data.faces_count * read
    for name, stage in (("base", config.base), ("features", config.features)):
        clock.now += sum(stage.batch_size / rate * random.uniform(0.9, 1.1) for _ in range(stage.steps))
        clock.now += -(-stage.steps // config.sample_every) * plan._ESTIMATES[name] / rate * 0.4
    assert 1 / 1.5 < plan.make_plan(config).seconds / clock.now < 1.5


@pytest.mark.parametrize(
    ("source", "images", "said"),
    [
        ("faces", 3_000, "mean R2 was 0.74 after 25,600 images"),
        ("faces:500", 80_000, None),
        ("./photos", 80_000, "how many are enough was not measured"),
        ("./photos", 38_000_000, None),
    ],
)
def test_a_budget_too_small_for_usable_features_is_said(source: str, images: int, said: str | None) -> None:
    config = build_config("faces32", options={"data.source": source, "features.images": images})
    warnings = budget_warnings(config)
    assert bool(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_the_images_of_both_stages_are_said_and_how_to_change_them(capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"features.images": 300, "data.source": "./photos"}
    config = build_config("faces32", options=asked)
    shown = replace(plan_at({"base": 1.5, "features": 20.0}, config), amounts=images_notes(config))
    show_plan(shown, as_json=False)
    out = capsys.readouterr().out
    assert "Images, stage base: 80,000 (change with --base-images)\n" in out
    assert "Images, stage features: 320 instead of 300: whole batches of 32 (change with --images)\n" in out
    assert " 1.5 │" in out
    assert images_notes(replace(config, base_model="shipped")) == images_notes(config)[1:]
    assert "(planned for --minutes 2)" in images_notes(replace(config, minutes=2.0))[0]


def test_few_pictures_seen_again_and_again_are_said() -> None:
    config = build_config("faces32", options={"features.images": 300})
    said = few_pictures(config, 30)
    assert said.startswith("30 different pictures are few: each is seen 2,667 times in stage base and 11 times in ")
    assert "fewer than 6,799; how many are enough was not measured" in said
    assert few_pictures(config, 6_799) == ""
    assert few_pictures(replace(config, base_model="shipped"), 30) == "", "11 times is not more than was measured"


def test_the_learning_rate_shown_is_the_one_used() -> None:
    stage = StageConfig(images=3_000, batch_size=64, learning_rate=5e-4, warmup_images=5_000, decay="cosine")
    used = max(learning_rate(stage, step) for step in range(stage.steps))
    note = learning_rate_note("base", stage)
    assert used == pytest.approx(0.001, rel=0.01)
    assert "0.001 (0.0005 per 32 images, batch 64)" in note
    assert "a warm-up of 301 images (a tenth of the stage instead of 5,000 images)" in note


def test_the_plan_fits_80_columns_with_whole_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    shown = plan_at({"base": 1234.0, "features": 1234.0}, build_config("ffhq128"))
    stages = tuple(
        replace(stage, images=70_000_000, steps=546_875, trained_parameters=113_673_219) for stage in shown.stages
    )
    show_plan(replace(shown, stages=stages), as_json=False)
    out = capsys.readouterr().out
    table = [line for line in out.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(table) == 6
    assert max(map(len, table)) <= 80
    for number in ("113.7 M", "70,000,000", "546,875", "1,234"):
        assert number in out
