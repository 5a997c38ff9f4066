"""What a base loses by timestep: the error of the image that it predicts from a noisy one.

At small t nearly everything can still be seen in x_t, at large t nothing; what has become unpredictable in between is
what the features are to bring back. Source: DiTi (arXiv 2401.11430), section 4.1 and its figure of the reconstruction
gap; PDAE (arXiv 2212.12990), section 3.1.

Legend of shape suffixes: N images, C channels, R resolution, G timesteps of the grid, B batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from diticli.errors import ConfigError, DataError, TrainingDivergedError
from diticli.models.frozen import FrozenBase
from diticli.models.noise_prediction import run_base
from diticli.models.pixels import normalise
from diticli.models.unet import UNet
from diticli.progress import Reporter, SilentReporter
from diticli.schedule import NoiseSchedule
from diticli.types import DoubleArray

GRID = 64


@dataclass(frozen=True, kw_only=True)
class GapCurve:
    """Error of the predicted image by timestep.

    The prediction x0hat = (x_t - sqrt(1 - alpha-bar_t) estimate) / sqrt(alpha-bar_t) (DDIM, arXiv 2010.02502, eq. 9)
    magnifies an error of the noise estimate by (1 - alpha-bar_t) / alpha-bar_t. At the last timesteps that is
    thousands, and `error` tells how good the network is rather than what the noise has hidden; `clamped`, with x0hat
    held within [-1, 1] as pixels are, stays finite there.

    Attributes:
        timesteps: the grid, rising, each in 0..T-1.
        error: mean over images and elements of (x0 - x0hat)^2, pixels in [-1, 1], one value a timestep.
        stderr: its standard error over images; NaN for a single image.
        clamped: as `error`, x0hat clamped to [-1, 1].
        clamped_stderr: likewise.
        images: N.
        total_timesteps: T.
        mean_image: error of the mean image, the guess without any x_t: what is lost when all is; None when unknown.
    """

    timesteps: tuple[int, ...]
    error: tuple[float, ...]
    stderr: tuple[float, ...]
    clamped: tuple[float, ...]
    clamped_stderr: tuple[float, ...]
    images: int
    total_timesteps: int
    mean_image: float | None = None

    @classmethod
    def from_errors(
        cls,
        errors_2GN: DoubleArray,
        timesteps: tuple[int, ...],
        total_timesteps: int,
        mean_image: float | None = None,
    ) -> Self:
        """The curve of each image's error, as predicted and clamped.

        Raises:
            TrainingDivergedError: for NaN or infinity among them.
        """
        if not np.isfinite(errors_2GN).all():
            raise TrainingDivergedError("The model predicts NaN or infinity.", remedy="Train it again, more slowly.")
        (error, stderr), (clamped, clamped_stderr) = (_mean_and_error(part) for part in errors_2GN)
        return cls(
            timesteps=timesteps,
            error=error,
            stderr=stderr,
            clamped=clamped,
            clamped_stderr=clamped_stderr,
            images=errors_2GN.shape[-1],
            total_timesteps=total_timesteps,
            mean_image=mean_image,
        )

    def lost_between(self, t0: float, t1: float, *, clamped: bool = True) -> float:
        """What is lost in the timesteps [t0, t1): the rise of the error, made monotone, over them; at least 0.

        Nothing is lost before the first timestep, so that the ranges of a partition add up to the whole, which is
        `lost_between(0, T)`. Between the points of the grid the curve is a straight line, beyond the last one flat. No
        more is lost than the mean image would miss: at the last timesteps a network's own imprecision may miss more.

        Args:
            t0: first timestep, 0 <= t0 <= t1.
            t1: end, at most T.
            clamped: of which error; unclamped, the last timesteps outweigh all others, see the class.

        Raises:
            ConfigError: for a range outside [0, T], or one that runs backwards.
        """
        if not 0 <= t0 <= t1 <= self.total_timesteps:
            raise ConfigError(
                f"The timesteps [{t0:g}, {t1:g}) are no range within 0..{self.total_timesteps}.",
                remedy="Give the first timestep and the end, as in a chunk layout.",
            )
        # A boundary b has the timesteps below b behind it: the error at t belongs to the boundary t + 1.
        boundaries = np.array([0, *(t + 1 for t in self.timesteps)], dtype=np.float64)
        most = math.inf if self.mean_image is None else self.mean_image
        heights = np.minimum([0.0, *self.monotone(clamped=clamped)], most)
        low, high = np.interp([t0, t1], boundaries, heights)
        return max(0.0, float(high - low))

    def monotone(self, *, clamped: bool = True) -> DoubleArray:
        """The rising curve nearest to the error in least squares (isotonic regression), [G]."""
        from sklearn.isotonic import isotonic_regression

        return np.asarray(isotonic_regression(np.array(self.clamped if clamped else self.error)), dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; None for an unknown standard error."""
        known = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        for name in ("stderr", "clamped_stderr"):
            known[name] = [None if math.isnan(value) else value for value in known[name]]
        return known


def measure_gap(
    base: UNet | FrozenBase,
    schedule: NoiseSchedule,
    images_NCHW: torch.Tensor,
    *,
    timesteps: Sequence[int] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    reporter: Reporter | None = None,
) -> GapCurve:
    """Error of the image that the base predicts from a noisy one, by timestep.

    Every image meets the same noise at all timesteps, so that differences between them are the noise level's. The cost
    is one forward of the base per image and timestep.

    Args:
        base: the base or its inference copy; left in the mode it is found in.
        schedule: its noise schedule, on any device.
        images_NCHW: uint8 [N, 3, R, R], N at least 1.
        timesteps: the grid, in 0..T-1; default: the centres of 64 equal bins.
        seed: of the noise.
        batch_size: images at a time.
        reporter: receiver of progress.

    Raises:
        DataError: for anything but uint8 images, or none.
        ConfigError: for a timestep outside 0..T-1.
        TrainingDivergedError: when the base says NaN or infinity.
    """
    reporter = reporter or SilentReporter()
    check_images(images_NCHW)
    grid = checked_timesteps(timesteps, schedule.timesteps)
    reporter.start("Measuring what the base loses", len(images_NCHW) * len(grid), unit="images")
    with evaluating(base):
        batches = [
            _errors(base, schedule, grid, x0, noise, reporter)
            for x0, noise in noisy_batches(images_NCHW, seed, batch_size, device_of(base))
        ]
    reporter.finish()
    errors_2GN = np.concatenate(batches, axis=2)
    return GapCurve.from_errors(errors_2GN, grid, schedule.timesteps, _mean_image_error(images_NCHW))


def checked_timesteps(timesteps: Sequence[int] | None, total: int) -> tuple[int, ...]:
    """The grid in rising order, without repeats; None: the centres of 64 equal bins (all timesteps where fewer).

    Raises:
        ConfigError: for a timestep outside 0..total-1, or none.
    """
    if timesteps is None:
        bins = min(GRID, total)
        return tuple(int((index + 0.5) * total / bins) for index in range(bins))
    if not timesteps or min(timesteps) < 0 or max(timesteps) >= total:
        raise ConfigError(
            f"The timesteps {list(timesteps)} are not all within 0..{total - 1}.", remedy="Name at least one of them."
        )
    return tuple(sorted(set(timesteps)))


def noisy_batches(
    images_NCHW: torch.Tensor, seed: int, batch_size: int, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images in [-1, 1] and of the noise that they meet, on `device`; the same whatever the batch size."""
    generator = torch.Generator().manual_seed(seed)
    for part in images_NCHW.split(batch_size):
        noise = torch.stack([torch.randn(part.shape[1:], generator=generator) for _ in part])
        yield normalise(part.to(device)), noise.to(device)


def _mean_image_error(images_NCHW: torch.Tensor) -> float | None:
    """Mean variance of a pixel over the images, in [-1, 1]; None for a single image."""
    if len(images_NCHW) < 2:
        return None
    return float(normalise(images_NCHW).double().var(dim=0).mean())


def _mean_and_error(values_GN: DoubleArray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean over images and its standard error, both [G]."""
    count = values_GN.shape[-1]
    spread = values_GN.std(axis=-1, ddof=1) if count > 1 else np.full(len(values_GN), np.nan)
    return tuple(values_GN.mean(axis=-1).tolist()), tuple((spread / count**0.5).tolist())


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule is left in the mode it was found in."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(network: nn.Module) -> torch.device:
    """Where the weights lie."""
    return next(network.parameters()).device


def _errors(
    base: UNet | FrozenBase,
    schedule: NoiseSchedule,
    grid: Sequence[int],
    x0_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    reporter: Reporter,
) -> DoubleArray:
    """[2, G, B]: error of each image as predicted, and clamped."""
    bar_T = schedule.alphas_cumprod.to(x0_BCHW.device)
    rows = []
    for t in grid:
        bar, t_1 = bar_T[t], torch.full((1,), t, device=x0_BCHW.device)
        x_t = bar.sqrt() * x0_BCHW + (1 - bar).sqrt() * noise_BCHW
        rows.append(both_errors(x0_BCHW, x_t, run_base(base, x_t, t_1)[0].float(), bar))
        reporter.advance(len(x0_BCHW))
    return torch.stack(rows, dim=1).double().cpu().numpy()


def both_errors(
    x0_BCHW: torch.Tensor, x_t_BCHW: torch.Tensor, estimate_BCHW: torch.Tensor, bar: torch.Tensor
) -> torch.Tensor:
    """[2, B]: mean squared error of the image that a noise estimate implies, as it is and clamped to [-1, 1].

    Args:
        x0_BCHW: images.
        x_t_BCHW: the same with noise.
        estimate_BCHW: of the noise.
        bar: alpha-bar_t, a scalar.
    """
    predicted = (x_t_BCHW - (1 - bar).sqrt() * estimate_BCHW) / bar.sqrt()
    return torch.stack([(x0_BCHW - x).square().mean(dim=(1, 2, 3)) for x in (predicted, predicted.clamp(-1, 1))])


def check_images(images_NCHW: torch.Tensor) -> None:
    """Raise DataError for anything but uint8 images [N, C, R, R], or none."""
    if images_NCHW.dtype != torch.uint8 or images_NCHW.ndim != 4 or not len(images_NCHW):
        raise DataError(
            f"The gap is measured on uint8 images [N, 3, R, R], got {images_NCHW.dtype} {list(images_NCHW.shape)}.",
            remedy="Give at least one image with values 0..255.",
        )
