"""Second-order multistep exponential integrator, for inversion and decoding on one grid.

Source: DPM-Solver++(2M), Lu et al., 2022 (arXiv 2211.01095), algorithm 2. The ordinary differential equation that DDIM
follows is linear in x but for the predicted image x_0; the linear part is solved exactly, and x_0 is continued as
a straight line in log-SNR from its last two values. The same formula runs up and down the noise levels.

With few steps that line overshoots. Then each step is predicted by first order, and done once more along the line
between its two predicted images when the second is known: the corrector UniC of UniPC, Zhao et al., 2023 (arXiv
2302.04867), at no further evaluation. It is the same up and down, so that inversion and decoding make the same errors.
The predicted image is then held in [-1, 1], unless `clip` says otherwise.

Own code, because diffusers can express the grid one way only: `DPMSolverMultistepScheduler` takes any timesteps
(and gives the same images, see the tests), `DPMSolverMultistepInverseScheduler` takes none but its own spacings,
among them none uniform in log-SNR.

Legend of shape suffixes: B batch, C channels, H height, W width, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from diticli.errors import ConfigError
from diticli.sampling.types import NoisePredictor, StepCallback
from diticli.schedule import half_log_snr

LONGEST_STRIDE = 0.65
"""Of half the log-SNR in a step that continues a line; at the usual 1,000 timesteps from 15 steps on. Eight faces came
back by a model of 32 px with 8.1, 34.4 and 42.6 dB in 5, 8 and 10 such steps, and with 39.6, 50.6 and about 55 dB in
corrected ones."""


def dpm_timesteps(alphas_cumprod: torch.Tensor, steps: int) -> list[int]:
    """The steps + 1 rising timesteps from 0 to T - 1 that lie closest to uniform in log-SNR.

    The networks know whole timesteps only. Near t = 0, where neighbours lie far apart in log-SNR, many steps would
    share one; there the grid takes every timestep.

    Raises:
        ConfigError: when `steps` lies outside 1..T - 1.
    """
    last = len(alphas_cumprod) - 1
    if not 1 <= steps <= last:
        raise ConfigError(f"Cannot take {steps} DPM-Solver steps.", remedy=f"Choose between 1 and {last}.")
    levels = half_log_snr(alphas_cumprod.double().cpu())
    wanted = torch.linspace(float(levels[0]), float(levels[-1]), steps + 1, dtype=torch.float64)
    grid: list[int] = []
    for i, nearest in enumerate((levels[None] - wanted[:, None]).abs().argmin(1).tolist()):
        first_free = grid[-1] + 1 if grid else 0
        grid.append(min(max(nearest, first_free), last - (steps - i)))
    return grid


def dpm_invert(
    predict_noise: NoisePredictor,
    x0_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int,
    clip: bool | None = None,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Deterministic noise x_T [B, C, H, W] that decodes back to the images x_0 in [-1, 1].

    Images stand for x at t = 0 and the result is x at t = T - 1: both ends are timesteps that the networks know,
    so that decoding retraces the same path.

    Args:
        predict_noise: (x_t, t) -> noise estimate.
        x0_BCHW: images.
        alphas_cumprod: [T].
        steps: number of steps, see `dpm_timesteps`.
        clip: clamp the predicted x_0 to [-1, 1] at every step; None does where steps are longer than `LONGEST_STRIDE`.
        callback: called as (steps done, steps in all) after each step.

    Raises:
        ConfigError: for an impossible number of steps.
    """
    grid = dpm_timesteps(alphas_cumprod, steps)
    return multistep(predict_noise, x0_BCHW, alphas_cumprod, grid, clip=clip, callback=callback)


def dpm_decode(
    predict_noise: NoisePredictor,
    xT_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int,
    clip: bool | None = None,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T; arguments as `dpm_invert`."""
    grid = dpm_timesteps(alphas_cumprod, steps)[::-1]
    return multistep(predict_noise, xT_BCHW, alphas_cumprod, grid, clip=clip, callback=callback)


def multistep(
    predict_noise: NoisePredictor,
    x: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    timesteps: Sequence[int],
    *,
    clip: bool | None = None,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Walk x from the first to the last of `timesteps`, rising or falling; the model is asked at all but the last.

    The first step has no predecessor and is of first order (that is DDIM's step); all are, and are corrected one later,
    where they are longer than `LONGEST_STRIDE` in the mean. See `dpm_invert`.
    """
    bar = alphas_cumprod.double().cpu()[list(timesteps)]
    level = half_log_snr(bar).tolist()
    signal, noise = bar.sqrt().tolist(), (1 - bar).sqrt().tolist()
    steps, before, start = len(timesteps) - 1, None, x
    few = abs(level[-1] - level[0]) > LONGEST_STRIDE * steps
    clip = few if clip is None else clip
    for i in range(steps):
        x0 = (x - noise[i] * predict_noise(x, timesteps[i])) / signal[i]
        if clip:
            x0 = x0.clamp(-1, 1)
        target, stride = x0, level[i + 1] - level[i]
        if before is not None and few:
            # The step that led here once more, with the mean of the line between its predictions in place of x_0: the
            # exact solution weighs its points by e^lambda.
            last = level[i] - level[i - 1]
            mean = torch.lerp(before, x0, -1 / math.expm1(-last) - 1 / last)
            x = noise[i] / noise[i - 1] * start - signal[i] * math.expm1(-last) * mean
        elif before is not None:
            target = torch.lerp(before, x0, 1 + stride / (2 * (level[i] - level[i - 1])))
        start = x
        x = noise[i + 1] / noise[i] * x - signal[i + 1] * math.expm1(-stride) * target
        before = x0
        if callback is not None:
            callback(i + 1, steps)
    return x
