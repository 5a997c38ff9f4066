"""Chunk probe: how well each attribute is predicted from a chunk alone, from all others, and from the first ones.

atlas = probe_features(values, columns, meta=meta, atlas=True).atlas
atlas.attributes[0].centre_prefix                # centre of the timesteps at which skill is gained

Skill is the scale of `diticli.probing.resampling`: 0 is the base rate, 1 is everything; R2 for numbers. Intervals are
bootstrap 95 % intervals over test rows, to first order, with the very draws of the probe's table.

The centre of mass of an attribute in t is a weighted mean of the chunks' mid timesteps, in two readings:
- alone: weights are the skills of the chunks alone, where their intervals lie above 0. It says where the attribute is
  found at all. Where nearly every chunk has much of the skill, the mean would be the middle by construction and is left
  out; so it is where all chunks together have none beyond chance.
- prefix: weights are the increments of the skill of chunks 0..k, with their signs, so that chance cancels. It says
  from where on it is found. A timestep of chunk k sees just these chunks, so it is what "lost at t" means for
  features (arXiv 2401.11430, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.chunks import ChunkLayout
from diticli.data.label_columns import Kind
from diticli.probing.fit import same_rows
from diticli.probing.masked_fit import ProbeRows
from diticli.probing.resampling import MEASURES, Measure, skill_of
from diticli.probing.subset_fits import SubsetFits
from diticli.progress import Reporter, say_duration
from diticli.statistics import Bootstrap, Estimate
from diticli.targets import Target
from diticli.types import DoubleArray

Dims = tuple[int, ...]

_FLAT = 0.5
_FEW_CHUNKS = 0.1
"""Share of the chunks, at either end, that may have less or more than the others in a flat row: of 64 noisy skills the
least is always far below the best."""

GAIN_CENTRE = "gain centre: mean timestep of the chunks, weighted by the skill that chunks 0 to k gain with chunk k"
OWN_SKILL_CENTRE = "own-skill centre: mean timestep of the chunks, weighted by the skill of each chunk alone"
AGAINST_THE_IDEA = (
    "By the paper's idea fine details have early gain centres (small t) and coarse attributes late ones. Where coarse "
    "attributes have early ones too, the first chunks hold them already: a chunk learns whatever helps at its "
    "timesteps, not only what noise hides there."
)
"""Captions of the two centres, and how to read the first, for terminal, pictures and pages; docs/glossary.md agrees."""


@dataclass(frozen=True, kw_only=True)
class AttributeChunks:
    """Skill of the chunks for one attribute.

    Attributes:
        name: of the attribute.
        kind: "binary", "number" or "category".
        measure: what skill is made of: r2, average_precision or accuracy.
        base_rate: the measure at skill 0; skill s is the score base_rate + s * (1 - base_rate).
        n_test: test rows of known value.
        all: skill of all chunks together.
        alone: [K] skill of each chunk alone.
        unique: [K] skill that only this chunk has: skill of all minus skill of all others.
        prefix: [K] skill of chunks 0..k.
        flat: whether nearly all chunks alone have at least half the skill of nearly the best one, so that a centre
            would say nothing: it is the middle whatever the attribute is.
        centre_alone: timestep, see the module; None where no chunk alone, or not all together, are above the base rate,
            or all are alike.
        centre_prefix: likewise, None where all chunks together are not.
    """

    name: str
    kind: Kind
    measure: Measure
    base_rate: float
    n_test: int
    all: Estimate
    alone: tuple[Estimate, ...]
    unique: tuple[Estimate, ...]
    prefix: tuple[Estimate, ...]
    flat: bool
    centre_alone: Estimate | None
    centre_prefix: Estimate | None


@dataclass(frozen=True, kw_only=True)
class ChunkProbe:
    """Attributes by chunks.

    Attributes:
        layout: K chunks.
        attributes: in the order of the labels.
    """

    layout: ChunkLayout
    attributes: tuple[AttributeChunks, ...]

    def table(self, part: str) -> DoubleArray:
        """[A, K] values of "alone", "unique" or "prefix"."""
        return np.array([[one.value for one in getattr(item, part)] for item in self.attributes])

    def as_if_flat(self) -> str:
        """Whose own-skill centre may be that of chunks that are all alike, in a sentence; "" where none is."""
        middle = float(_middles(self.layout).mean())
        names = [item.name for item in self.attributes if (c := item.centre_alone) and _holds(c, middle)]
        if not names:
            return ""
        return (
            f"Own-skill centres whose interval holds {middle:.0f} would be there, too, if all chunks were alike: "
            f"{', '.join(names)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form: values, lows and highs of a part as three lists."""
        attributes = [_attribute_dict(item) for item in self.attributes]
        return {"chunks": self.layout.to_dict(), "attributes": attributes, "as_if_flat": self.as_if_flat()}


def probe_chunks(
    targets: Sequence[Target], rows: ProbeRows, layout: ChunkLayout, draws: Bootstrap, reporter: Reporter
) -> ChunkProbe:
    """Fit and score every target on every chunk alone, all but it, and all up to it.

    Costs an eigendecomposition of each of 3 K - 2 subsets for all attributes that are known in the same training
    rows, see `diticli.probing.subset_fits`.

    Args:
        targets: the attributes.
        rows: features of the parts of the split.
        layout: chunks of the features' dimensions.
        draws: resamples of the test rows.
        reporter: receives every fitted subset.
    """
    subsets = _subsets(layout)
    fits = [SubsetFits(together, rows) for together in same_rows(targets, rows.split.train)]
    reporter.start("Atlas of chunks", len(set(subsets)) * len(fits), unit="subsets")
    skills: dict[tuple[str, Dims], _Skill] = {}
    counts = draws.counts().astype(np.uint8) if draws.usable else None
    fitting = scoring = 0.0
    for number, dims in enumerate(dict.fromkeys(subsets)):
        if number == 1:  # all dims are done: fitting takes about the square of their number
            relative = [(len(some) / len(subsets[0])) ** 2 for some in set(subsets)]
            say_duration(reporter, "Atlas of chunks", fitting * (sum(relative) - 1) + scoring * (len(relative) - 1))
        for fit in fits:
            began = time.perf_counter()
            outputs = fit.test_outputs(dims)
            between = time.perf_counter()
            found = _score(outputs, targets, rows, counts)
            fitting, scoring = fitting + between - began, scoring + time.perf_counter() - between
            skills |= {(name, dims): skill for name, skill in found.items()}
            reporter.advance()
    reporter.finish()
    attributes = tuple(
        _attribute(target, [skills[target.name, dims] for dims in subsets], layout, rows) for target in targets
    )
    return ChunkProbe(layout=layout, attributes=attributes)


@dataclass(frozen=True, kw_only=True)
class _Skill:
    """Value, and [B] values on the resamples; NaN where there are none."""

    value: float
    base_rate: float
    resampled: DoubleArray


def _subsets(layout: ChunkLayout) -> list[Dims]:
    """All chunks; then each alone, all but each, and all up to each."""
    chunks = range(layout.chunks)
    chosen = [
        tuple(chunks),
        *((k,) for k in chunks),
        *(tuple(other for other in chunks if other != k) for k in chunks),
        *(tuple(range(k + 1)) for k in chunks),
    ]
    return [tuple(np.flatnonzero(layout.dim_mask(some)).tolist()) for some in chosen]


def _score(
    outputs: Mapping[str, npt.NDArray[np.float32]],
    targets: Sequence[Target],
    rows: ProbeRows,
    counts_BN: npt.NDArray[np.uint8] | None,
) -> dict[str, _Skill]:
    own = [target for target in targets if target.name in outputs]
    skills = [skill_of(target, rows.split.test, outputs[target.name]) for target in own]
    moved = np.full((1, len(own)), np.nan)
    if counts_BN is not None:
        influence_NA = np.stack([skill.influence for skill in skills], axis=1).astype(np.float32)
        moved = np.concatenate([block @ influence_NA for block in _floats(counts_BN)]).astype(np.float64)
    return {
        target.name: _Skill(value=skill.value, base_rate=skill.base_rate, resampled=skill.value + moved[:, i])
        for i, (target, skill) in enumerate(zip(own, skills, strict=True))
    }


def _floats(counts_BN: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
    return [block.astype(np.float32) for block in np.array_split(counts_BN, max(1, counts_BN.size // 2**22))]


def _attribute(target: Target, skills: Sequence[_Skill], layout: ChunkLayout, rows: ProbeRows) -> AttributeChunks:
    values = np.array([skill.value for skill in skills])
    resampled_SB = np.stack([skill.resampled for skill in skills])
    alone, others, prefix = (slice(1 + i * layout.chunks, 1 + (i + 1) * layout.chunks) for i in range(3))
    estimates = [Estimate.from_resamples(value, many) for value, many in zip(values, resampled_SB, strict=True)]
    lost = zip(values[0] - values[others], resampled_SB[0] - resampled_SB[others], strict=True)
    middles = _middles(layout)
    read, *found_alone = map(_above_zero, (estimates[0], *estimates[alone]))
    found = np.array(found_alone)
    flat = bool(found.mean() >= 1 - _FEW_CHUNKS and _alike(values[alone]))
    return AttributeChunks(
        name=target.name,
        kind=target.kind,
        measure=MEASURES[target.kind],
        base_rate=skills[0].base_rate,
        n_test=len(target.known(rows.split.test)),
        all=estimates[0],
        alone=tuple(estimates[alone]),
        unique=tuple(Estimate.from_resamples(value, many) for value, many in lost),
        prefix=tuple(estimates[prefix]),
        flat=flat,
        centre_alone=None
        if flat or not read
        else _centre(middles, *(_gated(many[alone], found) for many in (values, resampled_SB))),
        centre_prefix=_centre(middles, *(_rises(many[prefix]) for many in (values, resampled_SB))) if read else None,
    )


def _middles(layout: ChunkLayout) -> DoubleArray:
    """[K] mid timesteps of the chunks."""
    return (np.array(layout.timestep_starts) + np.array(layout.timestep_ends)) / 2


def _holds(estimate: Estimate, value: float) -> bool:
    return estimate.low is not None and estimate.high is not None and estimate.low <= value <= estimate.high


def _above_zero(estimate: Estimate) -> bool:
    return (estimate.value if estimate.low is None else estimate.low) > 0


def _alike(skills_K: DoubleArray) -> bool:
    """Whether the skills differ by no more than a factor of two, a few aside; of up to ten chunks none is aside."""
    low = np.quantile(skills_K, _FEW_CHUNKS, method="lower")
    high = np.quantile(skills_K, 1 - _FEW_CHUNKS, method="higher")
    return bool(low >= _FLAT * high)


def _gated(skills: DoubleArray, found_K: npt.NDArray[np.bool_]) -> DoubleArray:
    """Positive skills [K] or [K, B], 0 where they may be chance: noise would pull the centre inwards."""
    return (np.maximum(skills, 0).T * found_K).T


def _rises(prefix: DoubleArray) -> DoubleArray:
    """Increments along the chunks, [K] or [K, B], from 0 on."""
    return np.diff(prefix, axis=0, prepend=0.0)


def _centre(middles_K: DoubleArray, weights_K: DoubleArray, resampled_KB: DoubleArray) -> Estimate | None:
    """Weighted mean, held within the middles: where skill falls with more chunks, weights are negative."""
    if not weights_K.sum() > 0:
        return None
    totals = resampled_KB.sum(axis=0)
    many = (middles_K @ resampled_KB) / np.where(totals > 0, totals, np.nan)
    ends = middles_K[0], middles_K[-1]
    return Estimate.from_resamples(np.clip(middles_K @ weights_K / weights_K.sum(), *ends), np.clip(many, *ends))


def _attribute_dict(item: AttributeChunks) -> dict[str, Any]:
    facts = asdict(item)
    for part in ("alone", "unique", "prefix"):
        facts[part] = {key: [one[key] for one in facts[part]] for key in ("value", "low", "high")}
    return facts
