"""A model made ready for sampling: images -> noise and back.

sampler = model.sampler()              # copies the networks for inference, as they are now
x_T = sampler.invert(images, z)        # as often as wanted
images = sampler.decode(x_T, z)

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from diticli.config import Precision
from diticli.models.device import resolve_precision
from diticli.models.frozen import FrozenPair
from diticli.models.noise_prediction import ShiftedNoise
from diticli.sampling import DEFAULT_PRECISION, DEFAULT_SOLVER, DEFAULT_STEPS, Solver, StepCallback, decode, invert

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel, Images


class Sampler:
    """Inference copies of a model's networks, and how to sample with them.

    The copies are of the moment: what is done to the model's weights later does not reach them.

    Args:
        model: a model with a base; left as it is.
        solver: "dpm" or "ddim" (as the official code); see `diticli.sampling`.
        clip: clamp the predicted x_0 at every step; None takes the solver's own default.
        shift_form: "score" or "posterior" in place of the model's own.
        precision: in which the networks compute; None takes the solver's own default. Networks that were cast to less
            than float32 keep their own dtype.
        compile: the step with torch.compile, which takes as long as some thousand steps of a small model.

    Raises:
        DeviceError: for bf16 on a GPU without it.
        ModelError: for an encoder alone.
    """

    def __init__(
        self,
        model: DiTiModel,
        *,
        solver: Solver = DEFAULT_SOLVER,
        clip: bool | None = None,
        shift_form: str | None = None,
        precision: Precision | None = None,
        compile: bool = False,
    ) -> None:
        unet, decoder = model.denoisers()
        precision = precision or DEFAULT_PRECISION.get(solver, "fp32")
        bf16 = unet.dtype == torch.float32 and resolve_precision(precision, unet.device) == "bf16"
        self.dtype = torch.bfloat16 if bf16 else unet.dtype
        self.device = torch.device(unet.device)
        self._pair = FrozenPair(unet, decoder, self.dtype, compile=compile)
        self._model, self._solver, self._clip = model, solver, clip
        self._form = shift_form or model.config.shift_form

    def noise(self, z_BD: torch.Tensor) -> ShiftedNoise:
        """The shifted noise estimate (x_t, t) -> [B, C, H, W], float32, under features z."""
        model = self._model
        return ShiftedNoise(self._pair, model.schedule, model.chunks, model.windows, z_BD.to(self.device), self._form)

    @torch.no_grad()
    def invert(
        self, images: Images, z: torch.Tensor, steps: int = DEFAULT_STEPS, *, callback: StepCallback | None = None
    ) -> torch.Tensor:
        """Noise x_T [B, C, H, W] from which `decode` under the same z gives the images back.

        Args:
            images: PIL images or a float tensor [B, 3, R, R] in [-1, 1].
            z: features [B, D].
            steps: number of steps.
            callback: called as (steps done, steps in all) after each step.

        Raises:
            ConfigError: for another shape or value range, an unknown solver, or an impossible number of steps.
        """
        x0 = self._model.as_tensor(images).to(self.device)
        bar = self._model.schedule.alphas_cumprod
        return invert(self.noise(z), x0, bar, steps=steps, solver=self._solver, clip=self._clip, callback=callback)

    @torch.no_grad()
    def decode(
        self, x_T: torch.Tensor, z: torch.Tensor, steps: int = DEFAULT_STEPS, *, callback: StepCallback | None = None
    ) -> torch.Tensor:
        """Images [B, C, H, W], about [-1, 1] (within it where clamped), from noise x_T under features z.

        Arguments and errors as `invert`.
        """
        bar, x = self._model.schedule.alphas_cumprod, x_T.to(self.device).float()
        return decode(self.noise(z), x, bar, steps=steps, solver=self._solver, clip=self._clip, callback=callback)
