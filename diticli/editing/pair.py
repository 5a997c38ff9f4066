"""Counterfactuals: what image A would be if some of its chunks were image B's, and the other way round.

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2. Both images are encoded and inverted to the
noise x_T under their own features; then chosen slices of the features are mixed and the result is decoded.

result = edit_pair(pipeline, anna, ben, [pipeline.chunks.parse("10-20")], (0.0, 0.5, 1.0))
edit_strip(result).save("edit.png")      # diticli.editing.pictures

Legend of shape suffixes: N batch, D latent dim, R resolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.engine import (
    EditablePipeline,
    ImageSampler,
    Inputs,
    Latents,
    StepCounter,
    batch_of,
    decode_all,
    drawn_noise,
    invert_all,
)
from diticli.editing.mixing import alpha_text, check_chunks, mix_chunks, slerp
from diticli.editing.settings import EditSettings, Noise
from diticli.editing.sheet import Sheet
from diticli.errors import ConfigError
from diticli.pictures.tiles import Pixels, psnr, to_uint8
from diticli.progress import Reporter, SilentReporter

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = get_args(Side)

__all__ = ["SIDES", "Edit", "EditResult", "EditSettings", "Noise", "Side", "counterfactuals", "edit_pair"]


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
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            "diti:chunks": " | ".join(self.layout.describe(chunks) for chunks in self.chunk_sets),
            "diti:alphas": ",".join(alpha_text(alpha) for alpha in self.alphas),
            **self.settings.describe(self.layout.timesteps),
            "diti:psnr_db": ", ".join(f"{value:.2f}" for value in self.psnr),
        }

    def sheet(self) -> Sheet:
        """Rows of pictures: both directions for every chunk set."""
        from diticli.editing.pair_sheet import pair_sheet

        return pair_sheet(self)


def edit_pair(
    pipeline: EditablePipeline,
    image_a: Image.Image,
    image_b: Image.Image,
    chunk_sets: Sequence[tuple[int, ...]],
    alphas: Sequence[float],
    *,
    settings: EditSettings | None = None,
    names: tuple[str, str] = ("A", "B"),
    sampler: ImageSampler | None = None,
    reporter: Reporter | None = None,
) -> EditResult:
    """A with B's chunks and B with A's, for every chunk set and alpha, beside both reconstructions.

    Args:
        pipeline: a `DiTiPipeline`.
        image_a: PIL image, cropped and resized as in training.
        image_b: as `image_a`.
        chunk_sets: each set of chunks is exchanged by itself; see `diticli.editing.stages` for whole partitions.
        alphas: strengths; 0 is the image itself, 1 the other's chunks.
        settings: solver, steps, noise, batch size.
        names: what to call A and B.
        sampler: of `pipeline.sampler(**settings.sampler())`, for many edits; made here otherwise.
        reporter: told of every solver step.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without chunk sets or alphas, or for more steps than the model has timesteps.
    """
    settings, reporter = settings or EditSettings(), reporter or SilentReporter()
    edits = plan_edits(chunk_sets, alphas, pipeline.chunks)
    x0 = pipeline.preprocess([image_a, image_b])
    z, images = counterfactuals(
        pipeline, x0, to_decode(edits, settings), settings=settings, sampler=sampler, reporter=reporter
    )
    return assemble(
        edits,
        to_uint8(x0),
        to_uint8(images),
        z,
        names=names,
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
    sampler: ImageSampler | None = None,
    reporter: Reporter | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edits as float tensors, for comparisons finer than a grey level.

    Args:
        pipeline: a `DiTiPipeline`.
        x0: A and B, [2, 3, R, R] in [-1, 1].
        edits: what to decode beside both reconstructions.
        settings: solver, steps, noise, batch size.
        sampler: of `pipeline.sampler(**settings.sampler())`, for many edits; made here otherwise.
        reporter: told of every solver step.

    Returns:
        Features [2, D], and images [2 + len(edits), 3, R, R] on the CPU: both reconstructions, then the edits.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ConfigError: for more steps than the model has timesteps.
    """
    reporter = reporter or SilentReporter()
    sampler = sampler or pipeline.sampler(**settings.sampler())
    size = batch_of(pipeline, x0, settings)
    count = StepCounter(reporter, "Inverting", math.ceil(len(x0) / size))
    latents = invert_all(pipeline, sampler, x0, settings, count)
    count.close()
    jobs = len(edits) + len(SIDES)
    count = StepCounter(reporter, f"Decoding {jobs} images", math.ceil(jobs / size))
    inputs = pair_inputs(latents, (0, 1), edits, pipeline.chunks, settings)
    images = torch.stack(list(decode_all(sampler, inputs, settings, size, count)))
    count.close()
    return latents.z, images


def plan_edits(chunk_sets: Sequence[tuple[int, ...]], alphas: Sequence[float], layout: ChunkLayout) -> list[Edit]:
    """Both directions of every chunk set at every alpha, without repeats.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without chunk sets or alphas.
    """
    if not chunk_sets or not alphas:
        raise ConfigError(
            "An edit needs at least one set of chunks and one alpha.", remedy="E.g. [(0, 1)] and [0.5, 1.0]."
        )
    for chunks in chunk_sets:
        check_chunks(chunks, layout)
    edits = [Edit(side, tuple(chunks), alpha) for chunks in chunk_sets for side in SIDES for alpha in alphas]
    return list(dict.fromkeys(edits))


def to_decode(edits: Sequence[Edit], settings: EditSettings) -> list[Edit]:
    """Those that differ from a reconstruction: at alpha 0 features and (mostly) noise are the image's own."""
    return [edit for edit in edits if edit.alpha != 0 or settings.noise not in ("keep", "slerp")]


def pair_inputs(
    latents: Latents, rows: tuple[int, int], edits: Sequence[Edit], layout: ChunkLayout, settings: EditSettings
) -> Iterator[Inputs]:
    """What to decode for one pair: both reconstructions, then the edits.

    Args:
        latents: of all images.
        rows: where A and B are in them.
        edits: see `to_decode`.
        layout: of the model.
        settings: says which noise.
    """
    for row in rows:
        yield latents.x_T[row], latents.z[row]
    for edit in edits:
        own, other = rows if edit.side == "a" else rows[::-1]
        mine, theirs = slice(own, own + 1), slice(other, other + 1)
        z = mix_chunks(latents.z[mine], latents.z[theirs], layout, edit.chunks, edit.alpha)[0]
        drawn = drawn_noise(latents.x_T[own], settings)
        if drawn is not None:
            yield drawn, z
        elif settings.noise == "slerp":
            yield slerp(latents.x_T[mine], latents.x_T[theirs], edit.alpha)[0], z
        else:
            yield latents.x_T[other if settings.noise == "swap" else own], z


def assemble(
    edits: Sequence[Edit],
    originals: Pixels,
    decoded: Pixels,
    z: torch.Tensor,
    *,
    names: tuple[str, str],
    layout: ChunkLayout,
    model_hash: str,
    settings: EditSettings,
) -> EditResult:
    """The result of one pair from what `pair_inputs` was decoded to, uint8 [2 + edits, R, R, 3]."""
    reconstructions = decoded[:2]
    pictures = dict(zip(to_decode(edits, settings), decoded[2:], strict=True))
    return EditResult(
        names=names,
        originals=originals,
        reconstructions=reconstructions,
        edits={edit: pictures.get(edit, reconstructions[SIDES.index(edit.side)]) for edit in edits},
        z=z.float().cpu().numpy(),
        psnr=(psnr(reconstructions[0], originals[0]), psnr(reconstructions[1], originals[1])),
        layout=layout,
        model_hash=model_hash,
        settings=settings,
    )
