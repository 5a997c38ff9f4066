"""Counterfactuals: what image A would be if some of its chunks were image B's, and the other way round.

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2. Both images are encoded and inverted to the
noise x_T under their own features; then chosen slices of the features are mixed and the result is decoded.

Legend of shape suffixes: N batch, D latent dim, R resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.analysis.edit_settings import EditSettings, Noise
from diticli.analysis.mixing import alpha_text, check_chunks, mix_chunks, slerp
from diticli.chunks import ChunkLayout
from diticli.errors import ConfigError
from diticli.pictures.grids import Pixels, to_uint8
from diticli.progress import Reporter, SilentReporter

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = get_args(Side)

__all__ = ["SIDES", "Edit", "EditResult", "EditSettings", "Noise", "Side", "counterfactuals", "edit_pair", "psnr"]


class EditablePipeline(Protocol):
    """What editing needs of a `DiTiPipeline`."""

    chunks: ChunkLayout

    @property
    def model_hash(self) -> str:
        """Fingerprint of the weights."""

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """PIL images -> [N, 3, R, R] in [-1, 1]."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, R, R] -> features [N, D]."""

    def invert(
        self,
        images: torch.Tensor,
        z: torch.Tensor,
        steps: int = ...,
        clip: bool = ...,
        callback: StepCallback | None = ...,
        shift_form: str | None = ...,
    ) -> torch.Tensor:
        """Images and their features -> x_T [N, 3, R, R]."""

    def decode(
        self,
        x_T: torch.Tensor,
        z: torch.Tensor,
        steps: int = ...,
        clip: bool = ...,
        callback: StepCallback | None = ...,
        shift_form: str | None = ...,
    ) -> torch.Tensor:
        """x_T and features -> images [N, 3, R, R] in [-1, 1]."""


StepCallback = Callable[[int, int], None]


class Edit(NamedTuple):
    """One counterfactual: image `side` with `chunks` moved by `alpha` towards the other image."""

    side: Side
    chunks: tuple[int, ...]
    alpha: float


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """Two images, their reconstructions, and their counterfactuals.

    Attributes:
        names: what to call A and B.
        originals: uint8 [2, R, R, 3], A then B, as the model saw them.
        reconstructions: uint8 [2, R, R, 3], decoded without a change.
        edits: the counterfactuals, uint8 [R, R, 3] each.
        z: float32 [2, D] features.
        psnr: of the reconstructions against the originals, in dB; infinite when equal.
        layout: chunks of the model.
        model_hash: fingerprint of the model.
        settings: how they were made.
    """

    names: tuple[str, str]
    originals: Pixels
    reconstructions: Pixels
    edits: Mapping[Edit, Pixels]
    z: npt.NDArray[np.float32]
    psnr: tuple[float, float]
    layout: ChunkLayout
    model_hash: str
    settings: EditSettings

    @property
    def chunk_sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets of chunks that were exchanged, in the order asked for."""
        return tuple(dict.fromkeys(edit.chunks for edit in self.edits))

    @property
    def alphas(self) -> tuple[float, ...]:
        """The strengths, in the order asked for."""
        return tuple(dict.fromkeys(edit.alpha for edit in self.edits))

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        settings = self.settings
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            "diti:chunks": " | ".join(self.layout.describe(chunks) for chunks in self.chunk_sets),
            "diti:alphas": ",".join(alpha_text(alpha) for alpha in self.alphas),
            "diti:noise": settings.noise + (f" (seed {settings.seed})" if settings.noise == "random" else ""),
            "diti:steps": f"invert {settings.invert_steps}, decode {settings.decode_steps}",
            "diti:sampler": "official" if settings.official else "own",
            "diti:psnr_db": ", ".join(f"{value:.2f}" for value in self.psnr),
        }


def psnr(image: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio of uint8 images in dB; infinite when they are equal."""
    mse = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return 10 * math.log10(255**2 / mse) if mse else math.inf


def edit_pair(
    pipeline: EditablePipeline,
    image_a: Image.Image,
    image_b: Image.Image,
    chunk_sets: Sequence[tuple[int, ...]],
    alphas: Sequence[float],
    *,
    settings: EditSettings | None = None,
    names: tuple[str, str] = ("A", "B"),
    reporter: Reporter | None = None,
) -> EditResult:
    """A with B's chunks and B with A's, for every chunk set and alpha, beside both reconstructions.

    Args:
        pipeline: a `DiTiPipeline`.
        image_a: PIL image, cropped and resized as in training.
        image_b: as `image_a`.
        chunk_sets: each set of chunks is exchanged by itself.
        alphas: strengths; 0 is the image itself, 1 the other's chunks.
        settings: steps, noise, batch size.
        names: what to call A and B.
        reporter: told of every DDIM step.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without chunk sets or alphas, or for more steps than the model has time-steps.
    """
    settings, reporter = settings or EditSettings(), reporter or SilentReporter()
    if not chunk_sets or not alphas:
        raise ConfigError("An edit needs at least one set of chunks and one alpha.")
    for chunks in chunk_sets:
        check_chunks(chunks, pipeline.chunks)
    edits = [Edit(side, tuple(chunks), alpha) for chunks in chunk_sets for side in SIDES for alpha in alphas]
    edits = list(dict.fromkeys(edits))
    changed = [edit for edit in edits if not _changes_nothing(edit, settings)]
    x0 = pipeline.preprocess([image_a, image_b])
    z, images = counterfactuals(pipeline, x0, changed, settings=settings, reporter=reporter)
    decoded = to_uint8(images)
    originals, reconstructions = to_uint8(x0), decoded[:2]
    pictures = dict(zip(changed, decoded[2:], strict=True))
    return EditResult(
        names=names,
        originals=originals,
        reconstructions=reconstructions,
        edits={edit: pictures.get(edit, reconstructions[SIDES.index(edit.side)]) for edit in edits},
        z=z.float().cpu().numpy(),
        psnr=(psnr(reconstructions[0], originals[0]), psnr(reconstructions[1], originals[1])),
        layout=pipeline.chunks,
        model_hash=pipeline.model_hash,
        settings=settings,
    )


def counterfactuals(
    pipeline: EditablePipeline,
    x0: torch.Tensor,
    edits: Sequence[Edit],
    *,
    settings: EditSettings,
    reporter: Reporter | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edits as float tensors, for comparisons finer than a grey level.

    Args:
        pipeline: a `DiTiPipeline`.
        x0: A and B, [2, 3, R, R] in [-1, 1].
        edits: what to decode beside both reconstructions.
        settings: steps, noise, batch size.
        reporter: told of every DDIM step.

    Returns:
        Features [2, D], and images [2 + len(edits), 3, R, R] on the CPU: both reconstructions, then the edits.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ConfigError: for more steps than the model has time-steps.
    """
    reporter = reporter or SilentReporter()
    with torch.inference_mode():
        z = pipeline.encode(x0)
        count = _Counter(reporter, "Inverting", 1)
        x_T = pipeline.invert(x0, z, steps=settings.invert_steps, callback=count, **settings.sampler())
        count.close()
        return z, _decode(pipeline, z, x_T, edits, settings, reporter)


def _changes_nothing(edit: Edit, settings: EditSettings) -> bool:
    """At alpha 0 features and noise are the image's own: that is the reconstruction, decoded already."""
    return edit.alpha == 0 and settings.noise in ("keep", "slerp")


def _decode(
    pipeline: EditablePipeline,
    z: torch.Tensor,
    x_T: torch.Tensor,
    edits: Sequence[Edit],
    settings: EditSettings,
    reporter: Reporter,
) -> torch.Tensor:
    """Images [2 + len(edits), 3, R, R]: reconstructions, then edits; in as few batches as can be."""
    jobs: list[Edit | Side] = [*SIDES, *edits]
    batches = [jobs[i : i + settings.batch_size] for i in range(0, len(jobs), settings.batch_size)]
    count = _Counter(reporter, f"Decoding {len(jobs)} images", len(batches))
    images = []
    for batch in batches:
        pairs = [_inputs(job, z, x_T, pipeline.chunks, settings) for job in batch]
        noise, features = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        decoded = pipeline.decode(noise, features, steps=settings.decode_steps, callback=count, **settings.sampler())
        images.append(decoded.float().cpu())
    count.close()
    return torch.cat(images)


def _inputs(
    job: Edit | Side, z: torch.Tensor, x_T: torch.Tensor, layout: ChunkLayout, settings: EditSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_T [1, 3, R, R] and features [1, D] of one picture."""
    own = SIDES.index(job.side if isinstance(job, Edit) else job)
    mine, other = slice(own, own + 1), slice(1 - own, 2 - own)
    if not isinstance(job, Edit):
        return x_T[mine], z[mine]
    features = mix_chunks(z[mine], z[other], layout, job.chunks, job.alpha)
    if settings.noise == "slerp":
        return slerp(x_T[mine], x_T[other], job.alpha), features
    if settings.noise == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        draw = torch.randn(x_T[mine].shape, generator=generator)
        return draw.to(x_T), features
    return x_T[other if settings.noise == "swap" else mine], features


class _Counter:
    """A step callback that shows several runs of the sampler as one task."""

    def __init__(self, reporter: Reporter, title: str, runs: int) -> None:
        self._reporter, self._title, self._runs = reporter, title, runs
        self._started = False

    def __call__(self, step: int, total: int) -> None:
        if not self._started:
            self._reporter.start(self._title, total * self._runs, "steps")
            self._started = True
        self._reporter.advance(1)

    def close(self) -> None:
        if self._started:
            self._reporter.finish()
