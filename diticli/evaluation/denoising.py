"""The gap with and without features: the error of the predicted image by timestep, as in the paper's motivation.

Source: DiTi (arXiv 2401.11430), section 4.1; PDAE (arXiv 2212.12990), section 3.1. The base alone is
measured by `diticli.models.reconstruction_gap`.

Legend of shape suffixes: N images, B batch, C channels, H height, W width, D latent dim, G timesteps, M modulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diticli.errors import ModelError
from diticli.evaluation.kept import Arrays, KeptArrays, content
from diticli.models.frozen import FrozenPair
from diticli.models.reconstruction_gap import GapCurve, both_errors, check_images, checked_timesteps, noisy_batches
from diticli.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel
    from diticli.models.unet_forward import DownFeatures


class NoisyImages:
    """A batch at one timestep, seen by the base; what the features add is asked for afterwards.

    Args:
        denoiser: base and shift branch.
        x0_BCHW: images in [-1, 1].
        noise_BCHW: what is added to them.
        t: timestep.
    """

    def __init__(self, denoiser: Denoiser, x0_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, t: int) -> None:
        self._denoiser, self.t = denoiser, t
        self.bar = denoiser.bar_T[t]
        self.x_t = self.bar.sqrt() * x0_BCHW + (1 - self.bar).sqrt() * noise_BCHW
        self.base_BCHW, self._down = denoiser.base_forward(self.x_t, t)

    def estimate(self, z_BD: torch.Tensor) -> torch.Tensor:
        """The noise estimate under features, of which the timestep sees what it saw in training."""
        return self.base_BCHW + self._denoiser.shift(self._down, z_BD, self.t)


class Denoiser:
    """A pipeline's base and shift branch as they were trained: masked features, the coefficient c_t, float32.

    Raises:
        ModelError: for an encoder alone.
    """

    def __init__(self, pipeline: DiTiModel) -> None:
        if pipeline.unet is None or pipeline.shift_decoder is None:
            raise ModelError(
                "This model is an encoder alone: there is no denoising to measure.",
                remedy="Use a model trained without --ssl-only.",
            )
        self._pair = FrozenPair(pipeline.unet, pipeline.shift_decoder, torch.float32)
        self._windows, self.schedule = pipeline.windows, pipeline.schedule
        self.device = torch.device(pipeline.device)
        self.bar_T = self.schedule.alphas_cumprod.to(self.device)
        self._coefficient_T = self.schedule.shift_coef.to(self.device)

    @torch.no_grad()
    def base_forward(self, x_t_BCHW: torch.Tensor, t: int) -> tuple[torch.Tensor, DownFeatures]:
        """The base's noise estimate and down-path features."""
        noise, down = self._pair.base(x_t_BCHW, self._time(t))
        return noise.float(), down

    @torch.no_grad()
    def shift(self, down: DownFeatures, z_BD: torch.Tensor, t: int) -> torch.Tensor:
        """c_t G(x_t, t, m_t z), [B, C, H, W]."""
        z_mod_BM = self._pair.shift.project(z_BD.to(self.device), self._time(t), self._windows)
        return self._coefficient_T[t] * self._pair.shift(down, z_mod_BM).float()

    def _time(self, t: int) -> torch.Tensor:
        return torch.full((1,), t, device=self.device)


@dataclass(frozen=True, kw_only=True)
class ModelGap:
    """The gap of a model.

    Attributes:
        without_features: of its base alone.
        with_features: of base and features.
    """

    without_features: GapCurve
    with_features: GapCurve

    @property
    def filled(self) -> tuple[float, ...]:
        """Which part of the base's (clamped) error the features take away at each timestep; below 0 they harm."""
        pairs = zip(self.without_features.clamped, self.with_features.clamped, strict=True)
        return tuple(1 - after / before if before > 0 else 0.0 for before, after in pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        curves = {"without_features": self.without_features, "with_features": self.with_features}
        return {**{name: curve.to_dict() for name, curve in curves.items()}, "filled": list(self.filled)}


def measure_model_gap(
    pipeline: DiTiModel,
    images_NCHW: torch.Tensor,
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> ModelGap:
    """Error of the predicted image by timestep, with the images' own features and without.

    Features are masked as in training and enter by the coefficient c_t of training, whatever form the pipeline samples
    in. The cost is one forward of base and shift branch per image and timestep.

    Args:
        pipeline: the model.
        images_NCHW: uint8 [N, 3, R, R], N at least 1; not those that it was trained on.
        timesteps: the grid, in 0..T-1; default: the centres of 64 equal bins.
        seed: of the noise, which each image meets at all timesteps.
        batch_size: images at a time.
        reporter: receiver of progress.
        kept: where errors that were measured before are found.

    Raises:
        DataError: for anything but uint8 images, or none.
        ConfigError: for a timestep outside 0..T-1.
        ModelError: for an encoder alone.
        TrainingDivergedError: when the model says NaN or infinity.
    """
    reporter = reporter or SilentReporter()
    check_images(images_NCHW)
    denoiser, grid = Denoiser(pipeline), checked_timesteps(timesteps, pipeline.schedule.timesteps)

    def measure() -> Arrays:
        reporter.start("Measuring the gap", len(images_NCHW) * len(grid), unit="images")
        batches = []
        for x0, noise in noisy_batches(images_NCHW, seed, batch_size, denoiser.device):
            z = pipeline.encode(x0.cpu())
            errors = []
            for t in grid:
                step = NoisyImages(denoiser, x0, noise, t)
                both = [both_errors(x0, step.x_t, e, step.bar) for e in (step.base_BCHW, step.estimate(z))]
                errors.append(torch.stack(both).double().cpu().numpy())
                reporter.advance(len(x0))
            batches.append(np.stack(errors, axis=2))  # [with or without, as it is or clamped, G, B]
        reporter.finish()
        return {"errors": np.concatenate(batches, axis=3)}

    facts: list[Any] = [pipeline.model_hash, content(images_NCHW), list(map(int, grid)), seed, batch_size]
    parts = (kept or KeptArrays()).get("gap", facts, measure)["errors"]
    without, with_z = (GapCurve.from_errors(part, grid, pipeline.schedule.timesteps) for part in parts)
    return ModelGap(without_features=without, with_features=with_z)
