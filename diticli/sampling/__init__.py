"""Inversion and decoding as free functions on a noise predictor.

    x_T = invert(predict_noise, x_0, alphas_cumprod)  # images -> noise
    x_0 = decode(predict_noise, x_T, alphas_cumprod)  # noise -> images

`dpm` is the second-order multistep solver on a grid uniform in log-SNR, `ddim` the official code's sampler.
Names load on first use: the defaults alone import no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diticli.sampling.defaults import (
    DEFAULT_CLIP,
    DEFAULT_PRECISION,
    DEFAULT_SOLVER,
    DEFAULT_STEPS,
    Solver,
    steps_run,
)

if TYPE_CHECKING:
    from diticli.sampling.ddim import ddim_decode, ddim_invert, ddim_timesteps
    from diticli.sampling.dpm import dpm_decode, dpm_invert, dpm_timesteps, multistep
    from diticli.sampling.solvers import decode, invert
    from diticli.sampling.types import NoisePredictor, StepCallback

__all__ = [
    "DEFAULT_CLIP",
    "DEFAULT_PRECISION",
    "DEFAULT_SOLVER",
    "DEFAULT_STEPS",
    "NoisePredictor",
    "Solver",
    "StepCallback",
    "ddim_decode",
    "ddim_invert",
    "ddim_timesteps",
    "decode",
    "dpm_decode",
    "dpm_invert",
    "dpm_timesteps",
    "invert",
    "multistep",
    "steps_run",
]
_HOMES = {
    "ddim": ("ddim_decode", "ddim_invert", "ddim_timesteps"),
    "dpm": ("dpm_decode", "dpm_invert", "dpm_timesteps", "multistep"),
    "solvers": ("decode", "invert"),
    "types": ("NoisePredictor", "StepCallback"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
