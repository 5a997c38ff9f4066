"""Faithfulness of a model's edits: chunk swaps and attribute moves, scored by an independent attribute classifier.

Method: counterfactuals as in Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2; the scores are ours
(`diticli.evaluation.scores`).

Legend of shape suffixes: N images, A attributes, D latent dim.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.data.faces import FACTORS
from diticli.editing.mixing import mix_chunks
from diticli.editing.quality import reconstruction_warnings
from diticli.editing.settings import EditSettings
from diticli.errors import ConfigError
from diticli.evaluation.attribute_classifier import AttributeClassifier, unreadable
from diticli.evaluation.decoding import Decoding, Judged
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.kept import KeptArrays
from diticli.evaluation.scores import (
    MIN_TRANSFER,
    Change,
    Pixels,
    change,
    differing,
    drift_outside,
    resampled_transfer_rates,
    side_effects,
    to_json,
    transfer_rates,
)
from diticli.evaluation.settings import EvaluationSettings
from diticli.models.largest_batch import on_halves
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.pictures.grids import psnr, to_uint8
from diticli.probing.directions import Directions
from diticli.probing.probe import probe_features
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Estimate

FACTOR_NAMES = tuple(factor.name for factor in FACTORS)
CHECKED = 16
"""Images that are inverted and decoded to see whether scores of edits say anything."""
MOST_UNREADABLE = len(FACTOR_NAMES) // 4
"""Factors that the classifier may fail to read, beyond which edits are not held against drawings."""
SHOWN = 4
"""Pairs whose edits are shown."""


@dataclass(frozen=True, kw_only=True)
class SwapScore:
    """What exchanging some chunks does.

    Attributes:
        chunks: the chunks.
        timesteps: their range of timesteps, [first, last).
        shares: transfer rates; see `diticli.evaluation.scores.transfer_rates`.
        mean: of the attributes that the classifier reads, the same pairs resampled for all; None where it reads none.
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
    mean: Estimate | None
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
class EditExamples:
    """Pictures of the first pairs, uint8 [pairs, R, R, 3] each.

    Attributes:
        first: A.
        again: A, inverted and decoded.
        edits: A with the partner's chunks, one for each of `Faithfulness.swaps`.
        second: B, the partner.
    """

    first: Pixels
    again: Pixels
    edits: tuple[Pixels, ...]
    second: Pixels


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
        moves: one per attribute that the classifier can read and that could be probed.
        unreadable: attributes that the classifier cannot read: their numbers say nothing, and have no intervals.
        warnings: what makes the scores worthless, in words.
        facts: layout, solver, steps asked for and run; why exchanges have no drift, "" where they have.
        examples: pictures of some edits.
    """

    model: str
    model_hash: str
    images: int
    reconstruction_psnr: float
    reading_error: dict[str, float]
    swaps: tuple[SwapScore, ...]
    moves: tuple[MoveScore, ...]
    unreadable: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    examples: EditExamples | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the pictures."""
        json: dict[str, Any] = to_json({key: value for key, value in vars(self).items() if key != "examples"})
        return json


def evaluate_model(
    pipeline: DiTiModel,
    images: EvaluationImages,
    classifier: AttributeClassifier,
    chunk_sets: Sequence[tuple[int, ...]],
    *,
    settings: EvaluationSettings | None = None,
    moves: bool = True,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
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
        kept: where what was decoded and judged before is found.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ModelError: for an encoder alone.
        ConfigError: for reconstructions too bad to judge edits by, unless `settings.force`.
    """
    settings, reporter = settings or EvaluationSettings(), reporter or SilentReporter()
    return _Evaluation(pipeline, images, classifier, settings, reporter, kept or KeptArrays()).run(chunk_sets, moves)


def check_reconstruction(pipeline: DiTiModel, images: EvaluationImages, settings: EvaluationSettings) -> None:
    """Invert and decode a few of the judged images, before anything that takes long.

    Raises:
        ModelError: for an encoder alone.
        ConfigError: where they come back too badly to judge edits by, unless `settings.force`.
    """
    if settings.force:
        return
    x0 = normalise(images.judge_NCHW[:CHECKED])
    sampler, z = pipeline.sampler(solver=settings.solver), pipeline.encode(x0)

    def there_and_back(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        noise = sampler.invert(x, z, steps=settings.steps)
        return sampler.decode(noise, z, steps=settings.steps).float().cpu().clamp(-1, 1)

    reconstruction_problems(pipeline, psnr(on_halves(there_and_back, x0, z), x0), settings)


def reconstruction_problems(pipeline: DiTiModel, decibels: float, settings: EvaluationSettings) -> tuple[str, ...]:
    """What is wrong with reconstructions of so many dB, in words; empty where nothing is.

    Raises:
        ConfigError: where something is, unless `settings.force`.
    """
    how = EditSettings(solver=settings.solver, invert_steps=settings.steps, decode_steps=settings.steps)
    found = reconstruction_warnings({"Images to judge": decibels}, how, pipeline)
    if found and not settings.force:
        raise ConfigError(found[0], remedy="Edits would be judged by that error; --force judges them all the same.")
    return tuple(found)


def blind(shares: Sequence[Estimate], names: Sequence[str], unreadable: Collection[str]) -> list[Estimate]:
    """The estimates, without intervals for attributes that the classifier cannot read."""
    return [
        Estimate(value=share.value, low=None, high=None) if name in unreadable else share
        for name, share in zip(names, shares, strict=True)
    ]


class _Evaluation:
    """One model's inverted images, and what is measured on them."""

    def __init__(
        self,
        pipeline: DiTiModel,
        images: EvaluationImages,
        classifier: AttributeClassifier,
        settings: EvaluationSettings,
        reporter: Reporter,
        kept: KeptArrays,
    ) -> None:
        self.pipeline, self.images, self.classifier = pipeline, images, classifier
        self.settings, self.reporter, self.kept = settings, reporter, kept
        self.names = tuple(attribute.name for attribute in classifier.attributes)
        self.unreadable = tuple(unreadable(classifier))
        self.readable = [index for index, name in enumerate(self.names) if name not in self.unreadable]
        self.examples: list[Pixels] = []
        self.partner = torch.arange(len(images.judge_NCHW)) ^ 1

    @torch.no_grad()
    def run(self, chunk_sets: Sequence[tuple[int, ...]], moves: bool) -> Faithfulness:
        layout, x0 = self.pipeline.chunks, normalise(self.images.judge_NCHW)
        self.z = self.pipeline.encode(x0)
        directions = self._directions() if moves else None
        attributes = [name for name in self.names if directions and self._moves(name, directions)]
        rounds = 2 + len(chunk_sets) + 2 * len(attributes)
        self.reporter.start("Editing and scoring", rounds * len(x0), unit="images")
        self.decoding = Decoding(self.pipeline, self.classifier, self.settings, self.reporter, self.kept)
        self.x_T = self.decoding.invert(x0, self.z)
        before = self._decode(self.z)
        self.before_NHWC, self.before_NA = before.pixels, before.readings
        decibels = psnr(self.before_NHWC, to_uint8(x0))
        warnings = reconstruction_problems(self.pipeline, decibels, self.settings)
        error = np.sqrt(np.mean((self.before_NA - self.classifier.read(x0)) ** 2, axis=0))
        result = Faithfulness(
            model=self.pipeline.model_id,
            model_hash=self.pipeline.model_hash,
            images=len(x0),
            reconstruction_psnr=decibels,
            reading_error=dict(zip(self.names, error.tolist(), strict=True)),
            swaps=tuple(self._swap(chunks) for chunks in chunk_sets),
            moves=tuple(self._move(directions, name) for name in attributes if directions),
            unreadable=self.unreadable,
            warnings=warnings,
            facts={
                "model_origin": self.pipeline.origin and f"{self.pipeline.origin}, {self.pipeline.resolution} px",
                "chunks": layout.chunks,
                "latent_dim": layout.latent_dim,
                **vars(self.settings),
                "steps_run": self.settings.steps_run(layout.timesteps),
                "no_drift": self._no_drift(),
            },
        )
        self.reporter.finish()
        shown = slice(0, 2 * SHOWN, 2)
        originals = to_uint8(x0)
        examples = EditExamples(
            first=originals[shown],
            again=self.before_NHWC[shown],
            edits=tuple(self.examples),
            second=originals[self.partner.numpy()][shown],
        )
        return replace(result, examples=examples)

    def _moves(self, name: str, directions: Directions) -> bool:
        return name in directions.attributes and name not in self.unreadable

    def _swap(self, chunks: tuple[int, ...]) -> SwapScore:
        layout = self.pipeline.chunks
        after = self._decode(mix_chunks(self.z, self.z[self.partner], layout, chunks, 1.0))
        self.examples.append(after.pixels[0 : 2 * SHOWN : 2])
        readings = (self.before_NA, after.readings, self.before_NA[self.partner])
        before_NA, after_NA, other_NA = readings
        values, draws = resampled_transfer_rates(before_NA, after_NA[None], other_NA, seed=self.settings.seed)
        values_A, draws_RA = values[0], draws[:, 0]
        rates = [Estimate.from_resamples(value, own_R) for value, own_R in zip(values_A, draws_RA.T, strict=True)]
        shares = blind(rates, self.names, self.unreadable)
        read = self.readable
        noise = side_effects(*readings, shares)
        half = len(self.before_NA) // 4 * 2
        chosen = transfer_rates(*(r[:half] for r in readings)) if half else []
        moved = tuple(
            name
            for name, share in zip(self.names, chosen, strict=False)
            if share.value >= MIN_TRANSFER and name not in self.unreadable
        )
        return SwapScore(
            chunks=chunks,
            timesteps=(layout.timestep_starts[min(chunks)], layout.timestep_ends[max(chunks)]),
            shares=dict(zip(self.names, shares, strict=True)),
            mean=Estimate.from_resamples(values_A[read].mean(), draws_RA[:, read].mean(axis=1)) if read else None,
            unexplained=dict(zip(self.names, noise.tolist(), strict=True)),
            moved=moved,
            **self._against_truth(after.pixels, moved, slice(half, None)),
        )

    def _no_drift(self) -> str:
        """Why pixels are not held against the drawing of a perfect exchange, "" where they are."""
        if self.images.factors is None:
            return "how a perfect exchange would look is known for the built-in faces only"
        if len(self.unreadable) > MOST_UNREADABLE:
            unread = len(self.unreadable)
            return f"the classifier cannot read {unread} attributes (at most {MOST_UNREADABLE} may be unread)"
        return ""

    def _against_truth(self, after_NHWC: npt.NDArray[np.uint8], moved: tuple[str, ...], rows: slice) -> dict[str, Any]:
        """Pixels against the drawing of a perfect exchange of the moved factors; nothing where too few are known.

        What the classifier cannot read is left out of that drawing, so that what edits do to it counts as an error.
        """
        if self.images.factors is None or self._no_drift():
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
        low, high = (picture.readings[:, self.readable] for picture in pictures)
        names = [self.names[index] for index in self.readable]
        drift = None
        if self.images.factors is not None:
            factor, column = FACTORS[FACTOR_NAMES.index(name)], FACTOR_NAMES.index(name)
            ends = [self.images.drawn(_setter(column, value)) for value in (factor.low, factor.high)]
            inside = differing(*ends)
            drift = float(np.mean([drift_outside(self.before_NHWC, p.pixels, inside) for p in pictures]))
        return MoveScore(attribute=name, change=change(low, high, names, name), drift=drift)

    def _directions(self) -> Directions:
        features = self.pipeline.encode(normalise(self.images.learn_NCHW)).numpy()
        columns = {name: column for name, column in self.images.columns.items() if name in self.names}
        report = probe_features(features, columns, seed=self.settings.seed, reporter=self.reporter)
        return report.directions

    def _decode(self, z: torch.Tensor) -> Judged:
        return self.decoding.judge(self.x_T, z)


def _setter(column: int, value: float) -> Any:
    def change_factor(factors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        factors[:, column] = value
        return factors

    return change_factor
