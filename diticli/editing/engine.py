"""Inversion and decoding in full batches: what all kinds of edits share.

Legend of shape suffixes: N images, B batch, D latent dim, R resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.settings import EditSettings
from diticli.errors import DeviceError
from diticli.progress import Reporter

StepCallback = Callable[[int, int], None]
Inputs = tuple[torch.Tensor, torch.Tensor]
"""Noise x_T [3, R, R] and features [D] of one picture."""


class EditablePipeline(Protocol):
    """What editing needs of a `DiTiPipeline`."""

    chunks: ChunkLayout

    @property
    def model_hash(self) -> str:
        """Who the model is."""

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL images -> [N, 3, R, R] in [-1, 1]."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> features [N, D]."""

    @property
    def sampler(self) -> Callable[..., ImageSampler]:
        """(solver, precision, ...) -> the model made ready for sampling, as `EditSettings.sampler` says."""


class ImageSampler(Protocol):
    """What editing needs of a `diticli.models.sampler.Sampler`."""

    @property
    def invert(self) -> Callable[..., torch.Tensor]:
        """(images, z, steps, callback) -> x_T [N, 3, R, R]."""

    @property
    def decode(self) -> Callable[..., torch.Tensor]:
        """(x_T, z, steps, callback) -> images [N, 3, R, R] in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Images as the model holds them, on the CPU.

    Attributes:
        x0: [N, 3, R, R] in [-1, 1], what was inverted.
        z: [N, D] features.
        x_T: [N, 3, R, R] noise from which the features give the images back.
    """

    x0: torch.Tensor
    z: torch.Tensor
    x_T: torch.Tensor


def invert_all(
    pipeline: EditablePipeline,
    sampler: ImageSampler,
    x0: torch.Tensor,
    settings: EditSettings,
    on_step: StepCallback | None = None,
) -> Latents:
    """Encode and invert images [N, 3, R, R], batch by batch.

    Raises:
        ConfigError: for more steps than the model has timesteps.
        DeviceError: when not even one image fits into the device's memory.
    """

    def run(images: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        noise = sampler.invert(images, z, steps=settings.invert_steps, callback=on_step)
        return noise.float().cpu()

    size = batch_of(pipeline, x0, settings)
    with torch.inference_mode():
        z = torch.cat([pipeline.encode(part).float().cpu() for part in x0.split(size)])
        x_T = torch.cat([_fitting(run, *parts) for parts in zip(x0.split(size), z.split(size), strict=True)])
    return Latents(x0=x0, z=z, x_T=x_T)


def decode_all(
    sampler: ImageSampler,
    inputs: Iterable[Inputs],
    settings: EditSettings,
    batch_size: int,
    on_step: StepCallback | None = None,
) -> Iterator[torch.Tensor]:
    """One picture [3, R, R] on the CPU for each of `inputs`, in their order, decoded in batches.

    `inputs` is consumed a batch at a time, so that its tensors need not all exist at once.
    """

    def run(x_T: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        images = sampler.decode(x_T, z, steps=settings.decode_steps, callback=on_step)
        return images.float().cpu()

    waiting = iter(inputs)
    while batch := list(islice(waiting, batch_size)):
        with torch.inference_mode():
            noise, features = (torch.stack(parts) for parts in zip(*batch, strict=True))
            decoded = _fitting(run, noise, features)
        yield from decoded


def batch_of(pipeline: EditablePipeline, x0: torch.Tensor, settings: EditSettings) -> int:
    """Images to sample together."""
    device = getattr(pipeline, "device", x0.device)
    return settings.batch_at(x0.shape[-1], device.type)


def drawn_noise(like: torch.Tensor, settings: EditSettings) -> torch.Tensor | None:
    """x_T [3, R, R] that is nobody's own: the seeded draw, or the mean; None for the other modes."""
    if settings.noise == "mean":
        return torch.zeros_like(like)
    if settings.noise != "random":
        return None
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(like.shape, generator=generator).to(like)


def _fitting(run: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
    """`run` on the batch, or on its halves where the device's memory does not hold it."""
    try:
        return run(*parts)
    except torch.OutOfMemoryError as error:
        if len(parts[0]) == 1:
            raise DeviceError("The device's memory does not hold one image.", remedy="Use --device cpu.") from error
    torch.cuda.empty_cache()  # outside the handler: the traceback holds the failed batch's tensors
    half = len(parts[0]) // 2
    return torch.cat([_fitting(run, *(p[:half] for p in parts)), _fitting(run, *(p[half:] for p in parts))])


class StepCounter:
    """A step callback that shows several runs of the sampler as one task."""

    def __init__(self, reporter: Reporter, title: str, runs: int) -> None:
        self._reporter, self._title, self._runs = reporter, title, runs
        self._started = False

    def __call__(self, step: int, total: int) -> None:
        """`step` of `total` steps of one run are done."""
        if not self._started:
            self._reporter.start(self._title, total * self._runs, "steps")
            self._started = True
        self._reporter.advance(1)

    def close(self) -> None:
        """The last run is done."""
        if self._started:
            self._reporter.finish()
