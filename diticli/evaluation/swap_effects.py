"""Swap effects: each chunk of B alone goes into A, and an independent attribute classifier says what that changed.

What a probe finds in a chunk need not be what the decoder makes of it; this is the other half of the evidence.
Method: counterfactuals as in Yue et al., ICLR 2024 (arXiv 2401.11430), section 5.2; the scores are ours.

Legend of shape suffixes: N images, A attributes, G groups of chunks, R resamples, D latent dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.chunks import ChunkLayout
from diticli.editing.mixing import check_chunks, mix_chunks
from diticli.editing.stages import grouped
from diticli.errors import ConfigError
from diticli.evaluation.attribute_classifier import AttributeClassifier, unreadable
from diticli.evaluation.decoding import Decoding
from diticli.evaluation.evaluate import blind
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.kept import KeptArrays
from diticli.evaluation.scores import resampled_transfer_rates, to_json
from diticli.evaluation.settings import EvaluationSettings
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Estimate, completeness, concentration, disentanglement, none_if_nan
from diticli.types import DoubleArray

MIN_EFFECT = 0.05
TRANSFER_CENTRE = (
    "transfer centre: mean timestep of the chunks, weighted by the absolute transfer rate of each chunk exchanged alone"
)
"""Caption for terminal, pictures and pages; docs/glossary.md agrees."""
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class SwapEffects:
    """Attributes by groups of chunks: the transfer rate of exchanging the group alone.

    Centres of mass and modularity weigh groups by the absolute share. A group is said to move an attribute when the
    share is at least `MIN_EFFECT` and its interval leaves 0 out; an attribute that no group moves has neither centre
    nor concentration, for both would describe noise.

    Attributes:
        model: its id.
        model_hash: fingerprint of its weights.
        groups: the chunks of each group, from the first timesteps to the last.
        timesteps: range of timesteps of each group, [first, last).
        shares: attribute -> one share per group.
        together: attribute -> transfer rate of exchanging all groups.
        centres: attribute -> timestep of its centre of mass; None where no group moves it.
        concentration: attribute -> 1 when one group alone moves it, 0 when all do alike; None as above.
        selectivity: of each group, 1 when it moves one attribute alone; None when it moves none.
        completeness: mean of `concentration`; see `diticli.statistics`.
        disentanglement: `selectivity` of all groups, weighted by the sum of their shares.
        unreadable: attributes that the classifier predicts poorly: their shares have no intervals, they have no centre
            and no concentration, and count in none of the last three.
        pairs: how many were exchanged, both ways.
        facts: solver, steps.
        centre_draws: [R, A] centres of the resampled pairs, for what is computed from them.
    """

    model: str
    model_hash: str
    groups: Groups
    timesteps: tuple[tuple[int, int], ...]
    shares: dict[str, tuple[Estimate, ...]]
    together: dict[str, Estimate]
    centres: dict[str, Estimate | None]
    concentration: dict[str, float | None]
    selectivity: tuple[float | None, ...]
    completeness: Estimate
    disentanglement: Estimate
    unreadable: tuple[str, ...]
    pairs: int
    facts: dict[str, Any] = field(default_factory=dict)
    centre_draws: DoubleArray = field(repr=False, compare=False)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names, in the classifier's order."""
        return tuple(self.shares)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the draws."""
        json: dict[str, Any] = to_json({k: v for k, v in vars(self).items() if k != "centre_draws"})
        return json


def measure_swap_effects(
    pipeline: DiTiModel,
    images: EvaluationImages,
    classifier: AttributeClassifier,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    pairs: int | None = None,
    settings: EvaluationSettings | None = None,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> SwapEffects:
    """Exchange every chunk (or group of chunks) alone within all pairs, and read what came along.

    The images are inverted once. The cost is one decoding of all of them per group, and two more.

    Args:
        pipeline: the model.
        images: images of the model's resolution.
        classifier: trained on `images.learn_NCHW`.
        groups: chunks that go together; default: every chunk by itself.
        pairs: how many of the judged pairs to exchange; default: all.
        settings: steps, solver, batch size, seed of the bootstrap.
        reporter: receiver of progress.
        kept: where what was decoded and judged before is found.

    Raises:
        ChunkError: for a chunk that the model lacks.
        ConfigError: for fewer than two pairs, or more than there are.
        ModelError: for an encoder alone.
    """
    settings, reporter = settings or EvaluationSettings(), reporter or SilentReporter()
    layout = pipeline.chunks
    chosen = tuple(tuple(sorted(group)) for group in (groups or grouped(layout, layout.chunks)))
    for group in chosen:
        check_chunks(group, layout)
    images_NCHW = images.judge_NCHW[: _images(pairs, len(images.judge_NCHW))]
    decoding = Decoding(pipeline, classifier, settings, reporter, kept or KeptArrays())
    readings = _readings(pipeline, decoding, normalise(images_NCHW), chosen)
    before_NA, after_GNA = readings[0], readings[1:]
    other_NA = before_NA[np.arange(len(before_NA)) ^ 1]
    values_GA, draws_RGA = resampled_transfer_rates(before_NA, after_GNA, other_NA, seed=settings.seed)
    poor = unreadable(classifier)
    return SwapEffects(
        model=pipeline.model_id,
        model_hash=pipeline.model_hash,
        groups=chosen,
        timesteps=tuple((layout.timestep_starts[g[0]], layout.timestep_ends[g[-1]]) for g in chosen),
        unreadable=tuple(poor),
        pairs=len(images_NCHW) // 2,
        facts={
            "steps": settings.steps,
            "steps_run": settings.steps_run(layout.timesteps),
            "solver": settings.solver,
            "seed": settings.seed,
        },
        **_summary(tuple(a.name for a in classifier.attributes), poor, layout, chosen, values_GA, draws_RGA),
    )


def centre_of_mass(effects_GA: DoubleArray, times_G: DoubleArray) -> DoubleArray:
    """Mean time of the groups, weighted by what they do to each attribute: [..., A]; NaN where none does anything."""
    total = effects_GA.sum(axis=-2)
    mass = (effects_GA * times_G[:, None]).sum(axis=-2)
    return np.divide(mass, total, out=np.full_like(total, np.nan), where=total > 0)


def _images(pairs: int | None, images: int) -> int:
    count = images if pairs is None else 2 * pairs
    if not 4 <= count <= images:
        raise ConfigError(
            f"{count // 2} pairs were asked for, and there are {images // 2}.",
            remedy="An interval takes at least 2; ask for no more than there are.",
        )
    return count


def _readings(pipeline: DiTiModel, decoding: Decoding, x0_NCHW: torch.Tensor, groups: Groups) -> DoubleArray:
    """[G + 2, N, A]: of the images under their own features, with each group exchanged, and with all of them."""
    z_ND = pipeline.encode(x0_NCHW)
    everything = tuple(sorted({chunk for group in groups for chunk in group}))
    partners = z_ND[torch.arange(len(z_ND)) ^ 1]
    swapped = [mix_chunks(z_ND, partners, pipeline.chunks, group, 1.0) for group in (*groups, everything)]
    features = torch.cat([z_ND, *swapped])
    # Batches run across groups: few pairs still fill them.
    rows = torch.arange(len(z_ND)).repeat(len(swapped) + 1)
    decoding.reporter.start("Exchanging chunks one by one", len(x0_NCHW) + len(rows), unit="images")
    x_T, size = decoding.invert(x0_NCHW, z_ND), decoding.settings.batch_size
    parts = [decoding.read(x_T[row], z) for row, z in zip(rows.split(size), features.split(size), strict=True)]
    decoding.reporter.finish()
    return np.concatenate(parts).reshape(len(swapped) + 1, len(z_ND), -1)


def _summary(
    names: tuple[str, ...],
    poor: Sequence[str],
    layout: ChunkLayout,
    groups: Groups,
    values: DoubleArray,
    draws: DoubleArray,
) -> dict[str, Any]:
    """Shares with intervals and what follows from them; the last row of `values` is all groups together."""
    shares = [
        blind([Estimate.from_resamples(value, draws[:, g, a]) for a, value in enumerate(row)], names, poor)
        for g, row in enumerate(values.tolist())
    ]
    moves_GA = np.array([[share.differs and share.value >= MIN_EFFECT for share in row] for row in shares[:-1]])
    starts, ends = np.array(layout.timestep_starts), np.array(layout.timestep_ends)
    times_G = np.array([(starts[list(group)] + ends[list(group)]).mean() / 2 for group in groups])
    # The effects themselves are the first sample, those of resampled pairs the others.
    effects_SGA = np.abs(np.concatenate([values[None, :-1], draws[:, :-1]]))
    centres_SA = np.where(moves_GA.any(axis=0), centre_of_mass(effects_SGA, times_G), np.nan)
    return {
        "shares": {name: tuple(row[a] for row in shares[:-1]) for a, name in enumerate(names)},
        "together": dict(zip(names, shares[-1], strict=True)),
        "centres": {
            name: None if np.isnan(centre_S[0]) else Estimate.from_resamples(centre_S[0], centre_S[1:])
            for name, centre_S in zip(names, centres_SA.T, strict=True)
        },
        "centre_draws": centres_SA[1:],
        **_modularity(names, [name not in poor for name in names], moves_GA, effects_SGA),
    }


def _modularity(
    names: tuple[str, ...], readable: Sequence[bool], moves_GA: npt.NDArray[np.bool_], effects_SGA: DoubleArray
) -> dict[str, Any]:
    good_A, moved_A, acting_G = np.array(readable), moves_GA.any(axis=0), moves_GA[:, readable].any(axis=1)
    scores_A = np.where(moved_A, concentration(effects_SGA[0].T), np.nan)
    scores_G = np.where(acting_G, concentration(effects_SGA[0][:, good_A]), np.nan)
    complete_S = completeness(effects_SGA[..., moved_A & good_A])
    disentangled_S = disentanglement(effects_SGA[..., good_A])
    return {
        "concentration": dict(zip(names, map(none_if_nan, scores_A), strict=True)),
        "selectivity": tuple(map(none_if_nan, scores_G)),
        "completeness": Estimate.from_resamples(complete_S[0], complete_S[1:]),
        "disentanglement": Estimate.from_resamples(disentangled_S[0], disentangled_S[1:]),
    }
