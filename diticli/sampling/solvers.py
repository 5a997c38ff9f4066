"""One signature for every solver.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch

from diticli.errors import ConfigError
from diticli.sampling.ddim import ddim_decode, ddim_invert
from diticli.sampling.defaults import DEFAULT_CLIP, DEFAULT_SOLVER, DEFAULT_STEPS, Solver
from diticli.sampling.dpm import dpm_decode, dpm_invert
from diticli.sampling.types import NoisePredictor, StepCallback

_INVERT: dict[str, Callable[..., torch.Tensor]] = {"dpm": dpm_invert, "ddim": ddim_invert}
_DECODE: dict[str, Callable[..., torch.Tensor]] = {"dpm": dpm_decode, "ddim": ddim_decode}


def invert(
    predict_noise: NoisePredictor,
    x0_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int = DEFAULT_STEPS,
    solver: Solver = DEFAULT_SOLVER,
    clip: bool | None = None,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Noise x_T [B, C, H, W] from which `decode` with the same solver gives the images back.

    Args:
        predict_noise: (x_t, t) -> noise estimate.
        x0_BCHW: images in [-1, 1].
        alphas_cumprod: [T].
        steps: number of steps.
        solver: "dpm" (`diticli.sampling.dpm`) or "ddim" (`diticli.sampling.ddim`).
        clip: clamp the predicted x_0 to [-1, 1] at every step; None takes the solver's own default.
        callback: called as (steps done, steps in all) after each step.

    Raises:
        ConfigError: for an unknown solver or an impossible number of steps.
    """
    clip = _clip(solver, clip)
    return _INVERT[solver](predict_noise, x0_BCHW, alphas_cumprod, steps=steps, clip=clip, callback=callback)


def decode(
    predict_noise: NoisePredictor,
    xT_BCHW: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    *,
    steps: int = DEFAULT_STEPS,
    solver: Solver = DEFAULT_SOLVER,
    clip: bool | None = None,
    callback: StepCallback | None = None,
) -> torch.Tensor:
    """Images [B, C, H, W] from noise x_T; arguments as `invert`."""
    clip = _clip(solver, clip)
    return _DECODE[solver](predict_noise, xT_BCHW, alphas_cumprod, steps=steps, clip=clip, callback=callback)


def _clip(solver: Solver, clip: bool | None) -> bool | None:
    if solver not in get_args(Solver):
        raise ConfigError(f"There is no solver {solver!r}.", remedy=f"Choose {' or '.join(get_args(Solver))}.")
    return DEFAULT_CLIP[solver] if clip is None else clip
