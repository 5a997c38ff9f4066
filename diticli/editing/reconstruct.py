"""Reconstructions: how much of an image do its features hold, and how much its noise?

Method: Preechakul et al., CVPR 2022 (Diff-AE), section 5: an image is decoded from its own features with x_T
inferred by inversion (nearly exact), random, or the mean (what the features say by themselves).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from PIL import Image

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
from diticli.editing.results import Reconstruction, ReconstructionResult
from diticli.editing.settings import SINGLE_IMAGE_NOISE, EditSettings, Noise
from diticli.errors import ConfigError
from diticli.progress import Reporter

__all__ = ["ReconstructionResult", "reconstruct"]


def reconstruct(
    pipeline: EditablePipeline,
    images: Sequence[Image.Image],
    *,
    noises: Sequence[Noise] = ("keep", "random", "mean"),
    settings: EditSettings | None = None,
    names: Sequence[str] | None = None,
    sampler: ImageSampler | None = None,
    reporter: Reporter | None = None,
) -> ReconstructionResult:
    """Every image decoded from its own features, once for each kind of noise.

    Args:
        pipeline: a `DiTiPipeline`.
        images: PIL images, cropped and resized as in training.
        noises: "keep" (inferred by inversion), "random" (one seeded draw for all images), "mean" (zeros).
        settings: solver, steps, seed, batch size.
        names: what to call the images.
        sampler: of `pipeline.sampler(**settings.sampler_kwargs())`, for many calls; made here otherwise.
        reporter: receives every solver step.

    Raises:
        ConfigError: without images or noises, for a noise that needs a second image, or for more steps than the
            model has timesteps.
    """
    settings = settled(pipeline, settings or EditSettings())
    if not images or not noises:
        raise ConfigError("A reconstruction needs at least one image and one noise.", remedy="Give both.")
    if wrong := [noise for noise in noises if noise not in SINGLE_IMAGE_NOISE]:
        remedy = f"Use {', '.join(SINGLE_IMAGE_NOISE)}."
        raise ConfigError(f"No reconstruction has the noise {wrong[0]!r}.", remedy=remedy)
    kinds = list(dict.fromkeys(noises))
    drawing = [replace(settings, noise=noise) for noise in kinds]

    def plan(latents: Latents) -> Iterator[Job]:
        for chosen in drawing:
            for i, (own, z) in enumerate(zip(latents.x_T, latents.z, strict=True)):
                drawn = drawn_noise(own, chosen)
                yield Job(Reconstruction(i, chosen.noise), own if drawn is None else drawn, z)

    x0 = pipeline.preprocess(images)
    given: dict[str, Any] = {"sampler": sampler, "reporter": reporter, "inverted": "keep" in kinds}
    outcome = Outcome.from_tensors(x0, *run_jobs(pipeline, x0, plan, len(x0) * len(kinds), settings, **given))
    return ReconstructionResult(
        names=tuple(names or (f"image {i}" for i in range(len(images)))),
        originals=outcome.originals,
        pictures=outcome.reconstructions,
        psnr=outcome.psnr,
        model_hash=pipeline.model_hash,
        model_name=model_name(pipeline),
        timesteps=pipeline.chunks.timesteps,
        settings=settings,
    )
