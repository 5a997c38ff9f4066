"""Attribute edits: images with more or less of an attribute that a probe has learned.

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5: each image is encoded and inverted under its own
features, these move along the attribute's direction (`diticli.probing.directions`), and are decoded.

directions = load_directions(Path("probe"))
result = edit_attribute(pipeline, [anna, ben], directions, ["Smiling"], (-0.5, 0.5))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.engine import EditablePipeline, Job, Latents, Outcome, drawn_noise, model_name, run_jobs, settled
from diticli.editing.mixing import check_chunks
from diticli.editing.results import AttributeResult, Chunks, Move, Reconstruction
from diticli.editing.settings import SINGLE_IMAGE_NOISE, EditSettings
from diticli.errors import ConfigError
from diticli.probing.directions import DEFAULT_ALONG, Along
from diticli.progress import Reporter

__all__ = ["AttributeDirections", "AttributeResult", "Move", "edit_attribute", "move_along"]


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


def edit_attribute(
    pipeline: EditablePipeline,
    images: Sequence[Image.Image],
    directions: AttributeDirections,
    attributes: Sequence[str],
    amounts: Sequence[float],
    *,
    also: Mapping[str, float] | None = None,
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
        also: attribute -> amount by which every edit moves besides.
        chunk_sets: move the dims of these chunks only; None stands for all.
        learned_dims: move only the dims of the mask that was learned with so many (`diti probe --mask-dims`).
        along: "weight" (the classifier's, as published) or "pattern" (how features change where the attribute does).
        settings: solver, steps, noise ("keep", "random" or "mean"), batch size.
        names: what to call the images.
        reporter: receives every solver step.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without images, attributes or amounts, for noise that needs a second image, or amounts out of
            range.
        LabelError: for an attribute or a mask that the directions lack.
    """
    settings = settled(pipeline, settings or EditSettings())
    _check(images, attributes, amounts, chunk_sets, pipeline.chunks, settings)
    wanted = product(range(len(images)), attributes, chunk_sets, amounts)
    moves = list(dict.fromkeys(Move(*parts) for parts in wanted))
    also = dict(also or {})
    changed = [move for move in moves if move.amount != 0 or also or settings.noise != "keep"]

    def shift(move: Move, z_1D: torch.Tensor) -> torch.Tensor:
        where: dict[str, Any] = {"chunks": move.chunks, "layout": pipeline.chunks, "along": along}
        steps = [(move.attribute, move.amount), *also.items()]
        return move_along(directions, z_1D, steps, learned=learned_dims is not None, **where)[0]

    for move in moves:  # unknown names and amounts show before minutes of inversion
        shift(move, torch.zeros(1, pipeline.chunks.latent_dim))

    def plan(latents: Latents) -> Iterator[Job]:
        for i, (own, z) in enumerate(zip(latents.x_T, latents.z, strict=True)):
            yield Job(Reconstruction(i), own, z)
        for move in changed:
            own = latents.x_T[move.image]
            drawn = drawn_noise(own, settings)
            yield Job(move, own if drawn is None else drawn, shift(move, latents.z[move.image : move.image + 1]))

    x0 = pipeline.preprocess(images)
    outcome = Outcome.from_tensors(
        x0, *run_jobs(pipeline, x0, plan, len(x0) + len(changed), settings, reporter=reporter)
    )
    back = outcome.reconstructions["keep"]
    return AttributeResult(
        names=tuple(names or (f"image {i}" for i in range(len(images)))),
        originals=outcome.originals,
        reconstructions=back,
        edits={move: outcome.pictures.get(move, back[move.image]) for move in moves},
        psnr=outcome.psnr["keep"],
        also=also,
        learned_dims=learned_dims,
        along=along,
        layout=pipeline.chunks,
        model_hash=pipeline.model_hash,
        model_name=model_name(pipeline),
        settings=settings,
    )


def move_along(
    directions: AttributeDirections,
    z_BD: torch.Tensor,
    steps: Sequence[tuple[str, float]],
    *,
    chunks: Sequence[int] | None,
    layout: ChunkLayout,
    learned: bool,
    along: Along = DEFAULT_ALONG,
) -> torch.Tensor:
    """Features [B, D] moved along several attributes, one after the other.

    Args:
        directions: of a probe on features of this model.
        z_BD: features.
        steps: attribute and amount.
        chunks: move the dims of these only; None for all.
        layout: of the model.
        learned: move only the dims of each attribute's learned mask.
        along: see `Directions.move`.

    Raises:
        LabelError: for an attribute or a mask that the directions lack.
        ConfigError: for amounts out of range, or where no dim is left to move.
    """
    dims: Literal["learned"] | None = "learned" if learned else None
    for attribute, amount in steps:
        z_BD = directions.move(z_BD, attribute, amount, dims=dims, chunks=chunks, layout=layout, along=along)
    return z_BD


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
    if settings.noise not in SINGLE_IMAGE_NOISE:
        raise ConfigError(
            f"The noise {settings.noise!r} needs a second image.",
            remedy=f"Use {', '.join(SINGLE_IMAGE_NOISE)} without one.",
        )
    for chunks in chunk_sets:
        if chunks is not None:
            check_chunks(chunks, layout)
