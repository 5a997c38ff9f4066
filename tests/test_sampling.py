from itertools import pairwise

import pytest
import torch

from diticli.errors import ConfigError
from diticli.sampling import ddim_decode, ddim_invert, ddim_timesteps, dpm_timesteps, steps_run
from diticli.schedule import NoiseSchedule

BAR = NoiseSchedule(1 - torch.linspace(1e-4, 0.02, 1000)).alphas_cumprod.double()
SPREAD = 0.5


def knows_the_image(x0):
    """The exact noise when x_0 is known: x_t = sqrt(bar) x_0 + sqrt(1 - bar) noise."""

    def predict(x, t):
        bar = BAR[t]
        return (x - bar.sqrt() * x0) / (1 - bar).sqrt()

    return predict


def gaussian(x, t):
    """The exact expected noise of images drawn from N(0, SPREAD^2)."""
    bar = BAR[t]
    return (1 - bar).sqrt() * x / (bar * SPREAD**2 + 1 - bar)


def images(*, low=-1.0, high=1.0):
    return torch.empty(2, 3, 4, 4, dtype=torch.float64).uniform_(low, high)


@pytest.mark.parametrize(
    ("timesteps", "steps", "expected"),
    [
        (1000, 10, list(range(0, 1000, 100))),
        (1000, 1, [0]),
        (1000, 1000, list(range(1000))),
        (1000, 300, list(range(0, 1000, 3))),  # 334 of them: the stride is T // steps, as officially
        (1000, 600, list(range(1000))),
        (7, 2, [0, 3, 6]),
        (1, 1, [0]),
    ],
)
def test_step_sequence(timesteps, steps, expected):
    assert ddim_timesteps(timesteps, steps) == expected


@pytest.mark.parametrize(("asked", "ran"), [(334, 500), (30, 31), (600, 1000), (100, 100), (1000, 1000)])
def test_the_steps_that_run_are_known_beforehand(asked, ran):
    assert steps_run("ddim", asked, 1000) == ran == len(ddim_timesteps(1000, asked))
    if asked < 1000:
        assert steps_run("dpm", asked, 1000) == asked == len(dpm_timesteps(BAR, asked)) - 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts(steps):
    with pytest.raises(ConfigError, match=f"Cannot take {steps} DDIM steps") as error:
        ddim_timesteps(1000, steps)
    assert "between 1 and 1000" in error.value.remedy
    for walk in (ddim_invert, ddim_decode):
        with pytest.raises(ConfigError):
            walk(gaussian, images(), BAR, steps=steps)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_decoding_with_the_exact_noise_returns_the_image(steps, clip):
    x0 = images()
    decoded = ddim_decode(knows_the_image(x0), torch.randn_like(x0), BAR, steps=steps, clip=clip)
    torch.testing.assert_close(decoded, x0, rtol=0, atol=1e-9)


def test_inverting_with_the_exact_noise_keeps_it_at_every_step():
    """x_t = sqrt(bar) x_0 + sqrt(1 - bar) noise is a fixed line of the walk; its end is the noise itself."""
    x0, noise = images(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    start = BAR[0].sqrt() * x0 + (1 - BAR[0]).sqrt() * noise
    torch.testing.assert_close(ddim_invert(knows_the_image(x0), start, BAR, steps=20), noise, rtol=0, atol=1e-8)


def test_clamping_bounds_the_predicted_image_and_nothing_else_changes_it():
    bright = images(low=1.5, high=3.0)
    decoded = ddim_decode(knows_the_image(bright), torch.randn_like(bright), BAR, steps=10)
    assert torch.equal(decoded, torch.ones_like(bright))
    free = ddim_decode(knows_the_image(bright), torch.randn_like(bright), BAR, steps=10, clip=False)
    torch.testing.assert_close(free, bright)
    x0 = images(low=-0.2, high=0.2)  # never leaves [-1, 1]: clamping is no-op
    runs = [ddim_invert(gaussian, x0, BAR, steps=20, clip=clip) for clip in (True, False)]
    torch.testing.assert_close(*runs)


def test_round_trip_improves_with_steps():
    x0 = SPREAD * torch.randn(2, 3, 4, 4, dtype=torch.float64)
    errors, distances = [], []
    for steps in (10, 50, 250, 1000):
        x_T = ddim_invert(gaussian, x0, BAR, steps=steps, clip=False)
        decoded = ddim_decode(gaussian, x_T, BAR, steps=steps, clip=False)
        errors.append(float((decoded - x0).abs().max() / x0.abs().max()))
        distances.append(float((x_T - x0 / SPREAD).abs().max()))  # the flow maps N(0, s^2) to N(0, 1)
    assert all(later < earlier / 2 for earlier, later in pairwise(errors))
    assert all(later < earlier for earlier, later in pairwise(distances))
    assert errors[-1] < 0.01


@pytest.mark.parametrize("walk", [ddim_invert, ddim_decode])
@pytest.mark.parametrize(("steps", "made"), [(10, 10), (300, 334)])
def test_callback_and_model_are_called_once_a_step_in_order(walk, steps, made):
    reports, seen = [], []

    def model(x, t):
        seen.append(t)
        return gaussian(x, t)

    walk(model, images(), BAR, steps=steps, callback=lambda *report: reports.append(report))
    assert reports == [(done, made) for done in range(1, made + 1)]
    assert all(type(t) is int for t in seen)
    assert seen == (ddim_timesteps(1000, steps) if walk is ddim_invert else ddim_timesteps(1000, steps)[::-1])


@pytest.mark.parametrize("walk", [ddim_invert, ddim_decode])
def test_walks_leave_their_input_alone_and_take_empty_batches(walk):
    x = images()
    before = x.clone()
    assert walk(gaussian, x, BAR, steps=5).shape == x.shape
    assert torch.equal(x, before)
    assert walk(gaussian, x[:0], BAR, steps=5).shape == (0, 3, 4, 4)


def test_float32_stays_float32():
    x = images().float()
    bar = BAR.float()

    def predict(x, t):
        return gaussian(x, t).float()

    for walk in (ddim_invert, ddim_decode):
        assert walk(predict, x, bar, steps=5).dtype == torch.float32
