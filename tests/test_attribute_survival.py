"""When attributes are lost: a case whose answer is a formula, the arithmetic of curves, and the order of two lists."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from diticli.data.labels import LabelColumn
from diticli.errors import ConfigError
from diticli.evaluation.attribute_survival import SurvivalCurves, explained_variance, measure_survival, survival
from diticli.evaluation.noisy_classifier import NoisyClassifier
from diticli.evaluation.order import compare_order
from diticli.evaluation.swap_effects import SwapEffects
from diticli.schedule import NoiseSchedule
from diticli.statistics import Estimate, spearman
from diticli.targets import Target

T, SIDE = 1000, 16


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(1 - torch.linspace(1e-4, 0.02, T))


def planted(count: int, seed: int) -> tuple[torch.Tensor, dict[str, tuple[str, np.ndarray]], dict[str, float]]:
    """Grey images with two patterns of known contrast, their strengths, and the energy of each."""
    strengths = np.random.default_rng(seed).uniform(-1, 1, (count, 2))
    rows, columns = np.mgrid[:SIDE, :SIDE]
    patterns = {"strong": (0.6, np.sign(rows - SIDE / 2 + 0.5)), "faint": (0.06, np.sign(columns - SIDE / 2 + 0.5))}
    pixels = sum(
        contrast * strengths[:, i, None, None] * pattern for i, (contrast, pattern) in enumerate(patterns.values())
    )
    images = torch.from_numpy(np.round(127.5 * (1 + pixels)).clip(0, 255).astype(np.uint8))
    labels = {name: LabelColumn("number", strengths[:, i]) for i, name in enumerate(patterns)}
    energy = {name: contrast**2 * 3 * SIDE**2 / 3 for name, (contrast, _) in patterns.items()}
    return images[:, None].repeat(1, 3, 1, 1), labels, energy


@pytest.fixture(scope="module")
def found(schedule: NoiseSchedule) -> SurvivalCurves:
    images, labels, _ = planted(600, 0)
    return measure_survival(images, labels, schedule, epochs=6, batch_size=32, grid=21, resamples=50)  # type: ignore[arg-type]


def test_attributes_are_lost_where_the_formula_says(found: SurvivalCurves, schedule: NoiseSchedule) -> None:
    """A strength y in a pattern of energy E: x_t explains E / (E + (1 - bar) / bar) of a Gaussian y, about so here."""
    _, _, energy = planted(1, 0)
    noise = (1 - schedule.alphas_cumprod) / schedule.alphas_cumprod
    for name, half in found.half.items():
        expected = int((noise < energy[name]).sum())
        assert half is not None
        assert half.low <= half.value <= half.high
        assert half.value == pytest.approx(expected, abs=90), name
    assert found.order == ("faint", "strong")


def test_what_is_left_falls_from_one(found: SurvivalCurves) -> None:
    for name, curve in found.left.items():
        assert curve is not None
        assert curve[0] == 1
        assert list(curve) == sorted(curve, reverse=True)
        assert curve[-1] < 0.3
        assert found.explained[name][0] > 0.5
    assert (found.timesteps[0], found.timesteps[-1], len(found.timesteps)) == (0, T - 1, 21)
    assert (found.learned_from, found.held_out) == (540, 60)
    told = found.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert "half_draws" not in told


def test_what_no_image_shows_has_no_time(schedule: NoiseSchedule) -> None:
    images, labels, _ = planted(200, 1)
    noise = np.random.default_rng(2).normal(size=200)
    noise[::3] = np.nan
    curves = measure_survival(
        images, {"nothing": LabelColumn("number", noise)}, schedule, epochs=1, grid=3, resamples=5
    )
    assert curves.half == {"nothing": None}
    assert curves.left == {"nothing": None}
    assert curves.order == ()
    with pytest.raises(ConfigError, match="at least 200"):
        measure_survival(images[:100], labels, schedule)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no curve"):
        measure_survival(images, labels, schedule, grid=1)  # type: ignore[arg-type]


def test_the_explained_variance_of_known_readings() -> None:
    truth = np.array([[-1.0, 0], [1, 1], [-1, np.nan], [1, 1]])
    said = np.stack([np.nan_to_num(truth), np.zeros((4, 2)), truth.mean(axis=0) + np.zeros((4, 2))])
    scores = explained_variance(truth, said, np.ones((1, 4)))[0]
    assert scores[0] == pytest.approx([1, 1])
    assert scores[1] == pytest.approx([0, 1 - (2 / 3) / (2 / 9)])
    twice = explained_variance(np.tile(truth, (2, 1)), np.tile(said, (1, 2, 1)), np.ones((1, 8)))
    weighted = explained_variance(truth, said, np.full((1, 4), 2.0))
    assert twice[0, :2] == pytest.approx(weighted[0, :2])


def test_a_curve_is_made_to_fall() -> None:
    curve = survival(np.array([0.8, 0.2, 0.6, -0.1]))
    assert curve is not None
    assert curve == pytest.approx([1, 0.5, 0.5, 0])
    assert survival(np.array([0.05, 0.01])) is None


def test_the_reader_knows_the_noise_level() -> None:
    classifier = NoisyClassifier([Target(name="a", kind="number", mean=0.0, std=1.0)], 16, T).eval()
    x = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(classifier(x, torch.tensor([5, 5])), classifier(x, torch.tensor([500, 500])))
    assert classifier.read(x, 5).shape == (2, 1)


@pytest.mark.parametrize("side", [16, 24, 32, 64, 128])
def test_readers_fit_images_of_every_size(side: int) -> None:
    attributes = [Target(name="a", kind="binary", mean=0.5, std=0.5)]
    assert NoisyClassifier(attributes, side, T)(torch.zeros(2, 3, side, side), torch.tensor([0, T - 1])).shape == (2, 1)


def atlas_of(centres: dict[str, float | None], spread: float = 0.0, poor: tuple[str, ...] = ()) -> SwapEffects:
    one = Estimate(value=1.0, low=1.0, high=1.0)
    share = Estimate(value=1.0, low=1.0, high=1.0)
    values = np.array([np.nan if c is None else c for c in centres.values()])
    return SwapEffects(
        model="m",
        model_hash="h",
        groups=((0,),),
        timesteps=((0, T),),
        shares=dict.fromkeys(centres, (share,)),
        together=dict.fromkeys(centres, share),
        centres={n: None if c is None else Estimate(value=c, low=c, high=c) for n, c in centres.items()},
        concentration=dict.fromkeys(centres, 1.0),
        selectivity=(1.0,),
        completeness=one,
        disentanglement=one,
        unreadable=poor,
        pairs=4,
        facts={"steps": 2, "steps_run": 2},
        centre_draws=values + spread * np.random.default_rng(0).normal(size=(200, len(centres))),
    )


def lost_of(halves: dict[str, float | None]) -> SurvivalCurves:
    values = np.array([np.nan if h is None else h for h in halves.values()])
    return SurvivalCurves(
        timesteps=(0, T - 1),
        explained=dict.fromkeys(halves, (1.0, 0.0)),
        left=dict.fromkeys(halves, (1.0, 0.0)),
        half={n: None if h is None else Estimate(value=h, low=h, high=h) for n, h in halves.items()},
        learned_from=1,
        held_out=1,
        total_timesteps=T,
        half_draws=np.tile(values, (100, 1)),
    )


TRUTH: dict[str, float | None] = {"e": 500, "d": 400, "c": 300, "b": 200, "a": 100, "f": None}


def test_the_same_order_agrees_and_its_reverse_does_not() -> None:
    centres: dict[str, float | None] = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 50}
    same = compare_order(atlas_of(centres), lost_of(TRUTH))
    assert same is not None
    assert (same.spearman.value, same.spearman.low, same.spearman.high) == pytest.approx((1, 1, 1))
    assert same.p_value == pytest.approx(1 / 120, abs=0.004)
    assert same.attributes == tuple("abcde")
    reverse = compare_order(atlas_of({name: -value for name, value in centres.items() if value}), lost_of(TRUTH))
    assert reverse is not None
    assert reverse.spearman.value == pytest.approx(-1)
    assert reverse.p_value == 1
    assert json.loads(json.dumps(same.to_dict())) == same.to_dict()


def test_an_order_measured_badly_has_a_wide_interval() -> None:
    centres: dict[str, float | None] = {"a": 10, "b": 20, "c": 30, "d": 40, "e": 50}
    vague = compare_order(atlas_of(centres, spread=30), lost_of(TRUTH))
    assert vague is not None
    assert vague.spearman.low < 0.5


def test_only_attributes_with_both_times_are_compared() -> None:
    centres: dict[str, float | None] = {"a": 10, "b": None, "c": 30, "d": 40, "e": 50, "f": 60}
    found = compare_order(atlas_of(centres, poor=("d",)), lost_of(TRUTH))
    assert found is not None
    assert found.attributes == ("a", "c", "e")
    assert compare_order(atlas_of(centres, poor=("d", "e")), lost_of(TRUTH)) is None


def test_rank_correlation_is_that_of_scipy() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 9))
    a[:, 0] = a[:, 1]
    assert spearman(a, b) == pytest.approx([spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)])
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))
