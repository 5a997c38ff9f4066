"""DDIM inversion and decoding as free functions on a noise predictor.

Source: DDIM (Song et al., 2021, arXiv 2010.02502), eq. 12 with eta = 0; the step sequence and the clamping
option are those of the official DiTi code, so that its pictures can be reproduced.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from diticli.errors import ConfigError
from diticli.sampling.types import NoisePredictor, StepCallback


def ddim_timesteps(timesteps: int, steps: int) -> list[int]:
    """The rising sequence 0, s, 2s, ... below T with s = T // steps: more than `steps` where that does not divide T
    (`diticli.sampling.defaults.steps_run`).

    Raises:
        ConfigError: when `steps` lies outside 1..T.
    """
    if not 1 <= steps <= timesteps:
        raise ConfigError(f"Cannot take {steps} DDIM steps.", remedy=f"Choose between 1 and {timesteps}.")
    return list(range(0, timesteps, timesteps // steps))


def ddim_invert(
    predict_noise: NoisePredictor,
    x0_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int,
    clip: bool = True,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Deterministic noise x_T [B, C, H, W] that decodes back to the images x_0 in [-1, 1].

    Args:
        predict_noise: (x_t, t) -> noise estimate.
        x0_BCHW: images.
        alphas_cumprod: [T].
        steps: number of steps, see `ddim_timesteps`.
        clip: clamp the predicted x_0 to [-1, 1] at every step. Inversion and decoding must agree: clamping only
            one of them costs several dB (`benchmarks/reconstruction.py`).
        callback: called as (steps done, steps in all) after each step.
    """
    sequence = ddim_timesteps(len(alphas_cumprod), steps)
    # The last step goes to alpha-bar = 0: pure noise.
    path = [(t, alphas_cumprod[after]) for t, after in pairwise(sequence)]
    path.append((sequence[-1], alphas_cumprod.new_zeros(())))
    return _walk(predict_noise, x0_BCHW, alphas_cumprod, path, clip, callback)


def ddim_decode(
    predict_noise: NoisePredictor,
    xT_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int,
    clip: bool = True,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T; arguments as `ddim_invert`."""
    sequence = ddim_timesteps(len(alphas_cumprod), steps)
    path = [(t, alphas_cumprod[before]) for before, t in pairwise(sequence)]
    path.insert(0, (sequence[0], alphas_cumprod.new_ones(())))
    return _walk(predict_noise, xT_BCHW, alphas_cumprod, path[::-1], clip, callback)


def _walk(
    predict_noise: NoisePredictor,
    x: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    path: Sequence[tuple[int, torch.Tensor]],
    clip: bool,
    callback: StepCallback | None,
) -> torch.Tensor:
    for done, (t, bar_next) in enumerate(path, start=1):
        bar = alphas_cumprod[t]
        noise = predict_noise(x, t)
        x0 = (1 / bar).sqrt() * x - (1 / bar - 1).sqrt() * noise
        if clip:
            x0 = x0.clamp(-1, 1)
            noise = ((1 / bar).sqrt() * x - x0) / (1 / bar - 1).sqrt()
        x = bar_next.sqrt() * x0 + (1 - bar_next).sqrt() * noise
        if callback is not None:
            callback(done, len(path))
    return x
