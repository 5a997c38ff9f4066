"""Reconstructions: how much of an image do its features hold, and how much its noise?

Method: Preechakul et al., CVPR 2022 (Diff-AE), section 5: an image is decoded from its own features with x_T
inferred by inversion (nearly exact), random, or the mean (what the features say by themselves).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image

from diticli.editing.attribute import ALONE
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
from diticli.editing.settings import EditSettings, Noise
from diticli.editing.sheet import Cell, Sheet, SheetRow, decibels, image_stems
from diticli.errors import ConfigError
from diticli.pictures.tiles import Pixels, psnr, to_uint8
from diticli.progress import Reporter, SilentReporter

LABELS = {"keep": "x_T inferred", "random": "x_T random", "mean": "x_T mean"}


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """Images and what their features give back.

    Attributes:
        names: [N] what to call the images.
        originals: uint8 [N, R, R, 3], as the model saw them.
        pictures: uint8 [N, R, R, 3] for each kind of noise.
        psnr: [N] in dB against the originals, for each kind of noise.
        model_hash: fingerprint of the model.
        timesteps: T of the model.
        settings: how they were made; its `noise` says nothing here.
    """

    names: tuple[str, ...]
    originals: Pixels
    pictures: Mapping[Noise, Pixels]
    psnr: Mapping[Noise, tuple[float, ...]]
    model_hash: str
    timesteps: int
    settings: EditSettings

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        values = (f"{noise} " + ", ".join(f"{value:.2f}" for value in self.psnr[noise]) for noise in self.pictures)
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            **self.settings.describe(self.timesteps),
            "diti:noise": f"{', '.join(self.pictures)} (seed {self.settings.seed})",
            "diti:psnr_db": " | ".join(values),
        }

    def sheet(self) -> Sheet:
        """Rows of pictures: one an image, PSNR below each reconstruction."""
        rows = []
        for i, (name, stem) in enumerate(zip(self.names, image_stems(self.names), strict=True)):
            original = self.originals[i]
            found = [
                Cell(
                    picture=pictures[i],
                    stem=f"{stem}_reconstruction_{noise}",
                    against=original,
                    caption=decibels(self.psnr[noise][i]),
                )
                for noise, pictures in self.pictures.items()
            ]
            cells = (Cell(picture=original, stem=f"{stem}_original", framed=True), *found)
            rows.append(SheetRow(caption=name, cells=cells, down=name))
        columns = ("original", *(LABELS[noise] for noise in self.pictures))
        return Sheet(
            title="Decoded from their own features",
            columns=columns,
            rows=tuple(rows),
            moving=range(len(columns)),
            metadata=self.to_metadata(),
        )


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
        sampler: of `pipeline.sampler(**settings.sampler())`, for many calls; made here otherwise.
        reporter: told of every solver step.

    Raises:
        ConfigError: without images or noises, for a noise that needs a second image, or for more steps than the
            model has timesteps.
    """
    settings, reporter = settings or EditSettings(), reporter or SilentReporter()
    if not images or not noises:
        raise ConfigError("A reconstruction needs at least one image and one noise.", remedy="Give both.")
    if wrong := [noise for noise in noises if noise not in ALONE]:
        raise ConfigError(f"No reconstruction has the noise {wrong[0]!r}.", remedy=f"Use {', '.join(ALONE)}.")
    kinds = list(dict.fromkeys(noises))
    x0 = pipeline.preprocess(images)
    size = batch_of(pipeline, x0, settings)
    sampler = sampler or pipeline.sampler(**settings.sampler())
    latents = _latents(pipeline, sampler, x0, settings, reporter, inverted="keep" in kinds)
    count = StepCounter(reporter, "Decoding", math.ceil(len(x0) * len(kinds) / size))
    decoded = torch.stack(list(decode_all(sampler, _inputs(latents, kinds, settings), settings, size, count)))
    count.close()
    originals = to_uint8(x0)
    parts = dict(zip(kinds, to_uint8(decoded).reshape(len(kinds), *originals.shape), strict=True))
    return ReconstructionResult(
        names=tuple(names or (f"image {i}" for i in range(len(images)))),
        originals=originals,
        pictures=parts,
        psnr={noise: tuple(map(psnr, pictures, originals)) for noise, pictures in parts.items()},
        model_hash=pipeline.model_hash,
        timesteps=pipeline.chunks.timesteps,
        settings=settings,
    )


def _latents(
    pipeline: EditablePipeline,
    sampler: ImageSampler,
    x0: torch.Tensor,
    settings: EditSettings,
    reporter: Reporter,
    *,
    inverted: bool,
) -> Latents:
    if not inverted:
        return Latents(x0=x0, z=pipeline.encode(x0).float().cpu(), x_T=torch.zeros_like(x0))
    count = StepCounter(reporter, "Inverting", math.ceil(len(x0) / batch_of(pipeline, x0, settings)))
    latents = invert_all(pipeline, sampler, x0, settings, count)
    count.close()
    return latents


def _inputs(latents: Latents, noises: Sequence[Noise], settings: EditSettings) -> Iterator[Inputs]:
    for noise in noises:
        for own, z in zip(latents.x_T, latents.z, strict=True):
            drawn = drawn_noise(own, replace(settings, noise=noise))
            yield own if drawn is None else drawn, z
