"""Disentanglement scores of all entries over several seeds, with intervals: what papers on disentanglement report.

Each seed draws its own split, rows, votes and trees. The units are the dims, and the chunks by the rule of
`diticli.disentanglement.components`.

Intervals (95 %, Student's t): over the runs of a method, each averaged over the seeds, where there are several runs;
else over the seeds, whose splits share rows (`diticli.statistics.mean_of_runs`). Such an interval says nothing of other
trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diticli.comparison.encoding import FeatureStore
from diticli.comparison.entries import Entry
from diticli.comparison.probes import METRIC_DIMS
from diticli.comparison.protocol import Protocol
from diticli.comparison.scores import ALPHA
from diticli.comparison.split_features import features_under
from diticli.data.splits import split_rows
from diticli.disentanglement import DisentanglementReport, measure_disentanglement
from diticli.disentanglement.components import first_components
from diticli.evaluation.scores import to_json
from diticli.identity import cache_key
from diticli.progress import Reporter
from diticli.sealed import keep_result, kept_result
from diticli.statistics import Estimate, difference_p, holm, mean_of_runs
from diticli.types import DoubleArray

MEASURES = {
    "Factor VAE": "factor_vae",
    "D": "disentanglement",
    "MIG": "mig",
    "SAP": "sap",
    "TAD": "tad",
    "InfoM": "info_modularity",
    "InfoC": "info_compactness",
    "InfoE": "info_explicitness",
    "C": "completeness",
    "I": "informativeness",
}
"""Headings of the table, and the keys of `DisentanglementReport.to_dict()`."""
UNITS = ("dims", "chunks")

Scores = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class SeedScores:
    """Scores of one entry and seed.

    Attributes:
        units: "dims" or "chunks" -> their number and their scores.
        note: how the features were chosen, where they were.
    """

    units: dict[str, Scores]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one method.

    Attributes:
        estimate: mean and 95 % interval.
        values: of each run and seed, NaN where undefined.
        p: two-sided, of the difference to the first method, adjusted for several methods (Holm); None where there is
            nothing to test.
        verdict: "better" or "worse" than the first method where `p` is below `ALPHA`, else "".
    """

    estimate: Estimate
    values: tuple[tuple[float, ...], ...]
    p: float | None = None
    verdict: str = ""


@dataclass(frozen=True, kw_only=True)
class MethodScores:
    """All scores of a method.

    Attributes:
        name: of the method.
        runs: names of its entries.
        over: what its intervals are over, e.g. "3 runs".
        units: "dims" or "chunks" -> how many of them vary.
        scores: "dims" or "chunks" -> key of a measure -> what was measured.
    """

    name: str
    runs: tuple[str, ...]
    over: str
    units: dict[str, int]
    scores: dict[str, dict[str, Measured]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """The scores of all methods.

    Attributes:
        seeds: of splits and draws.
        drawn: whether each seed draws a split; a given split stays the same.
        methods: in the order of the table.
        notes: what a reader should know.
    """

    seeds: tuple[int, ...]
    drawn: bool
    methods: tuple[MethodScores, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        facts = {"seeds": self.seeds, "splits": "drawn" if self.drawn else "given", "notes": self.notes}
        found: dict[str, Any] = to_json(facts | {"methods": [vars(method) for method in self.methods]})
        return found


class BenchmarkStore:
    """Scores of entries by seed in one folder, each under a hash of features, split and seed.

    Args:
        folder: made when something is written.
        features: of the entries.
        protocol: of the first seed; the others draw their own splits, unless it is given.
        seed: the first one.
        count: of seeds.
        entries: all of them; untrained encoders take the chunks of the first model.
    """

    def __init__(
        self,
        folder: Path,
        features: FeatureStore,
        protocol: Protocol,
        *,
        seed: int,
        count: int,
        entries: Sequence[Entry],
    ) -> None:
        self.folder, self.features, self.drawn = folder, features, protocol.seed is not None
        self.seeds = tuple(range(seed, seed + count))
        self.protocols = {seed: protocol}
        for other in self.seeds[1:]:
            split = split_rows(len(protocol.images), groups=protocol.groups, seed=other)
            self.protocols[other] = replace(protocol, split=split, seed=other) if self.drawn else protocol
        self._first = next((entry for entry in entries if entry.spec.kind == "model"), None)

    def measurable(self, entry: Entry) -> bool:
        """Whether its dims are few enough."""
        return entry.dims <= METRIC_DIMS

    def has(self, entry: Entry) -> bool:
        """Whether all seeds are done."""
        return not self.measurable(entry) or all(self._path(entry, seed).is_file() for seed in self.seeds)

    def make(self, entry: Entry, reporter: Reporter) -> None:
        """Measure the seeds that are missing.

        Raises:
            DiTiError: as `measure_disentanglement` and `features_under`; DataError when it cannot be written.
        """
        for seed in self.seeds if self.measurable(entry) else ():
            path = self._path(entry, seed)
            if not path.is_file():
                found = self._measure(entry, seed, reporter)
                keep_result(path, "scores", to_json(vars(found)))

    def read(self, entry: Entry) -> list[SeedScores]:
        """One item a seed; damaged ones are made again.

        Raises:
            DiTiError: as `make`.
        """
        return [self._read(entry, seed) for seed in self.seeds]

    def _read(self, entry: Entry, seed: int) -> SeedScores:
        path = self._path(entry, seed)
        try:
            data = kept_result(path)
            units = {name: dict(data["units"][name]) for name in UNITS if name in data["units"]}
            return SeedScores(units=units, note=str(data["note"]))
        except (OSError, ValueError, KeyError, TypeError):
            path.unlink(missing_ok=True)
            self.make(entry, self.features.reporter)
            return self._read(entry, seed)

    def _measure(self, entry: Entry, seed: int, reporter: Reporter) -> SeedScores:
        protocol = self.protocols[seed]
        own = features_under(protocol, self.features, entry, seed=seed, reporter=reporter)
        values = np.asarray(own.values[own.rows], dtype=np.float32)

        def scores(codes: Any) -> Scores:
            found = measure_disentanglement(codes, protocol.columns, protocol.split, seed=seed, reporter=reporter)
            return _scores(found)

        units = {"dims": scores(values)}
        layout = entry.layout
        if entry.spec.kind == "untrained" and self._first is not None and self._first.dims == values.shape[1]:
            layout = self._first.layout
        if layout is not None and layout.chunks > 1:
            units["chunks"] = scores(first_components(values, layout, protocol.split.train))
        return SeedScores(units=units, note=own.note)

    def _path(self, entry: Entry, seed: int) -> Path:
        facts = [entry.spec.kind, entry.dims, self.features.key(entry), self.protocols[seed].digest, seed]
        layout = None if self._first is None or self._first.layout is None else self._first.layout.to_dict()
        return self.folder / f"{cache_key('benchmark', *facts, layout)}.json"


def _scores(report: DisentanglementReport) -> Scores:
    whole = report.to_dict()
    found = whole | dict(whole["dims"])
    return {"units": found["units"]} | {key: found.get(key) for key in MEASURES.values()}


def summarise(store: BenchmarkStore, entries: Sequence[Entry]) -> Benchmark:
    """Means, intervals and tests from what the store holds.

    Raises:
        DiTiError: as `BenchmarkStore.make`.
    """
    kept = [entry for entry in entries if store.measurable(entry)]
    seeds = {entry.name: store.read(entry) for entry in kept}
    methods: dict[str, list[str]] = {}
    for entry in kept:
        methods.setdefault(entry.spec.method or entry.name, []).append(entry.name)
    split = store.protocols[store.seeds[0]].split
    overlap = len(split.test) / len(split.train) if store.drawn else 0.0
    tables = {
        name: {kind: _matrices([seeds[run] for run in runs], kind) for kind in UNITS} for name, runs in methods.items()
    }
    if not tables:
        return Benchmark(seeds=store.seeds, drawn=store.drawn, methods=(), notes=_notes(store, entries, seeds))
    tests, first = _tests(tables, overlap), next(iter(tables.values()))
    alone = f"{len(store.seeds)} {'splits' if store.drawn else 'draws'}"
    found = []
    for name, runs in methods.items():
        scores = {
            kind: {
                key: _measured(values, first[kind].get(key), tests.get((name, kind, key)), overlap)
                for key, values in matrices.items()
                if key != "units"
            }
            for kind, matrices in tables[name].items()
            if matrices
        }
        units = {kind: int(tables[name][kind]["units"].max()) for kind in scores}
        over = f"{len(runs)} runs" if len(runs) > 1 else alone
        found.append(MethodScores(name=name, runs=tuple(runs), over=over, units=units, scores=scores))
    return Benchmark(seeds=store.seeds, drawn=store.drawn, methods=tuple(found), notes=_notes(store, entries, seeds))


def _measured(values_RS: DoubleArray, first_RS: DoubleArray | None, p: float | None, overlap: float) -> Measured:
    verdict = ""
    if p is not None and p < ALPHA and first_RS is not None:
        verdict = "better" if values_RS.mean() > first_RS.mean() else "worse"
    values = tuple(map(tuple, values_RS.tolist()))
    return Measured(estimate=mean_of_runs(values_RS, overlap), values=values, p=p, verdict=verdict)


def _notes(
    store: BenchmarkStore, entries: Sequence[Entry], seeds: Mapping[str, Sequence[SeedScores]]
) -> tuple[str, ...]:
    """What each seed chose, and what is too wide."""
    notes = [
        f"Seed {seed}, {item.note}"
        for found in seeds.values()
        for seed, item in zip(store.seeds, found, strict=True)
        if item.note
    ]
    if wide := [entry.name for entry in entries if not store.measurable(entry)]:
        notes.append(f"Not measured, since they have more than {METRIC_DIMS:,} dims: {', '.join(wide)}.")
    return tuple(notes)


def _matrices(runs: Sequence[Sequence[SeedScores]], kind: str) -> dict[str, DoubleArray]:
    """Key -> [runs, seeds] of the runs that have such units; empty where none has."""
    having = [run for run in runs if all(kind in item.units for item in run)]
    keys = ("units", *MEASURES.values()) if having else ()
    return {
        key: np.array([[_number(item.units[kind].get(key)) for item in run] for run in having], dtype=np.float64)
        for key in keys
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _tests(
    tables: Mapping[str, Mapping[str, Mapping[str, DoubleArray]]], overlap: float
) -> dict[tuple[str, str, str], float]:
    """Adjusted p of each method's difference to the first one."""
    first, *others = tables
    adjusted: dict[tuple[str, str, str], float] = {}
    for kind in UNITS:
        for key in MEASURES.values():
            if key not in tables[first][kind]:
                continue
            found = {
                name: difference_p(tables[first][kind][key], tables[name][kind][key], overlap)
                for name in others
                if key in tables[name][kind]
            }
            known = {name: p for name, p in found.items() if p is not None}
            for name, p in zip(known, holm(list(known.values())), strict=True):
                adjusted[name, kind, key] = p
    return adjusted
