import json
from pathlib import Path

import pytest
import torch

from diticli.errors import ModelError
from diticli.schedule import LOSS_GAMMA, NoiseSchedule, half_log_snr, per_sample

TABLE = json.loads((Path(__file__).parent / "data" / "tables.json").read_text())["schedule"]


@pytest.fixture(scope="module")
def schedule():
    return NoiseSchedule(1 - torch.linspace(1e-4, 0.02, 1000))


@pytest.fixture(scope="module")
def exact():
    """alpha, alpha-bar and the alpha-bar before it, in float64."""
    alphas = 1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = alphas.cumprod(0)
    return alphas, bar, torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])


def test_the_presets_scheduler_gives_the_official_values_to_the_bit():
    from diticli.models.build import new_scheduler

    schedule, t = NoiseSchedule.from_scheduler(new_scheduler()), torch.tensor(TABLE["t"])
    for name in ("alphas_cumprod", "loss_weight"):
        assert torch.equal(getattr(schedule, name)[t], torch.tensor(TABLE[name])), name
    official = torch.tensor(TABLE["shift_coef"])
    one_ulp = torch.nextafter(official.abs(), torch.tensor(torch.inf)) - official.abs()
    assert ((schedule.shift_coef[t] - official).abs() <= one_ulp).all()


def test_values_follow_the_formulas(schedule, exact):
    alphas, bar, before = exact
    snr = bar / (1 - bar)
    expected = {
        "alphas_cumprod": bar,
        "shift_coef": -alphas.sqrt() * (1 - before) / (1 - bar).sqrt(),
        "loss_weight": snr**LOSS_GAMMA / (1 + snr),
    }
    for name, values in expected.items():
        got = getattr(schedule, name)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), values, rtol=2e-3, atol=1e-6, msg=name)
    assert schedule.shift_coef[0] == 0  # nothing trains the shift at t = 0
    assert schedule.timesteps == 1000
    torch.testing.assert_close(half_log_snr(schedule.alphas_cumprod).double(), 0.5 * snr.log(), rtol=1e-3, atol=1e-3)


def test_constants_move_with_the_module_and_stay_out_of_checkpoints(schedule):
    assert len(dict(schedule.named_buffers())) == 3
    assert schedule.state_dict() == {}


def test_added_noise_is_that_of_each_samples_timestep(schedule):
    x0, noise = torch.randn(3, 3, 4, 4), torch.randn(3, 3, 4, 4)
    t = torch.tensor([0, 500, 999])
    x_t = schedule.add_noise(x0, noise, t)
    for i, step in enumerate(t):
        bar = schedule.alphas_cumprod[step]
        torch.testing.assert_close(x_t[i], bar.sqrt() * x0[i] + (1 - bar).sqrt() * noise[i])


def test_both_forms_of_the_shift_differ_at_small_timesteps_only(schedule):
    t = torch.arange(1000)
    posterior, score = schedule.shift_scale(t, "posterior"), schedule.shift_scale(t, "score")
    assert posterior.shape == score.shape == (1000, 1, 1, 1)
    assert torch.equal(score.flatten(), -(1 - schedule.alphas_cumprod).sqrt())
    ratio = (posterior / score).flatten()
    assert ratio[0] == 0
    assert ratio[100:].min() > 0.97
    assert (ratio <= 1).all()


def test_per_sample_broadcasts_over_images():
    assert per_sample(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0])).tolist() == [[[[3.0]]], [[[1.0]]]]


@pytest.mark.parametrize(
    "alphas",
    [
        torch.tensor([0.9, 1.0, 0.9]),  # does not fall
        torch.tensor([1.0, 0.9]),  # infinite signal-to-noise ratio
        torch.tensor([0.9, 0.0]),  # zero terminal signal
        torch.tensor([0.9, -0.1]),
        torch.tensor([0.9, torch.nan]),
        torch.full((2, 2), 0.9),
    ],
)
def test_impossible_schedules(alphas):
    with pytest.raises(ModelError, match="do not fall strictly") as error:
        NoiseSchedule(alphas)
    assert "scheduler" in error.value.remedy


def test_a_zero_terminal_snr_scheduler_is_refused():
    from diffusers import DDIMScheduler

    with pytest.raises(ModelError, match="do not fall strictly"):
        NoiseSchedule.from_scheduler(DDIMScheduler(rescale_betas_zero_snr=True))
