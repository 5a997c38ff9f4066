"""The multistep solver: order, grid, and agreement with diffusers' own."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diticli.errors import ConfigError
from diticli.sampling import ddim_decode, ddim_invert, decode, dpm_decode, dpm_invert, dpm_timesteps, invert, multistep
from diticli.schedule import NoiseSchedule, half_log_snr

BETAS = torch.linspace(1e-4, 0.02, 1000)
BAR = NoiseSchedule(1 - BETAS).alphas_cumprod.double()
# The same noise levels cut a hundred times finer: whole timesteps then hide no order of convergence.
FINE = torch.exp(-torch.linspace(0, 1, 100_000, dtype=torch.float64) * (0.1 + 9.95 * torch.linspace(0, 1, 100_000)))[1:]
SPREAD = 0.5


def gaussian(bar):
    """The exact expected noise of images drawn from N(0, SPREAD^2)."""
    return lambda x, t: (1 - bar[t]).sqrt() * x / (bar[t] * SPREAD**2 + 1 - bar[t])


def exact(x, bar, start, end):
    """Where the probability-flow ODE of such images takes x: along its standard deviation."""
    std = (bar * SPREAD**2 + 1 - bar).sqrt()
    return x * std[end] / std[start]


def bumpy(x, t):
    """A noise estimate without symmetries, that depends on x and t."""
    return torch.tanh(x.roll(1, -1) + 0.3 * x.roll(1, 0)) + t / 2000


def images(dtype=torch.float64):
    return torch.randn(2, 3, 4, 4, dtype=dtype)


def errors(walk, start, end, counts, **options):
    x = images()
    wanted = exact(x, FINE, start, end)
    return [float((walk(gaussian(FINE), x, FINE, steps=n, **options) - wanted).abs().max()) for n in counts]


@pytest.mark.parametrize("way", ["invert", "decode"])
def test_the_error_falls_with_the_square_of_the_steps(way):
    walk, ends = (dpm_invert, (0, -1)) if way == "invert" else (dpm_decode, (-1, 0))
    found = errors(walk, *ends, (40, 80, 160, 320))
    assert all(3.4 < coarse / fine < 4.6 for coarse, fine in pairwise(found)), found


def test_ddims_error_falls_with_the_steps():
    found = errors(ddim_decode, -1, 0, (250, 500, 1000), clip=False)
    assert all(1.7 < coarse / fine < 2.3 for coarse, fine in pairwise(found)), found


def test_few_steps_return_the_image_where_ddim_needs_many():
    x0 = SPREAD * images()

    def round_trip(solver, steps):
        options = {"solver": solver, "steps": steps, "clip": False}
        back = decode(gaussian(BAR), invert(gaussian(BAR), x0, BAR, **options), BAR, **options)
        return float((back - x0).abs().max())

    assert round_trip("dpm", 20) < round_trip("ddim", 200)
    assert round_trip("dpm", 50) < 2e-3


def test_one_step_is_ddims():
    x = images()
    signal, noise = BAR.sqrt(), (1 - BAR).sqrt()
    for start, end in ((0, 700), (700, 0)):
        estimate = bumpy(x, start)
        x0 = (x - noise[start] * estimate) / signal[start]
        torch.testing.assert_close(
            multistep(bumpy, x, BAR, [start, end], clip=False), signal[end] * x0 + noise[end] * estimate
        )


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_few_steps_are_predicted_by_first_order_and_corrected(steps):
    """By UniC (arXiv 2302.04867): the integral of the line between two predicted images, clamped."""
    grid = dpm_timesteps(BAR, steps)
    signal, noise, level = BAR.sqrt(), (1 - BAR).sqrt(), half_log_snr(BAR)
    for way in (grid, grid[::-1]):
        start = x = predicted = images()
        found: list[torch.Tensor] = []
        for i, (t, after) in enumerate(pairwise(way)):
            found.append(((predicted - noise[t] * bumpy(predicted, t)) / signal[t]).clamp(-1, 1))
            if i:
                h = level[t] - level[way[i - 1]]
                nodes = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
                line = torch.lerp(found[i - 1].reshape(1, -1), found[i].reshape(1, -1), nodes)
                integral = torch.trapezoid(torch.exp((nodes - 1) * h) * line, nodes * h, dim=0).reshape(x.shape)
                x = noise[t] / noise[way[i - 1]] * x + signal[t] * integral
            h = level[after] - level[t]
            predicted = noise[after] / noise[t] * x + signal[after] * (1 - torch.exp(-h)) * found[i]
        torch.testing.assert_close(multistep(bumpy, start, BAR, way), predicted, rtol=1e-6, atol=1e-6)


def test_few_steps_come_back():
    """5 steps along a line through two predictions gave images of a trained model back with 8 dB, these with 40."""
    x0 = SPREAD * images()
    there = dpm_invert(gaussian(BAR), x0, BAR, steps=5, clip=False)
    assert (dpm_decode(gaussian(BAR), there, BAR, steps=5, clip=False) - x0).abs().max() < 0.1


def test_from_fifteen_steps_on_nothing_is_clamped():
    x = 3 * images()
    for steps in (15, 20):
        assert torch.equal(dpm_decode(bumpy, x, BAR, steps=steps), dpm_decode(bumpy, x, BAR, steps=steps, clip=False))


@given(st.integers(1, 999))
@settings(deadline=None, max_examples=60)
def test_grid_has_every_step_and_both_ends(steps):
    grid = dpm_timesteps(BAR, steps)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (0, 999)
    assert all(a < b for a, b in pairwise(grid))


@given(st.integers(2, 40), st.integers(1, 60))
def test_grids_of_short_schedules(timesteps, steps):
    bar = torch.linspace(0.99, 0.01, timesteps)
    if steps > timesteps - 1:
        with pytest.raises(ConfigError, match=f"Cannot take {steps} DPM-Solver steps") as error:
            dpm_timesteps(bar, steps)
        assert f"between 1 and {timesteps - 1}" in error.value.remedy
    else:
        grid = dpm_timesteps(bar, steps)
        assert sorted(set(grid)) == grid
        assert (len(grid), grid[0], grid[-1]) == (steps + 1, 0, timesteps - 1)


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_grid_is_uniform_in_log_snr_as_far_as_whole_timesteps_allow(steps):
    level = half_log_snr(BAR)
    grid = dpm_timesteps(BAR, steps)
    wanted = torch.linspace(float(level[0]), float(level[-1]), steps + 1, dtype=torch.float64)
    spacing = torch.maximum((level - level.roll(1)).abs(), (level - level.roll(-1)).abs())
    assert ((level[grid] - wanted).abs() <= spacing[grid]).all()


@pytest.mark.parametrize("clip", [True, False])
def test_both_ways_take_the_same_grid_and_ask_once_a_step(clip):
    asked, reports = {}, []
    for walk in (dpm_invert, dpm_decode):
        seen = asked.setdefault(walk, [])

        def model(x, t, seen=seen):
            seen.append(t)
            return bumpy(x, t)

        walk(model, images(), BAR, steps=7, clip=clip, callback=lambda *report: reports.append(report))
    grid = dpm_timesteps(BAR, 7)
    assert asked == {dpm_invert: grid[:-1], dpm_decode: grid[:0:-1]}
    assert all(type(t) is int for t in asked[dpm_invert])
    assert reports == 2 * [(done, 7) for done in range(1, 8)]


def test_clamping_bounds_the_predicted_image():
    x0 = torch.full((1, 3, 4, 4), 3.0, dtype=torch.float64)

    def knows(x, t):
        return (x - BAR[t].sqrt() * x0) / (1 - BAR[t]).sqrt()

    start = BAR[-1].sqrt() * x0 + (1 - BAR[-1]).sqrt() * images()[:1]
    assert (dpm_decode(knows, start, BAR, steps=15) - x0).abs().max() < 0.2
    assert dpm_decode(knows, start, BAR, steps=10).max() < 1.2


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [15, 20, 60])
def test_decoding_is_that_of_diffusers_on_the_same_grid(steps):
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler(
        trained_betas=BETAS.numpy(), lower_order_final=False, final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(timesteps=dpm_timesteps(BAR, steps)[:0:-1])
    x = images()
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(bumpy(expected, int(t)), t, expected).prev_sample
    torch.testing.assert_close(dpm_decode(bumpy, x, BAR, steps=steps), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [15, 20])
def test_inversion_is_that_of_diffusers_on_the_grid_that_it_can_express(steps):
    from diffusers import DPMSolverMultistepInverseScheduler

    theirs = DPMSolverMultistepInverseScheduler(trained_betas=BETAS.numpy(), lower_order_final=False)
    theirs.set_timesteps(steps)
    x = images()
    expected = x
    for t in theirs.timesteps:
        expected = theirs.step(bumpy(expected, int(t)), t, expected).prev_sample
    grid = [*theirs.timesteps.tolist(), 999]
    assert grid != dpm_timesteps(BAR, steps)
    torch.testing.assert_close(multistep(bumpy, x, BAR, grid), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("walk", [dpm_invert, dpm_decode])
def test_walks_leave_their_input_alone_and_keep_its_type(walk):
    x = images(torch.float32)
    before = x.clone()
    result = walk(bumpy, x, BAR.float(), steps=5)
    assert (result.shape, result.dtype) == (x.shape, torch.float32)
    assert torch.equal(x, before)
    assert walk(bumpy, x[:0], BAR, steps=5).shape == (0, 3, 4, 4)


def test_solvers_by_name_have_their_own_clamping():
    x = images().clamp(-1, 1)
    for solver, invert_, decode_, clip in (
        ("dpm", dpm_invert, dpm_decode, False),
        ("ddim", ddim_invert, ddim_decode, True),
    ):
        for named, own in ((invert, invert_), (decode, decode_)):
            assert torch.equal(named(bumpy, x, BAR, steps=15, solver=solver), own(bumpy, x, BAR, steps=15, clip=clip))
            other = named(bumpy, x, BAR, steps=15, solver=solver, clip=not clip)
            assert torch.equal(other, own(bumpy, x, BAR, steps=15, clip=not clip))


def test_there_is_no_other_solver():
    for walk in (invert, decode):
        with pytest.raises(ConfigError, match="no solver 'euler'") as error:
            walk(bumpy, images(), BAR, steps=5, solver="euler")
        assert error.value.remedy == "Choose dpm or ddim."


def test_the_defaults_load_without_torch():
    import subprocess
    import sys

    code = "import sys; from diticli.sampling import DEFAULT_STEPS; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
