"""What a base loses by timestep: planted estimates whose error is known, ranges that add up, modes and devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import SIZE

from diticli.errors import ConfigError, DataError, TrainingDivergedError
from diticli.models import reconstruction_gap
from diticli.models.frozen import FrozenBase
from diticli.models.reconstruction_gap import GapCurve, measure_gap
from diticli.schedule import NoiseSchedule

T = 1000


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule(1 - torch.linspace(1e-4, 0.02, T))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def curve(error: list[float], timesteps: tuple[int, ...] = (99, 499, 899)) -> GapCurve:
    values = tuple(error)
    return GapCurve(
        timesteps=timesteps,
        error=values,
        stderr=values,
        clamped=values,
        clamped_stderr=values,
        images=4,
        total_timesteps=T,
    )


def plant(monkeypatch: pytest.MonkeyPatch, estimate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    monkeypatch.setattr(reconstruction_gap, "run_base", lambda base, x, t: (estimate(x), None))


def test_the_error_of_a_known_estimate_is_the_formula(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate 0 leaves x_t / sqrt(alpha-bar): its error is the noise over the signal."""
    plant(monkeypatch, torch.zeros_like)
    found = measure_gap(make_unet(), schedule, images, timesteps=[10, 500, 999])
    bar = schedule.alphas_cumprod[[10, 500, 999]].double()
    assert found.error == pytest.approx(((1 - bar) / bar).tolist(), rel=0.1)
    assert found.clamped[0] <= found.error[0]
    assert found.clamped[-1] < 2.5
    assert found.timesteps == (10, 500, 999)
    assert (found.images, found.total_timesteps) == (6, T)


def test_an_image_meets_the_same_noise_at_every_time_step_and_batch_size(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor
) -> None:
    unet = make_unet()
    whole = measure_gap(unet, schedule, images, timesteps=[5, 300])
    parts = measure_gap(unet, schedule, images, timesteps=[300, 5, 5], batch_size=4)
    assert parts.error == pytest.approx(whole.error, rel=1e-4)
    assert measure_gap(unet, schedule, images, timesteps=[5, 300], seed=1).error != whole.error


def test_an_inference_copy_loses_the_same(make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor) -> None:
    unet = make_unet()
    ours = measure_gap(FrozenBase(unet, torch.float32), schedule, images, timesteps=[300])
    assert ours.error == pytest.approx(measure_gap(unet, schedule, images, timesteps=[300]).error, rel=1e-3)


def test_the_base_keeps_its_modes_and_the_global_generator_its_state(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor
) -> None:
    unet = make_unet()
    unet.train()
    unet.mid_block.eval()
    before = [module.training for module in unet.modules()]
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    measure_gap(unet, schedule, images[:1], timesteps=[5])
    assert [module.training for module in unet.modules()] == before
    assert torch.equal(torch.rand(1), expected)


def test_the_default_grid_is_the_centres_of_equal_bins() -> None:
    grid = reconstruction_gap.checked_timesteps(None, T)
    assert (len(grid), grid[0], grid[-1]) == (64, 7, 992)
    assert reconstruction_gap.checked_timesteps(None, 10) == tuple(range(10))


def test_ranges_add_up_to_the_whole() -> None:
    found = curve([0.1, 0.3, 0.9])
    cuts = [0, 50, 100, 470, 900, T]
    parts = [found.lost_between(a, b) for a, b in pairwise(cuts)]
    assert sum(parts) == pytest.approx(found.lost_between(0, T)) == pytest.approx(0.9)
    assert parts[:2] == pytest.approx([0.05, 0.05])
    assert parts[-1] == 0.0


def test_a_dip_of_the_error_is_no_gain() -> None:
    found = curve([0.4, 0.2, 0.9])
    assert found.lost_between(100, 500) == 0.0
    assert found.monotone() == pytest.approx([0.3, 0.3, 0.9])
    assert found.lost_between(0, T) == pytest.approx(0.9)


def test_no_more_is_lost_than_the_mean_image_misses() -> None:
    found = replace(curve([0.1, 0.3, 0.9]), mean_image=0.5)
    assert found.lost_between(0, T) == pytest.approx(0.5)
    assert found.lost_between(0, 500) == pytest.approx(0.3)
    assert found.lost_between(900, T) == pytest.approx(0.0)


def test_the_mean_image_misses_the_variance(make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor) -> None:
    found = measure_gap(make_unet(), schedule, images, timesteps=[5])
    assert found.mean_image == pytest.approx((images.double() / 127.5).var(dim=0).mean().item(), rel=1e-6)
    assert measure_gap(make_unet(), schedule, images[:1], timesteps=[5]).mean_image is None


@pytest.mark.parametrize(("low", "high"), [(-1, 5), (5, 4), (0, T + 1), (float("nan"), 5)])
def test_no_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match="no range within"):
        curve([0.1, 0.2, 0.3]).lost_between(low, high)


def test_one_image_has_an_error_but_no_standard_error(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor
) -> None:
    found = measure_gap(make_unet(), schedule, images[:1], timesteps=[5])
    assert np.isfinite(found.error[0])
    assert np.isnan(found.stderr[0])
    assert found.to_dict()["stderr"] == [None]


@pytest.mark.parametrize("grid", [[], [-1], [T]])
def test_time_steps_outside_the_schedule_are_refused(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor, grid: list[int]
) -> None:
    with pytest.raises(ConfigError, match="not all within"):
        measure_gap(make_unet(), schedule, images, timesteps=grid)


def test_only_pixels_are_measured(make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor) -> None:
    for wrong in (images[:0], images.float(), images[0]):
        with pytest.raises(DataError, match="uint8 images"):
            measure_gap(make_unet(), schedule, wrong)


def test_a_base_that_says_nan_is_refused(
    make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda x: x * float("nan"))
    with pytest.raises(TrainingDivergedError, match="NaN"):
        measure_gap(make_unet(), schedule, images, timesteps=[5])


@pytest.mark.gpu
def test_a_gpu_measures_what_a_cpu_measures(make_unet: Any, schedule: NoiseSchedule, images: torch.Tensor) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = measure_gap(make_unet(), schedule, images, timesteps=[5, 300])
    there = measure_gap(make_unet().to("cuda"), schedule, images, timesteps=[5, 300])
    assert there.error == pytest.approx(here.error, rel=1e-2)
