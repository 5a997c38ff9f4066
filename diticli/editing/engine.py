"""Run edits: encode and invert images, plan jobs (noise, features, label) from that, and decode them in full batches.

`pair`, `attribute` and `reconstruct` plan jobs; `many` chains those of pairs.

Legend of shape suffixes: N images, B batch, D latent dim, R resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.results import Label, Reconstruction
from diticli.editing.settings import EditSettings, Noise
from diticli.models.device import resolve_precision
from diticli.models.largest_batch import on_halves
from diticli.pictures.tiles import Pixels, psnr, to_uint8
from diticli.progress import Reporter, SilentReporter
from diticli.sampling.defaults import DEFAULT_PRECISION
from diticli.sampling.types import StepCallback


class Job(NamedTuple):
    """One picture to decode, from noise x_T [3, R, R] and features z [D]; `label` says what it is."""

    label: Label
    x_T: torch.Tensor
    z: torch.Tensor


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
    """Images with their features z and inferred noise x_T, on the CPU.

    Attributes:
        x0: [N, 3, R, R] in [-1, 1], what was inverted.
        z: [N, D] features.
        x_T: [N, 3, R, R] noise from which the features give the images back.
    """

    x0: torch.Tensor
    z: torch.Tensor
    x_T: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The decoded pictures of all jobs.

    Attributes:
        originals: uint8 [N, R, R, 3], as the model saw them.
        z: float32 [N, D] features, on the CPU.
        pictures: uint8 [R, R, 3] each.
    """

    originals: Pixels
    z: torch.Tensor
    pictures: Mapping[Label, Pixels]

    @classmethod
    def from_tensors(cls, x0: torch.Tensor, z: torch.Tensor, decoded: Mapping[Label, torch.Tensor]) -> Outcome:
        """From images [N, 3, R, R] in [-1, 1], their features, and what was decoded, [3, R, R] each."""
        pictures = to_uint8(torch.stack(list(decoded.values())))
        return cls(originals=to_uint8(x0), z=z, pictures=dict(zip(decoded, pictures, strict=True)))

    @cached_property
    def psnr(self) -> dict[Noise, tuple[float, ...]]:
        """Of the reconstructions against the originals in dB, [N] for each kind of noise; infinite when equal."""
        return {noise: tuple(map(psnr, pictures, self.originals)) for noise, pictures in self.reconstructions.items()}

    @cached_property
    def reconstructions(self) -> dict[Noise, Pixels]:
        """uint8 [N, R, R, 3] for each kind of noise."""
        labels = [label for label in self.pictures if isinstance(label, Reconstruction)]
        kinds = dict.fromkeys(label.noise for label in labels)
        images = range(len(self.originals))
        return {noise: np.stack([self.pictures[Reconstruction(i, noise)] for i in images]) for noise in kinds}


def run_jobs(
    pipeline: EditablePipeline,
    x0: torch.Tensor,
    plan: Callable[[Latents], Iterable[Job]],
    count: int,
    settings: EditSettings,
    *,
    sampler: ImageSampler | None = None,
    reporter: Reporter | None = None,
    inverted: bool = True,
) -> tuple[torch.Tensor, dict[Label, torch.Tensor]]:
    """Encode and invert images, and decode the jobs that follow from that.

    Args:
        pipeline: a `DiTiPipeline`.
        x0: [N, 3, R, R] in [-1, 1].
        plan: latents -> jobs; it is asked for a batch at a time.
        count: how many jobs there will be.
        settings: solver, steps, batch size.
        sampler: of `pipeline.sampler(**settings.sampler_kwargs())`, for many edits; made here otherwise.
        reporter: receives every solver step.
        inverted: whether any job needs the images' own noise.

    Returns:
        Features [N, D], and the decoded images, [3, R, R] on the CPU each.

    Raises:
        ConfigError: for more steps than the model has timesteps.
        DeviceError: when not even one image fits into the device's memory.
    """
    reporter = reporter or SilentReporter()
    sampler = sampler or pipeline.sampler(**settings.sampler_kwargs())
    size = batch_of(pipeline, x0, settings)
    if inverted:
        steps = StepCounter(reporter, "Inverting", math.ceil(len(x0) / size))
        latents = invert_all(pipeline, sampler, x0, settings, steps)
        steps.close()
    else:
        latents = Latents(x0=x0, z=pipeline.encode(x0).float().cpu(), x_T=torch.zeros_like(x0))
    steps = StepCounter(reporter, f"Decoding {count} images", math.ceil(count / size))
    decoded = dict(decode_all(sampler, plan(latents), settings, size, steps))
    steps.close()
    return latents.z, decoded


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
        x_T = torch.cat([on_halves(run, *parts) for parts in zip(x0.split(size), z.split(size), strict=True)])
    return Latents(x0=x0, z=z, x_T=x_T)


def decode_all(
    sampler: ImageSampler,
    jobs: Iterable[Job],
    settings: EditSettings,
    batch_size: int,
    on_step: StepCallback | None = None,
) -> Iterator[tuple[Label, torch.Tensor]]:
    """Each job's label and image [3, R, R] on the CPU, in their order, decoded in batches.

    `jobs` is consumed a batch at a time, so that its tensors need not all exist at once.
    """

    def run(x_T: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        images = sampler.decode(x_T, z, steps=settings.decode_steps, callback=on_step)
        return images.float().cpu()

    waiting = iter(jobs)
    while batch := list(islice(waiting, batch_size)):
        with torch.inference_mode():
            noise, features = torch.stack([job.x_T for job in batch]), torch.stack([job.z for job in batch])
            decoded = on_halves(run, noise, features)
        yield from zip((job.label for job in batch), decoded, strict=True)


def model_name(pipeline: EditablePipeline) -> str:
    """What the model was loaded as; "" where it was not."""
    return str(getattr(pipeline, "model_id", ""))


def settled(pipeline: EditablePipeline, settings: EditSettings) -> EditSettings:
    """The settings with the precision that the networks compute in, as pictures and JSON say it."""
    unet = getattr(pipeline, "unet", None)
    if unet is None or unet.dtype != torch.float32:
        return replace(settings, precision="bf16") if getattr(unet, "dtype", None) == torch.bfloat16 else settings
    wanted = settings.precision or DEFAULT_PRECISION[settings.solver]
    return replace(settings, precision=resolve_precision(wanted, unet.device))


def batch_of(pipeline: EditablePipeline, x0: torch.Tensor, settings: EditSettings) -> int:
    """Images to sample together."""
    device = getattr(pipeline, "device", x0.device)
    return settings.default_batch_size(x0.shape[-1], device.type)


def drawn_noise(like: torch.Tensor, settings: EditSettings) -> torch.Tensor | None:
    """x_T [3, R, R] that is nobody's own: the seeded draw, or the mean; None for the other modes."""
    if settings.noise == "mean":
        return torch.zeros_like(like)
    if settings.noise != "random":
        return None
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randn(like.shape, generator=generator).to(like)


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
