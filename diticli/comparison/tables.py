"""Tables of a comparison, for the terminal and the report alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from diticli.comparison.benchmark import MEASURES, Benchmark, Measured
from diticli.comparison.charts import METRIC_NAMES
from diticli.comparison.run import Comparison
from diticli.comparison.scores import METRICS, Difference
from diticli.evaluation.attribute_classifier import READABLE
from diticli.evaluation.evidence_tables import digits
from diticli.pictures.report import Cell
from diticli.statistics import Estimate, decimals

Table = tuple[list[str], list[list[Cell]]]
METRIC_COLUMNS = {
    "DCI I": "informativeness",
    "D": "disentanglement",
    "C": "completeness",
    "MIG": "mig",
    "SAP": "sap",
    "FactorVAE": "factor_vae",
    "modularity": "modularity",
    "explicitness": "explicitness",
    "TAD": "tad",
    "captured": "captured",
    "InfoM": "info_modularity",
    "InfoC": "info_compactness",
    "InfoE": "info_explicitness",
}
"""Headings, and keys of `DisentanglementReport.to_dict()`."""
STATISTIC_COLUMNS = {
    "dims": "dims",
    "active": "active_dims",
    "effective rank": "effective_rank",
    "participation ratio": "participation_ratio",
    "correlation between chunks": "mean_chunk_correlation",
}
"""Headings, and keys of `FeatureStatistics.to_dict()`."""
MARKS = {"better": " +", "worse": " -", "no clear difference": ""}


def score_table(result: Comparison) -> Table:
    """A row for each entry: dims, and means with 95 % intervals."""
    kinds = list(next(iter(result.scores.values())).means)
    columns = ["entry", "dims"]
    columns += [f"{METRIC_NAMES[m]}" for kind in kinds for m in shown(kind)]
    rows: list[list[Cell]] = []
    for entry in result.entries:
        means = result.scores[entry.name].means
        dims = result.probed[entry.name].report["latent_dim"]
        rows.append([entry.name, dims, *(means[kind][m].text() for kind in kinds for m in shown(kind))])
    return columns, rows


def shown(kind: Any) -> Sequence[str]:
    """Metrics of a kind that the table has room for."""
    return [metric for metric in METRICS[kind] if metric != "roc_auc"]


def difference_table(result: Comparison) -> Table:
    """A row for each entry and metric: its difference to the first entry, and whether that is real."""
    columns = ["entry", "metric", "difference", "95 % interval", "p", "p, adjusted", "verdict"]
    rows: list[list[Cell]] = []
    for name, own in result.scores.items():
        for kind, found in own.differences.items():
            for metric in shown(kind):
                if (item := found[metric]) is not None:
                    rows.append([name, METRIC_NAMES[metric], *_difference_cells(item)])
    return columns, rows


def attribute_table(result: Comparison) -> Table:
    """A row for each attribute, a column for each entry; + and - mark what differs from the first entry."""
    columns = ["attribute", "metric", *result.scores]
    first = next(iter(result.scores.values()))
    rows: list[list[Cell]] = []
    for name, metrics in first.attributes.items():
        metric = next(iter(metrics))
        cells = [_marked(own.attributes[name][metric], own.by_attribute.get(name)) for own in result.scores.values()]
        rows.append([name, METRIC_NAMES[metric], *cells])
    return columns, rows


def entry_table(result: Comparison) -> Table:
    """What each entry is."""
    columns = ["entry", "what it is", "dims", "weights", "source"]
    rows: list[list[Cell]] = []
    for entry in result.entries:
        dims = result.probed[entry.name].report["latent_dim"]
        source = entry.spec.source or "built in"
        rows.append([entry.name, entry.describe(), dims, entry.model_hash or None, source])
    return columns, rows


def metric_table(result: Comparison) -> Table:
    """Disentanglement, a row for each entry that has been measured, and one more where chunks are units."""
    columns = ["entry", "units", *METRIC_COLUMNS]
    rows: list[list[Cell]] = []
    for name, probed in result.probed.items():
        found = probed.report.get("disentanglement") or {}
        for units in ("dims", "chunks"):
            if own := found.get(units):
                whole = {key: found.get(key) for key in ("informativeness", "explicitness", "info_explicitness")}
                own = whole | own | {"captured": len(own["captured"])}
                cells = [_short(own.get(key)) for key in METRIC_COLUMNS.values()]
                rows.append([name, f"{own['units']} {units}", *cells])
    return columns, rows


def benchmark_table(result: Benchmark, kind: str | None = None) -> Table:
    """A row for each method: mean of each measure, half its 95 % interval, + or - where it is clearly better or worse.

    Args:
        result: the scores.
        kind: "dims" or "chunks" for one kind of units; None for both, named in a column of their own.
    """
    columns = ["entry", *([] if kind else ["units"]), *MEASURES, "over"]
    rows: list[list[Cell]] = []
    for method in result.methods:
        for name, scores in method.scores.items():
            if kind in (None, name):
                units: list[Cell] = [] if kind else [f"{method.units[name]} {name}"]
                cells = [_with_half(scores[key], 2 if kind else 3) for key in MEASURES.values()]
                rows.append([method.name, *units, *cells, method.over])
    return columns, rows


def _with_half(found: Measured, digits: int) -> str | None:
    score = found.estimate
    if math.isnan(score.value):
        return None
    mark = MARKS[found.verdict].strip() if found.verdict else ""
    half = "" if score.high is None else f" ±{score.high - score.value:.{digits}f}"
    return f"{score.value:.{digits}f}{mark}{half}"


def statistics_table(result: Comparison) -> Table:
    """How the features vary, without labels, a row for each entry."""
    rows: list[list[Cell]] = []
    for name, probed in result.probed.items():
        if found := probed.report.get("statistics"):
            rows.append([name, *(_short(found.get(key)) for key in STATISTIC_COLUMNS.values())])
    return ["entry", *STATISTIC_COLUMNS], rows


def centre_table(found: Mapping[str, Any]) -> Table:
    """Centres, in timesteps, of what one entry's chunks predict of each attribute.

    Args:
        found: `ChunkProbe.to_dict()`.
    """
    columns = [
        "attribute",
        "skill of all chunks",
        "gain centre t",
        "own-skill centre t",
    ]
    rows: list[list[Cell]] = []
    for item in found["attributes"]:
        row: list[Cell] = [item["name"], Estimate(**item["all"]).text(most=2)]
        for key in ("centre_prefix", "centre_alone"):
            centre = item[key]
            flat = key == "centre_alone" and item.get("flat", False)
            row.append(("every chunk" if flat else None) if centre is None else Estimate(**centre).text(most=0))
        rows.append(row)
    return columns, rows


def swap_table(result: Comparison) -> Table:
    """A row for each model: mean transfer rate of each quarter of its chunks, and of all."""
    columns = ["entry", "chunks", "timesteps", "mean transfer rate", "most", "least", "other change"]
    rows: list[list[Cell]] = []
    for name, found in result.swaps.items():
        for swap in found["swaps"]:
            shares = {attribute: swap["shares"][attribute]["value"] for attribute in readable(found)}
            best, worst = max(shares, key=shares.__getitem__), min(shares, key=shares.__getitem__)
            other = [value for key in shares if (value := swap["unexplained"][key]) is not None]
            row: list[Cell] = [name, _chunk_text(swap["chunks"]), f"{swap['timesteps'][0]}-{swap['timesteps'][1] - 1}"]
            mean = Estimate(**swap["mean"]).text(most=2) if swap["mean"] else digits(sum(shares.values()) / len(shares))
            row += [mean, f"{best} {digits(shares[best])}", f"{worst} {digits(shares[worst])}"]
            rows.append([*row, digits(sum(other) / len(other) if other else None)])
    return columns, rows


def readable(found: Mapping[str, Any]) -> list[str]:
    """Attributes that the attribute classifier behind the exchanges reads well enough; all where it reads none."""
    names = list(found["swaps"][0]["shares"])
    return [name for name in names if (found["reader"].get(name) or 0) >= READABLE] or names


def _difference_cells(item: Difference) -> list[Cell]:
    count = decimals(item.low, item.high)
    value, low, high = (f"{round(v, count) + 0.0:+.{count}f}" for v in (item.value, item.low, item.high))
    return [value, f"[{low}, {high}]", f"{item.p:.3f}", f"{item.adjusted_p:.3f}", item.verdict]


def _short(value: Any) -> Cell:
    """A score without interval."""
    return digits(value) if isinstance(value, float) else value


def _marked(score: Estimate, found: Difference | None) -> str:
    return score.number() + ("" if found is None else MARKS[found.verdict])


def _chunk_text(chunks: Sequence[int]) -> str:
    return str(chunks[0]) if len(chunks) == 1 else f"{chunks[0]}-{chunks[-1]}"
