"""Attribute edits: images with more or less of an attribute that a probe has learned.

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5: each image is encoded and inverted under its own
features, these move along the attribute's direction (`diticli.probing.directions`), and are decoded.

directions = load_directions(Path("probe"))
result = edit_attribute(pipeline, [anna, ben], directions, ["Smiling"], (-0.5, 0.5))
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Literal, NamedTuple, Protocol

import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.engine import (
    EditablePipeline,
    Inputs,
    Latents,
    StepCounter,
    batch_of,
    decode_all,
    drawn_noise,
    invert_all,
)
from diticli.editing.mixing import alpha_text, check_chunks
from diticli.editing.settings import EditSettings
from diticli.editing.sheet import Sheet
from diticli.errors import ConfigError
from diticli.pictures.tiles import Pixels, psnr, to_uint8
from diticli.probing.directions import DEFAULT_ALONG, Along
from diticli.progress import Reporter, SilentReporter

Chunks = tuple[int, ...] | None
ALONE = ("keep", "random", "mean")
"""Noise modes that need no second image."""


class AttributeDirections(Protocol):
    """What attribute editing needs of `diticli.probing.directions.Directions`."""

    def move(
        self,
        z_BD: torch.Tensor,
        attribute: str,
        amount: float,
        *,
        dims: Literal["learned"] | None = ...,
        chunks: Sequence[int] | None = ...,
        layout: ChunkLayout | None = ...,
        along: Along = ...,
    ) -> torch.Tensor:
        """Features [B, D] moved by `amount` along `attribute`."""


class Move(NamedTuple):
    """One edit: image number `image` with `attribute` moved by `amount`, in `chunks` only unless that is None."""

    image: int
    attribute: str
    chunks: Chunks
    amount: float


_Shift = Callable[[Move, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class AttributeResult:
    """Images, their reconstructions, and their edits.

    Attributes:
        names: [N] what to call the images.
        originals: uint8 [N, R, R, 3], as the model saw them.
        reconstructions: uint8 [N, R, R, 3], decoded without a change.
        edits: uint8 [R, R, 3] each.
        psnr: [N] of the reconstructions, in dB.
        learned_dims: how many dims of a learned mask moved; None for all.
        along: which direction, see `Directions.move`.
        layout: chunks of the model.
        model_hash: fingerprint of the model.
        settings: how they were made.
    """

    names: tuple[str, ...]
    originals: Pixels
    reconstructions: Pixels
    edits: Mapping[Move, Pixels]
    psnr: tuple[float, ...]
    learned_dims: int | None
    along: Along
    layout: ChunkLayout
    model_hash: str
    settings: EditSettings

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes, in the order asked for."""
        return tuple(dict.fromkeys(move.attribute for move in self.edits))

    @property
    def chunk_sets(self) -> tuple[Chunks, ...]:
        """The sets of chunks that moved; None stands for all of them."""
        return tuple(dict.fromkeys(move.chunks for move in self.edits))

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts, in the order asked for."""
        return tuple(dict.fromkeys(move.amount for move in self.edits))

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        sets = (self.layout.describe(chunks) if chunks else "all chunks" for chunks in self.chunk_sets)
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            "diti:attributes": " | ".join(self.attributes),
            "diti:amounts": ",".join(alpha_text(amount) for amount in self.amounts),
            "diti:chunks": " | ".join(sets),
            "diti:along": self.along,
            "diti:dims": "all" if self.learned_dims is None else f"{self.learned_dims} learned",
            **self.settings.describe(self.layout.timesteps),
            "diti:psnr_db": ", ".join(f"{value:.2f}" for value in self.psnr),
        }

    def sheet(self) -> Sheet:
        """Rows of pictures: one for every image, attribute and chunk set."""
        from diticli.editing.attribute_sheet import attribute_sheet

        return attribute_sheet(self)


def edit_attribute(
    pipeline: EditablePipeline,
    images: Sequence[Image.Image],
    directions: AttributeDirections,
    attributes: Sequence[str],
    amounts: Sequence[float],
    *,
    chunk_sets: Sequence[Chunks] = (None,),
    learned_dims: int | None = None,
    along: Along = DEFAULT_ALONG,
    settings: EditSettings | None = None,
    names: Sequence[str] | None = None,
    reporter: Reporter | None = None,
) -> AttributeResult:
    """Every image with every attribute moved by every amount.

    Args:
        pipeline: a `DiTiPipeline`.
        images: PIL images, cropped and resized as in training.
        directions: of a probe on features of this model.
        attributes: names that the directions know.
        amounts: how far; 0 is the image itself, negative means less of the attribute.
        chunk_sets: move the dims of these chunks only; None stands for all.
        learned_dims: move only the dims of the mask that was learned with so many (`diti probe --mask-dims`).
        along: "weight" (the classifier's, as published) or "pattern" (how features change where the attribute does).
        settings: solver, steps, noise ("keep", "random" or "mean"), batch size.
        names: what to call the images.
        reporter: told of every solver step.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without images, attributes or amounts, for noise that needs a second image, or amounts out of
            range.
        LabelError: for an attribute or a mask that the directions lack.
    """
    settings, reporter = settings or EditSettings(), reporter or SilentReporter()
    _check(images, attributes, amounts, chunk_sets, pipeline.chunks, settings)
    wanted = product(range(len(images)), attributes, chunk_sets, amounts)
    moves = list(dict.fromkeys(Move(*parts) for parts in wanted))
    changed = [move for move in moves if move.amount != 0 or settings.noise != "keep"]
    shift = partial(_moved, directions, layout=pipeline.chunks, learned=learned_dims is not None, along=along)
    for move in moves:  # unknown names and amounts show before minutes of inversion
        shift(move, torch.zeros(1, pipeline.chunks.latent_dim))
    x0 = pipeline.preprocess(images)
    decoded = _sample(pipeline, x0, changed, shift, settings, reporter)
    originals, pictures = to_uint8(x0), to_uint8(decoded)
    reconstructions = pictures[: len(images)]
    found = dict(zip(changed, pictures[len(images) :], strict=True))
    return AttributeResult(
        names=tuple(names or (f"image {i}" for i in range(len(images)))),
        originals=originals,
        reconstructions=reconstructions,
        edits={key: found.get(key, reconstructions[key.image]) for key in moves},
        psnr=tuple(psnr(*pair) for pair in zip(reconstructions, originals, strict=True)),
        learned_dims=learned_dims,
        along=along,
        layout=pipeline.chunks,
        model_hash=pipeline.model_hash,
        settings=settings,
    )


def _check(
    images: Sequence[Image.Image],
    attributes: Sequence[str],
    amounts: Sequence[float],
    chunk_sets: Sequence[Chunks],
    layout: ChunkLayout,
    settings: EditSettings,
) -> None:
    if not images or not attributes or not amounts or not chunk_sets:
        raise ConfigError(
            "An edit needs at least one image, one attribute and one amount.", remedy='E.g. ["Smiling"] and [0.5].'
        )
    if settings.noise not in ALONE:
        raise ConfigError(
            f"The noise {settings.noise!r} needs a second image.", remedy=f"Use {', '.join(ALONE)} without one."
        )
    for chunks in chunk_sets:
        if chunks is not None:
            check_chunks(chunks, layout)


def _moved(
    directions: AttributeDirections,
    move: Move,
    z_1D: torch.Tensor,
    *,
    layout: ChunkLayout,
    learned: bool,
    along: Along,
) -> torch.Tensor:
    dims: Literal["learned"] | None = "learned" if learned else None
    where: dict[str, Any] = {"dims": dims, "chunks": move.chunks, "layout": layout, "along": along}
    return directions.move(z_1D, move.attribute, move.amount, **where)[0]


def _sample(
    pipeline: EditablePipeline,
    x0: torch.Tensor,
    moves: Sequence[Move],
    shift: _Shift,
    settings: EditSettings,
    reporter: Reporter,
) -> torch.Tensor:
    """Reconstructions [N, 3, R, R], then the moved images."""
    sampler = pipeline.sampler(**settings.sampler())
    size = batch_of(pipeline, x0, settings)
    count = StepCounter(reporter, "Inverting", math.ceil(len(x0) / size))
    latents = invert_all(pipeline, sampler, x0, settings, count)
    count.close()
    jobs = len(x0) + len(moves)
    count = StepCounter(reporter, f"Decoding {jobs} images", math.ceil(jobs / size))
    decoded = torch.stack(list(decode_all(sampler, _inputs(latents, moves, shift, settings), settings, size, count)))
    count.close()
    return decoded


def _inputs(latents: Latents, moves: Sequence[Move], shift: _Shift, settings: EditSettings) -> Iterator[Inputs]:
    yield from zip(latents.x_T, latents.z, strict=True)
    for move in moves:
        own = latents.x_T[move.image]
        drawn = drawn_noise(own, settings)
        yield own if drawn is None else drawn, shift(move, latents.z[move.image : move.image + 1])
