"""Invert, decode and classify in batches; what was made before is taken from a folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diticli.evaluation.kept import Arrays, KeptArrays, content
from diticli.evaluation.scores import Pixels
from diticli.models.largest_batch import on_halves
from diticli.pictures.grids import to_uint8
from diticli.progress import Reporter
from diticli.types import DoubleArray

if TYPE_CHECKING:
    from diticli.evaluation.attribute_classifier import AttributeClassifier
    from diticli.evaluation.settings import EvaluationSettings
    from diticli.models.model import DiTiModel


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Decoded images.

    Attributes:
        pixels: uint8 [N, R, R, 3].
        readings: [N, A] what the classifier reads, in standard deviations.
    """

    pixels: Pixels
    readings: DoubleArray


class Decoding:
    """One model's sampler and the classifier that judges what it decodes.

    Args:
        pipeline: the model.
        classifier: of its images.
        settings: solver, steps, batch size.
        reporter: receives every image.
        kept: where earlier results are.
    """

    def __init__(
        self,
        pipeline: DiTiModel,
        classifier: AttributeClassifier,
        settings: EvaluationSettings,
        reporter: Reporter,
        kept: KeptArrays,
    ) -> None:
        self.classifier, self.settings, self.reporter, self.kept = classifier, settings, reporter, kept
        self.sampler: Any = pipeline.sampler(solver=settings.solver)
        self.facts = [pipeline.model_hash, settings.solver, settings.steps]
        state: dict[str, torch.Tensor] = getattr(classifier, "state_dict", dict)()
        self.judge_facts = [[name, content(value)] for name, value in state.items()]

    def invert(self, x0_NCHW: torch.Tensor, z_ND: torch.Tensor) -> torch.Tensor:
        """The noise of each image under its features."""
        size, parts = self.settings.batch_size, []
        for x, z in zip(x0_NCHW.split(size), z_ND.split(size), strict=True):

            def make(x: torch.Tensor = x, z: torch.Tensor = z) -> Arrays:
                return {"x_T": on_halves(self._invert, x, z).numpy()}

            parts.append(self.kept.get("noise", [*self.facts, content(x, z)], make)["x_T"])
            self.reporter.advance(len(x))
        return torch.from_numpy(np.concatenate(parts))

    def read(self, x_T: torch.Tensor, z: torch.Tensor) -> DoubleArray:
        """[N, A]: what the classifier reads from one batch."""

        def make() -> Arrays:
            return {"readings": self.classifier.read(self._decoded(x_T, z))}

        readings = self.kept.get("readings", [*self.facts, self.judge_facts, content(x_T, z)], make)["readings"]
        self.reporter.advance(len(z))
        return readings

    def judge(self, x_T: torch.Tensor, z_ND: torch.Tensor) -> Judged:
        """Images of any number, as pictures and as what the classifier reads."""

        size, parts = self.settings.batch_size, []
        for x, z in zip(x_T.split(size), z_ND.split(size), strict=True):

            def make(x: torch.Tensor = x, z: torch.Tensor = z) -> Arrays:
                images = self._decoded(x, z)
                return {"pixels": to_uint8(images), "readings": self.classifier.read(images)}

            parts.append(self.kept.get("edits", [*self.facts, self.judge_facts, content(x, z)], make))
            self.reporter.advance(len(x))
        pixels, readings = (np.concatenate([part[name] for part in parts]) for name in ("pixels", "readings"))
        return Judged(pixels=pixels, readings=readings)

    def _invert(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.sampler.invert(x, z, steps=self.settings.steps).float().cpu()

    def _decoded(self, x_T: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        def decode(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return self.sampler.decode(x, z, steps=self.settings.steps).float().cpu()

        return on_halves(decode, x_T, z).clamp(-1, 1)
