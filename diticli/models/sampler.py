"""A model made ready for sampling: images -> noise and back.

sampler = model.sampler()              # copies the networks for inference, as they are now
x_T = sampler.invert(images, z)        # as often as wanted
images = sampler.decode(x_T, z)

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch

from diticli.chunks import ChunkLayout
from diticli.config import Precision
from diticli.errors import ConfigError
from diticli.models.device import resolve_precision
from diticli.models.frozen import FrozenPair
from diticli.models.noise_prediction import ShiftedNoise
from diticli.models.pixels import Images
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.sampling import DEFAULT_PRECISION, DEFAULT_SOLVER, DEFAULT_STEPS, Solver, StepCallback, decode, invert
from diticli.schedule import NoiseSchedule


class Sampler:
    """Inference copies of a model's networks, and how to sample with them.

    The copies are of the moment: what is done to the model's weights later does not reach them.

    Args:
        unet: the base; left as it is.
        decoder: the shift decoder; left as it is.
        schedule: of the noise.
        chunks: which dims each timestep sees.
        windows: the same, as the shift decoder takes it.
        shift_form: "score" or "posterior".
        as_tensor: images -> a tensor [B, 3, R, R] in [-1, 1], checked.
        solver: "dpm" or "ddim" (as the official code); see `diticli.sampling`.
        clip: clamp the predicted x_0 at every step; None takes the solver's own default.
        precision: in which the networks compute; None takes the solver's own default. Networks that were cast to less
            than float32 keep their own dtype.
        compile: the step with torch.compile, which takes as long as some thousand steps of a small model.

    Raises:
        DeviceError: for bf16 on a GPU without it.
    """

    def __init__(
        self,
        unet: UNet,
        decoder: ShiftDecoder,
        *,
        schedule: NoiseSchedule,
        chunks: ChunkLayout,
        windows: ChunkWindows,
        shift_form: str,
        as_tensor: Callable[[Images], torch.Tensor],
        solver: Solver = DEFAULT_SOLVER,
        clip: bool | None = None,
        precision: Precision | None = None,
        compile: bool = False,
    ) -> None:
        precision = precision or DEFAULT_PRECISION.get(solver, "fp32")
        bf16 = unet.dtype == torch.float32 and resolve_precision(precision, unet.device) == "bf16"
        self.dtype = torch.bfloat16 if bf16 else unet.dtype
        self.device = torch.device(unet.device)
        self._pair = FrozenPair(unet, decoder, self.dtype, compile=compile)
        self._schedule, self._chunks, self._windows, self._form = schedule, chunks, windows, shift_form
        self._as_tensor, self._solver, self._clip = as_tensor, solver, clip

    def noise(self, z_BD: torch.Tensor | npt.NDArray[Any]) -> ShiftedNoise:
        """The shifted noise estimate (x_t, t) -> [B, C, H, W], float32, under features z.

        Raises:
            ConfigError: for what is no [B, D] features.
        """
        z = as_features(z_BD, self._chunks.latent_dim).to(self.device)
        return ShiftedNoise(self._pair, self._schedule, self._chunks, self._windows, z, self._form)

    @torch.no_grad()
    def invert(
        self,
        images: Images,
        z: torch.Tensor | npt.NDArray[Any],
        steps: int = DEFAULT_STEPS,
        *,
        callback: StepCallback | None = None,
    ) -> torch.Tensor:
        """Noise x_T [B, C, H, W] from which `decode` under the same z gives the images back.

        Args:
            images: PIL images, paths of image files, or floats [B, 3, R, R] in [-1, 1].
            z: features [B, D], a tensor or an array.
            steps: number of steps.
            callback: called as (steps done, steps in all) after each step.

        Raises:
            ConfigError: for another shape or value range, an unknown solver, or an impossible number of steps.
        """
        x0 = self._as_tensor(images).to(self.device)
        bar = self._schedule.alphas_cumprod
        return invert(self.noise(z), x0, bar, steps=steps, solver=self._solver, clip=self._clip, callback=callback)

    @torch.no_grad()
    def decode(
        self,
        x_T: torch.Tensor | npt.NDArray[Any],
        z: torch.Tensor | npt.NDArray[Any],
        steps: int = DEFAULT_STEPS,
        *,
        callback: StepCallback | None = None,
    ) -> torch.Tensor:
        """Images [B, C, H, W], about [-1, 1] (within it where clamped), from noise x_T under features z.

        Arguments and errors as `invert`.
        """
        bar, x = self._schedule.alphas_cumprod, floats(x_T, "Noise").to(self.device)
        if x.ndim != 4:
            raise ConfigError(f"Noise is [B, 3, R, R], got {list(x.shape)}.", remedy="Pass what `invert` gave.")
        return decode(self.noise(z), x, bar, steps=steps, solver=self._solver, clip=self._clip, callback=callback)


def as_features(z: torch.Tensor | npt.NDArray[Any], latent_dim: int) -> torch.Tensor:
    """Features [B, D] as a tensor.

    Raises:
        ConfigError: for something else, or another width.
    """
    z_BD = z if isinstance(z, torch.Tensor) else floats(z, "Features")
    if z_BD.ndim != 2 or z_BD.shape[1] != latent_dim:
        raise ConfigError(
            f"Features of this model are [B, {latent_dim}], got {list(z_BD.shape)}.",
            remedy="Pass what `encode` gave, one row for each image.",
        )
    return z_BD


def floats(values: Any, what: str) -> torch.Tensor:
    """A tensor or an array as float32.

    Args:
        values: from outside.
        what: their name in an error.

    Raises:
        ConfigError: for what holds no numbers.
    """
    try:
        return torch.as_tensor(values).float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{what} should be numbers, got {type(values).__name__}.", remedy="Pass a tensor or a NumPy array."
        ) from error
