"""Faithfulness of a model's edits: chunk swaps and attribute moves, scored by an independent attribute classifier.

Method: counterfactuals as in Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2; the scores are ours
(`diticli.evaluation.scores`).

Legend of shape suffixes: N images, A attributes, D latent dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.data.faces import FACTORS
from diticli.editing.mixing import mix_chunks
from diticli.evaluation.attribute_classifier import AttributeClassifier
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.scores import (
    MIN_TRANSFER,
    Change,
    change,
    differing,
    drift_outside,
    side_effects,
    transfer_rates,
)
from diticli.models.largest_batch import on_halves
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.pictures.grids import psnr, to_uint8
from diticli.probing.directions import DEFAULT_ALONG, Along, Directions
from diticli.probing.probe import probe_features
from diticli.progress import Reporter, SilentReporter
from diticli.sampling import DEFAULT_SOLVER, DEFAULT_STEPS, Solver, steps_run
from diticli.statistics import Estimate

FACTOR_NAMES = tuple(factor.name for factor in FACTORS)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How edits are made and judged.

    Attributes:
        steps: of inversion and of decoding that are asked for; see `diticli.sampling.steps_run`.
        solver: "dpm" or "ddim".
        amount: of an attribute move, both ways; see `Directions.move`.
        along: which direction of an attribute; see `Directions.vector`.
        batch_size: images decoded together.
        seed: of splits and bootstraps.
    """

    steps: int = DEFAULT_STEPS
    solver: Solver = DEFAULT_SOLVER
    amount: float = 0.3
    along: Along = DEFAULT_ALONG
    batch_size: int = 128
    seed: int = 0

    def steps_run(self, timesteps: int) -> int:
        """Steps each way that run on a model with `timesteps`."""
        return steps_run(self.solver, self.steps, timesteps)


@dataclass(frozen=True, kw_only=True)
class SwapScore:
    """What exchanging some chunks does.

    Attributes:
        chunks: the chunks.
        timesteps: their range of timesteps, [first, last).
        shares: transfer rates; see `diticli.evaluation.scores.transfer_rates`.
        unexplained: root mean square of each attribute's other change, in standard deviations.
        moved: attributes with a transfer rate of at least one half, on one half of the pairs; the drift and the truth
            are measured on the other half.
        drift: mean absolute change in grey levels of the pixels that a perfect exchange of `moved` leaves alone; None
            without ground truth.
        truth_psnr: edits against drawings with `moved` exchanged, dB; None without ground truth.
        still_psnr: unedited reconstructions against the same drawings: what doing nothing would score.
    """

    chunks: tuple[int, ...]
    timesteps: tuple[int, int]
    shares: dict[str, Estimate]
    unexplained: dict[str, float]
    moved: tuple[str, ...]
    drift: float | None = None
    truth_psnr: float | None = None
    still_psnr: float | None = None


@dataclass(frozen=True, kw_only=True)
class MoveScore:
    """What moving along an attribute's direction does.

    Attributes:
        attribute: whose direction.
        change: per amount, in standard deviations.
        drift: mean absolute change in grey levels of pixels that the attribute cannot change; None without
            ground truth.
    """

    attribute: str
    change: Change
    drift: float | None = None


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """All scores of one model.

    Attributes:
        model: its id.
        model_hash: fingerprint of its weights.
        images: how many were edited.
        reconstruction_psnr: dB over all of them.
        reading_error: root mean square change of each attribute's reading by reconstruction alone.
        swaps: one per set of chunks.
        moves: one per attribute that could be probed.
        facts: layout, solver, steps asked for and run.
    """

    model: str
    model_hash: str
    images: int
    reconstruction_psnr: float
    reading_error: dict[str, float]
    swaps: tuple[SwapScore, ...]
    moves: tuple[MoveScore, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def evaluate_model(
    pipeline: DiTiModel,
    images: EvaluationImages,
    classifier: AttributeClassifier,
    chunk_sets: Sequence[tuple[int, ...]],
    *,
    settings: EvaluationSettings | None = None,
    moves: bool = True,
    reporter: Reporter | None = None,
) -> Faithfulness:
    """Edit all judged images every way, and let the classifier say what changed.

    Args:
        pipeline: the model.
        images: images of the model's resolution.
        classifier: trained on `images.learn_NCHW`.
        chunk_sets: each is exchanged within all pairs.
        settings: solver, steps, amount.
        moves: also move along the direction of every attribute, fitted on the images to learn from.
        reporter: receiver of progress.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ModelError: for an encoder alone.
    """
    return _Evaluation(
        pipeline, images, classifier, settings or EvaluationSettings(), reporter or SilentReporter()
    ).run(chunk_sets, moves)


class _Evaluation:
    """One model's inverted images, and what is measured on them."""

    def __init__(
        self,
        pipeline: DiTiModel,
        images: EvaluationImages,
        classifier: AttributeClassifier,
        settings: EvaluationSettings,
        reporter: Reporter,
    ) -> None:
        self.pipeline, self.images, self.classifier = pipeline, images, classifier
        self.settings, self.reporter = settings, reporter
        self.names = tuple(attribute.name for attribute in classifier.attributes)
        self.partner = torch.arange(len(images.judge_NCHW)) ^ 1

    @torch.no_grad()
    def run(self, chunk_sets: Sequence[tuple[int, ...]], moves: bool) -> Faithfulness:
        layout, x0 = self.pipeline.chunks, normalise(self.images.judge_NCHW)
        self.z = self.pipeline.encode(x0)
        directions = self._directions() if moves else None
        attributes = [name for name in self.names if directions and name in directions.attributes]
        rounds = 2 + len(chunk_sets) + 2 * len(attributes)
        self.reporter.start("Editing and judging", rounds * len(x0), unit="images")
        sampler = self.pipeline.sampler(solver=self.settings.solver)
        self._decoder = sampler.decode
        self.x_T = self._in_batches(sampler.invert, x0, self.z)
        before = self._decode(self.z)
        self.before_NHWC, self.before_NA = to_uint8(before), self.classifier.read(before)
        error = np.sqrt(np.mean((self.before_NA - self.classifier.read(x0)) ** 2, axis=0))
        result = Faithfulness(
            model=self.pipeline.model_id,
            model_hash=self.pipeline.model_hash,
            images=len(x0),
            reconstruction_psnr=psnr(before, x0),
            reading_error=dict(zip(self.names, error.tolist(), strict=True)),
            swaps=tuple(self._swap(chunks) for chunks in chunk_sets),
            moves=tuple(self._move(directions, name) for name in attributes if directions),
            facts={
                "chunks": layout.chunks,
                "latent_dim": layout.latent_dim,
                **vars(self.settings),
                "steps_run": self.settings.steps_run(layout.timesteps),
            },
        )
        self.reporter.finish()
        return result

    def _swap(self, chunks: tuple[int, ...]) -> SwapScore:
        layout = self.pipeline.chunks
        after = self._decode(mix_chunks(self.z, self.z[self.partner], layout, chunks, 1.0))
        readings = (self.before_NA, self.classifier.read(after), self.before_NA[self.partner])
        shares = transfer_rates(*readings, seed=self.settings.seed)
        noise = side_effects(*readings, shares)
        half = len(self.before_NA) // 4 * 2
        chosen = transfer_rates(*(r[:half] for r in readings)) if half else []
        moved = tuple(name for name, share in zip(self.names, chosen, strict=False) if share.value >= MIN_TRANSFER)
        return SwapScore(
            chunks=chunks,
            timesteps=(layout.timestep_starts[min(chunks)], layout.timestep_ends[max(chunks)]),
            shares=dict(zip(self.names, shares, strict=True)),
            unexplained=dict(zip(self.names, noise.tolist(), strict=True)),
            moved=moved,
            **self._against_truth(to_uint8(after), moved, slice(half, None)),
        )

    def _against_truth(self, after_NHWC: npt.NDArray[np.uint8], moved: tuple[str, ...], rows: slice) -> dict[str, Any]:
        """Pixels against the drawing of a perfect exchange of the moved factors."""
        if self.images.factors is None:
            return {}
        columns = [FACTOR_NAMES.index(name) for name in moved]

        def exchange(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            factors[:, columns] = factors[self.partner.numpy()][:, columns]
            return factors

        own, truth = self.images.drawn(lambda factors: factors)[rows], self.images.drawn(exchange)[rows]
        before, after = self.before_NHWC[rows], after_NHWC[rows]
        return {
            "drift": drift_outside(before, after, differing(own, truth)),
            "truth_psnr": psnr(after, truth),
            "still_psnr": psnr(before, truth),
        }

    def _move(self, directions: Directions, name: str) -> MoveScore:
        settings = self.settings
        moved = [directions.move(self.z, name, s * settings.amount, along=settings.along) for s in (-1, 1)]
        pictures = [self._decode(z) for z in moved]
        low, high = (self.classifier.read(picture) for picture in pictures)
        drift = None
        if self.images.factors is not None:
            factor, column = FACTORS[FACTOR_NAMES.index(name)], FACTOR_NAMES.index(name)
            ends = [self.images.drawn(_setter(column, value)) for value in (factor.low, factor.high)]
            inside = differing(*ends)
            drift = float(np.mean([drift_outside(self.before_NHWC, to_uint8(p), inside) for p in pictures]))
        return MoveScore(attribute=name, change=change(low, high, self.names, name), drift=drift)

    def _directions(self) -> Directions:
        features = self.pipeline.encode(normalise(self.images.learn_NCHW)).numpy()
        columns = {name: column for name, column in self.images.columns.items() if name in self.names}
        report = probe_features(features, columns, seed=self.settings.seed, reporter=self.reporter)
        return report.directions

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        return self._in_batches(self._decoder, self.x_T, z).clamp(-1, 1)

    def _in_batches(self, run: Any, images: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        size, steps = self.settings.batch_size, self.settings.steps
        parts = []
        for part, features in zip(images.split(size), z.split(size), strict=True):
            parts.append(on_halves(lambda x, z: run(x, z, steps=steps).float().cpu(), part, features))
            self.reporter.advance(len(part))
        return torch.cat(parts)


def _setter(column: int, value: float) -> Any:
    def change_factor(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        factors[:, column] = value
        return factors

    return change_factor
