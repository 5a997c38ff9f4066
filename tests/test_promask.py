"""The probabilistic mask: its schedule, its projection, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from diticli.data.label_columns import Kind
from diticli.errors import ConfigError
from diticli.probing.promask import MaskSettings, learn_masks, project_scores, sample_masks
from diticli.targets import Target

N, D, TRUE = 1500, 64, 5


def column(kind: Kind, values: np.ndarray, classes: int = 0) -> Target:
    return Target(name="a", kind=kind, values=values, classes=tuple(map(str, range(classes))))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy(seed: int = 0, constant: int | None = None) -> tuple[np.ndarray, list[Target], list[set[int]]]:
    """Independent features; each attribute is a noisy sum of five of them, with unknown values among the labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D))
    dims = [np.delete(np.arange(D), [] if constant is None else [constant]) for _ in range(3)]
    true = [rng.permutation(own)[:TRUE] for own in dims]
    scores = [x[:, own] @ (rng.choice([-1, 1], TRUE) * rng.uniform(0.7, 1.3, TRUE)) for own in true]
    noisy = [(s / s.std() + 0.3 * rng.normal(size=N)) for s in scores]
    columns = [
        column("category", np.digitize(noisy[0], np.quantile(noisy[0], [1 / 3, 2 / 3])).astype(float), 3),
        column("binary", (noisy[1] > 0.5).astype(float)),
        column("number", noisy[2] / noisy[2].std()),
    ]
    for one in columns:
        one.values[rng.permutation(N)[:100]] = np.nan
    if constant is not None:
        x[:, constant] = 0.0
    return x.astype(np.float32), columns, [set(own.tolist()) for own in true]


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_the_dims_that_labels_depend_on(seed: int) -> None:
    x, columns, true = toy(seed)
    masks = learn_masks(x, columns, MaskSettings(dims=TRUE, steps=300, batch_size=512), seed=seed)
    assert masks.chosen.shape == (3, TRUE)
    for chosen, own in zip(masks.chosen.tolist(), true, strict=True):
        assert chosen == sorted(chosen)
        assert len(own & set(chosen)) >= TRUE - 1
    assert masks.scores.min() >= 0
    assert masks.scores.max() <= 1
    assert (masks.scores.sum(axis=1) <= TRUE + 1e-2).all()


def test_same_seed_same_masks_and_constant_features_are_never_chosen() -> None:
    x, columns, _ = toy(constant=7)
    settings = MaskSettings(dims=D - 1, steps=20, batch_size=64, samples=2)
    first, again, other = (learn_masks(x, columns, settings, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.scores, again.scores)
    assert (first.scores != other.scores).any()
    assert (first.chosen == np.delete(np.arange(D), 7)).all()
    assert (first.scores[:, 7] == 0).all()
    with pytest.raises(ConfigError, match="64 dims cannot be chosen from 63") as caught:
        learn_masks(x, columns, MaskSettings(dims=D))
    assert "at most 63" in caught.value.remedy


def test_budget_falls_by_a_cube_between_a_tenth_and_four_tenths() -> None:
    settings = MaskSettings(dims=16, steps=1000)
    assert settings.budget(0, 512) == settings.budget(100, 512) == 512
    assert settings.budget(250, 512) == pytest.approx(16 + 496 / 8)
    assert settings.budget(400, 512) == settings.budget(1000, 512) == 16
    assert settings.temperature(0) == 1
    assert settings.temperature(1000) == pytest.approx(settings.coldest)


def test_projection_is_the_nearest_point_of_the_budget() -> None:
    """Against the optimality condition: s - p is the same v wherever 0 < p < 1, and v = 0 inside the budget."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 30, generator=generator) * 0.7 + 0.5
    for budget in (2.5, 9.0, 40.0):
        projected = project_scores(scores, budget)
        clipped = scores.clamp(0, 1)
        assert (projected.sum(dim=1) <= budget + 1e-4).all()
        for row, point, inside in zip(scores, projected, clipped, strict=True):
            if inside.sum() <= budget:
                torch.testing.assert_close(point, inside)
                continue
            assert point.sum() == pytest.approx(budget, abs=1e-3)
            shift = (row - point)[(point > 1e-5) & (point < 1 - 1e-5)]
            assert shift.max() - shift.min() < 1e-5
            v = shift.mean()
            assert (row[point <= 1e-5] <= v + 1e-4).all()
            assert (row[point >= 1 - 1e-5] >= 1 + v - 1e-4).all()


def test_samples_follow_the_scores_and_pass_gradients_at_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([[0.0, 0.2, 0.7, 1.0]], requires_grad=True)
    masks = sample_masks(scores, 0.03, 4000, generator)
    assert masks.shape == (4000, 1, 4)
    torch.testing.assert_close(masks.mean(dim=(0, 1)), scores[0].detach(), atol=0.03, rtol=0)
    sample_masks(scores, 1.0, 64, generator).sum().backward()
    assert scores.grad is not None
    assert (scores.grad > 0).all()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"dims": 0}, {"steps": 0}, {"samples": -1}, {"prune_start": 0.5}, {"prune_end": 1.5}, {"coldest": 0.0}]
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        MaskSettings(**({"dims": 4} | wrong))  # type: ignore[arg-type]


def test_progress_counts_every_step() -> None:
    seen: list[int] = []

    class Counting:
        def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
            seen.append(-(total or 0))

        def advance(self, amount: int = 1, **fields: str | float) -> None:
            seen.append(amount)

        def finish(self) -> None: ...
        def note(self, message: str) -> None: ...
        def warn(self, message: str) -> None: ...

    x, columns, _ = toy()
    learn_masks(x, columns, MaskSettings(dims=3, steps=33, batch_size=64), reporter=Counting())
    assert sum(seen) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_learns_on_the_gpu() -> None:
    x, columns, true = toy()
    masks = learn_masks(x, columns, MaskSettings(dims=TRUE, steps=300, batch_size=512), device="cuda")
    for chosen, own in zip(masks.chosen.tolist(), true, strict=True):
        assert len(own & set(chosen)) >= TRUE - 1
