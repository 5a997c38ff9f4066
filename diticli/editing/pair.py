"""Counterfactuals: what image A would be if some of its chunks were image B's, and the other way round.

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2. Both images are encoded and inverted to the
noise x_T under their own features; then chosen slices of the features are mixed and the result is decoded.

result = edit_pair(pipeline, anna, ben, [pipeline.chunks.parse("10-20")], (0.0, 0.5, 1.0))
edit_strip(pair_sheet(result)).save("edit.png")      # diticli.editing.contact_sheet

Legend of shape suffixes: N batch, D latent dim, R resolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.engine import (
    EditablePipeline,
    ImageSampler,
    Job,
    Latents,
    Outcome,
    drawn_noise,
    model_name,
    run_jobs,
    settled,
)
from diticli.editing.mixing import check_chunks, mix_chunks, slerp
from diticli.editing.results import SIDES, Edit, EditResult, Label, Reconstruction, Side
from diticli.editing.settings import EditSettings, Noise
from diticli.errors import ConfigError
from diticli.progress import Reporter

__all__ = ["SIDES", "Edit", "EditResult", "EditSettings", "Noise", "Side", "counterfactuals", "edit_pair"]


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
        sampler: of `pipeline.sampler(**settings.sampler_kwargs())`, for many edits; made here otherwise.
        reporter: receives every solver step.

    Raises:
        ChunkError: for an empty set or a chunk that the model lacks.
        ConfigError: without chunk sets or alphas, or for more steps than the model has timesteps.
    """
    settings = settled(pipeline, settings or EditSettings())
    edits = plan_edits(chunk_sets, alphas, pipeline.chunks)
    x0 = pipeline.preprocess([image_a, image_b])
    decoded = to_decode(edits, settings)
    z, images = run_jobs(
        pipeline,
        x0,
        lambda latents: pair_jobs(latents, (0, 1), decoded, pipeline.chunks, settings),
        len(SIDES) + len(decoded),
        settings,
        sampler=sampler,
        reporter=reporter,
    )
    return pair_result(
        edits,
        Outcome.from_tensors(x0, z, images),
        names=names,
        layout=pipeline.chunks,
        model_hash=pipeline.model_hash,
        model_name=model_name(pipeline),
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
        sampler: of `pipeline.sampler(**settings.sampler_kwargs())`, for many edits; made here otherwise.
        reporter: receives every solver step.

    Returns:
        Features [2, D], and images [2 + len(edits), 3, R, R] on the CPU: both reconstructions, then the edits.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ConfigError: for more steps than the model has timesteps.
    """
    z, decoded = run_jobs(
        pipeline,
        x0,
        lambda latents: pair_jobs(latents, (0, 1), edits, pipeline.chunks, settings),
        len(SIDES) + len(edits),
        settings,
        sampler=sampler,
        reporter=reporter,
    )
    labels: list[Label] = [Reconstruction(0), Reconstruction(1), *edits]
    return z, torch.stack([decoded[label] for label in labels])


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
    """Those that differ from a reconstruction."""
    return [edit for edit in edits if edit.alpha != 0 or not settings.alpha_zero_is_reconstruction]


def pair_jobs(
    latents: Latents, rows: tuple[int, int], edits: Sequence[Edit], layout: ChunkLayout, settings: EditSettings
) -> Iterator[Job]:
    """What to decode for one pair: both reconstructions, then the edits.

    Args:
        latents: of all images.
        rows: where A and B are in them.
        edits: see `to_decode`.
        layout: of the model.
        settings: says which noise.
    """
    for image, row in enumerate(rows):
        yield Job(Reconstruction(image), latents.x_T[row], latents.z[row])
    for edit in edits:
        own, other = rows if edit.side == "a" else rows[::-1]
        mine, theirs = slice(own, own + 1), slice(other, other + 1)
        z = mix_chunks(latents.z[mine], latents.z[theirs], layout, edit.chunks, edit.alpha)[0]
        drawn = drawn_noise(latents.x_T[own], settings)
        if drawn is not None:
            yield Job(edit, drawn, z)
        elif settings.noise == "slerp":
            yield Job(edit, slerp(latents.x_T[mine], latents.x_T[theirs], edit.alpha)[0], z)
        else:
            yield Job(edit, latents.x_T[other if settings.noise == "swap" else own], z)


def pair_result(
    edits: Sequence[Edit],
    outcome: Outcome,
    *,
    names: tuple[str, str],
    layout: ChunkLayout,
    model_hash: str,
    settings: EditSettings,
    model_name: str = "",
) -> EditResult:
    """The result of one pair from what its jobs gave; edits that were not decoded are the reconstruction."""
    back, quality = outcome.reconstructions["keep"], outcome.psnr["keep"]
    return EditResult(
        names=names,
        originals=outcome.originals,
        reconstructions=back,
        edits={edit: outcome.pictures.get(edit, back[SIDES.index(edit.side)]) for edit in edits},
        z=outcome.z.float().cpu().numpy(),
        psnr=(quality[0], quality[1]),
        layout=layout,
        model_hash=model_hash,
        settings=settings,
        model_name=model_name,
    )
