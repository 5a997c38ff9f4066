"""Composition: how far an image drifts when it is edited by nothing, again and again.

Method: Monteiro et al., ICLR 2023 (arXiv 2303.01274); Melistas et al., NeurIPS 2024 (arXiv 2403.20287): the distance
between an image and what n null interventions make of it. Here that is encoding, inversion and decoding under the same
features; a perfect model gives the image back any number of times.

Legend of shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diticli.evaluation.kept import Arrays, KeptArrays, content
from diticli.evaluation.settings import EvaluationSettings
from diticli.models.largest_batch import on_halves
from diticli.models.pixels import normalise
from diticli.pictures.tiles import psnr, to_uint8
from diticli.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Distances between images and what 1, 2, ... edits by nothing make of them.

    Attributes:
        images: how many.
        change: mean absolute change of a pixel in grey levels after 1, 2, ... edits.
        psnr: in dB, over all images; infinite where nothing changed.
    """

    images: int
    change: tuple[float, ...]
    psnr: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON form; an infinite PSNR is None."""
        return vars(self) | {"psnr": [value if np.isfinite(value) else None for value in self.psnr]}


@torch.no_grad()
def measure_composition(
    pipeline: DiTiModel,
    images_NCHW: torch.Tensor,
    times: int,
    *,
    settings: EvaluationSettings | None = None,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> Composition:
    """Encode, invert and decode images `times` times, each time what the last time gave.

    Args:
        pipeline: the model.
        images_NCHW: uint8 images of its resolution.
        times: at least 1.
        settings: solver, steps, batch size.
        reporter: receiver of progress.
        kept: where what was edited before is found.

    Raises:
        ModelError: for an encoder alone.
    """
    settings, reporter, kept = settings or EvaluationSettings(), reporter or SilentReporter(), kept or KeptArrays()
    facts = [pipeline.model_hash, settings.solver, settings.steps]
    sampler = pipeline.sampler(solver=settings.solver)

    def edited(x: torch.Tensor) -> torch.Tensor:
        z = pipeline.encode(x)
        x_T = sampler.invert(x, z, steps=settings.steps)
        return sampler.decode(x_T, z, steps=settings.steps).float().cpu().clamp(-1, 1)

    x0 = normalise(images_NCHW)
    original, x = to_uint8(x0).astype(np.float64), x0
    change, quality = [], []
    reporter.start("Editing by nothing", times * len(x0), unit="images")
    for _ in range(times):
        parts = []
        for part in x.split(settings.batch_size):

            def make(part: torch.Tensor = part) -> Arrays:
                return {"edited": on_halves(edited, part).numpy()}

            parts.append(torch.from_numpy(kept.get("again", [*facts, content(part)], make)["edited"]))
            reporter.advance(len(part))
        x = torch.cat(parts)
        change.append(float(np.abs(to_uint8(x) - original).mean()))
        quality.append(psnr(x, x0))
    reporter.finish()
    return Composition(images=len(x0), change=tuple(change), psnr=tuple(quality))
