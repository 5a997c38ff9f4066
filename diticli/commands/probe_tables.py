"""Tables of `diti probe`: scores of attributes, disentanglement, what chunks know, how features vary."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from diticli.commands.console import say, show_table
from diticli.probing.read_scores import SHORT

if TYPE_CHECKING:
    from pathlib import Path

    from diticli.chunks import ChunkLayout
    from diticli.disentanglement import DisentanglementReport, FeatureStatistics
    from diticli.probing.chunk_probe import AttributeChunks, ChunkProbe
    from diticli.probing.report import AttributeReport, ProbeReport
    from diticli.statistics import Estimate, Interval

COLUMNS = ["attribute", "kind", "metric", "value", "95 %", "base rate", "MSE", "R2", "fit"]
BUSIEST = 3
MOST_ROWS, BEST_ROWS = 44, 24
"""Attributes of a kind that a terminal shows, and the best of them; CelebA's 40 are shown whole."""
UNITS = (
    ("DCI disentanglement", "disentanglement"),
    ("DCI completeness", "completeness"),
    ("DCI disentanglement, lasso", "linear_disentanglement"),
    ("DCI completeness, lasso", "linear_completeness"),
    ("MIG", "mig"),
    ("SAP", "sap"),
    ("FactorVAE score", "factor_vae"),
    ("modularity", "modularity"),
    ("InfoM", "info_modularity"),
    ("InfoC", "info_compactness"),
    ("TAD", "tad"),
)


def show_scores(report: ProbeReport, where: Path) -> None:
    """Linear probes of all attributes, and their means; on a terminal the best and the least of very many.

    Args:
        report: the scores.
        where: the file that holds all of them.
    """
    from diticli.probing.linear import MAX_ITERATIONS

    columns = [*COLUMNS, *_mask_columns(report)]
    rows: list[list[str]] = []
    shortened = 0
    for kind, means in report.means.items():
        alike = [item for item in report.attributes if item.kind == kind]
        own = [_row(item) for item in sorted(alike, key=lambda item: -item.value)]
        if _on_terminal() and (hidden := len(own) - MOST_ROWS) > 0:
            between_them = [f"… {hidden + 1} others", *[""] * (len(columns) - 1)]
            own[BEST_ROWS : BEST_ROWS + hidden + 1] = [between_them]
            shortened += hidden + 1
        rows += [*own, _mean_row(kind, alike[0].metric, means, report.mean_intervals.get(kind, {}))]
    rows.sort(key=lambda row: row[0].startswith("mean of"))
    metrics = {SHORT[item.metric] for item in report.attributes}
    same = () if len(metrics) > 1 else ("kind", "metric")
    used = [i for i, name in enumerate(columns) if name not in same and any(row[i] for row in rows)]
    shown = [[row[i] for i in used] for row in rows]
    title = "Linear probe, test rows" + (f": {min(metrics)}" if same else "")
    show_table(title, [columns[i] for i in used], shown, spare=["MSE", "kind", "base rate"])
    if shortened:
        say(f"{shortened} attributes are not shown; {where} holds all.")
    for doubt in report.doubts():
        say(doubt)
    if names := [item.name for item in report.attributes if not _converged(item)]:
        say(
            f"Not converged within {MAX_ITERATIONS} iterations: {', '.join(names)}. Their scores may be off: look for "
            "features of very unequal size or outliers."
        )
    for skipped in report.skipped:
        say(f"Not probed: {skipped.name} ({skipped.reason}).")


def _on_terminal() -> bool:
    return sys.stdout.isatty()


def _mask_columns(report: ProbeReport) -> list[str]:
    count = next((len(item.masked.dims) for item in report.attributes if item.masked), 0)
    return [f"{count} dims", f"{count} by weight", f"{BUSIEST} busiest chunks"] if count else []


def _row(item: AttributeReport) -> list[str]:
    interval = None if item.low is None or item.high is None else (item.low, item.high)
    row = [item.name, item.kind, SHORT[item.metric], *_numbers(item.value, interval, item.base_rate, item.extras)]
    row.append("" if _converged(item) else "not converged")
    if item.masked is None:
        return row
    return [*row, f"{item.masked.value:.3f}", f"{item.masked.by_weight:.3f}", _busiest(item.masked.per_chunk)]


def _mean_row(kind: str, metric: str, means: Mapping[str, float], intervals: Mapping[str, Interval]) -> list[str]:
    name = f"mean of {means['attributes']:.0f}"
    row = [name, kind, SHORT[metric], *_numbers(means[metric], intervals.get(metric), means["base_rate"], means)]
    row.append("")
    if f"masked_{metric}" not in means:
        return row
    return [*row, f"{means[f'masked_{metric}']:.3f}", f"{means[f'by_weight_{metric}']:.3f}", ""]


def _converged(item: AttributeReport) -> bool:
    return item.converged and (item.masked is None or item.masked.converged)


def _busiest(per_chunk: Sequence[int]) -> str:
    """The chunks that own most of the chosen dims, with how many."""
    order = sorted((chunk for chunk, count in enumerate(per_chunk) if count), key=lambda c: (-per_chunk[c], c))
    return ", ".join(f"{chunk}: {per_chunk[chunk]}" for chunk in order[:BUSIEST])


def _numbers(value: float, interval: Interval | None, base_rate: float, extras: Mapping[str, float]) -> list[str]:
    """Numbers have errors (of the standardised target), the other kinds a base rate."""
    if "r2" in extras:
        return [f"{value:.3f}", between(interval), "", f"{extras['mse']:.3f}", f"{extras['r2']:.3f}"]
    return [f"{value:.3f}", between(interval), f"{base_rate:.3f}", "", ""]


def between(interval: Interval | None) -> str:
    """An interval in a cell, which no line breaks; empty when there is none."""
    return "" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}"


def show_disentanglement(report: DisentanglementReport) -> None:
    """Scores on dims, and on chunks where they are known."""
    units = [report.dims] if report.chunks is None else [report.dims, report.chunks]
    rows = [[label, *(_score(getattr(unit, field)) for unit in units)] for label, field in UNITS]
    rows += [
        ["attributes captured (TAD)", *(f"{len(unit.captured)} of {unit.considered}" for unit in units)],
        ["DCI informativeness", *[f"{report.informativeness:.3f}"] * len(units)],
        ["explicitness", *[f"{report.explicitness:.3f}"] * len(units)],
        ["InfoE", *[f"{report.info_explicitness:.3f}"] * len(units)],
        ["units that vary", *(f"{unit.units}" for unit in units)],
    ]
    title = f"Disentanglement of {len(report.factors)} factors"
    show_table(title, ["metric", "dims", "chunks"][: 1 + len(units)], rows)
    for part in ("lasso", "explicitness", "InfoE"):
        if names := [factor.name for factor in report.factors if part in factor.not_converged]:
            say(f"Not converged: {part} of {', '.join(names)}. These scores may be off.")
    for skipped in report.skipped:
        say(f"No factor: {skipped.name} ({skipped.reason}).")


def show_atlas(atlas: ChunkProbe) -> None:
    """Skill of the chunks for each attribute, in the order of the gain centres."""
    from diticli.probing.chunk_probe import AGAINST_THE_IDEA, GAIN_CENTRE, OWN_SKILL_CENTRE

    items = sorted(atlas.attributes, key=lambda item: item.centre_prefix.value if item.centre_prefix else float("inf"))
    columns = ["attribute", "skill of all", "best alone", "most unique", "gain centre t", "own-skill centre t"]
    show_table(
        "Skill of chunks: 0 is the base rate, 1 everything",
        columns,
        [_atlas_row(item) for item in items],
        spare=["most unique"],
    )
    say(
        "Skill is R2 for numbers; for others the share of the way from the base rate to 1, of the average precision "
        "(binary) or of the share that is right (categories), by linear models in closed form: not the scores above. "
        f"With 95 % intervals: {GAIN_CENTRE}; {OWN_SKILL_CENTRE}. None: all chunks together do not surely "
        f"read it, or no chunk alone does. {AGAINST_THE_IDEA}"
    )
    if alike := atlas.as_if_flat():
        say(alike)


def show_statistics(statistics: FeatureStatistics, layout: ChunkLayout | None) -> None:
    """How features vary, chunk by chunk."""
    say(describe_statistics(statistics))
    if layout is None:
        return
    rows = []
    for k, chunk in enumerate(statistics.chunks):
        others = [value for other, value in enumerate(statistics.chunk_correlation[k]) if other != k]
        rows.append(
            [
                f"{k}",
                f"{layout.timestep_starts[k]}-{layout.timestep_ends[k] - 1}",
                f"{chunk.dims}",
                f"{chunk.active_dims}",
                f"{chunk.share:.1%}",
                f"{chunk.effective_rank:.2f}",
                f"{sum(others) / len(others):.3f}" if others else "",
            ]
        )
    columns = ["chunk", "timesteps", "dims", "active", "variance", "effective rank", "correlation with others"]
    show_table("Features by chunk", columns, rows, spare=["active", "dims"])


def describe_statistics(statistics: FeatureStatistics) -> str:
    """One line of them."""
    text = (
        f"Features: {statistics.active_dims} of {statistics.dims} dims active, effective rank "
        f"{statistics.effective_rank:.1f}"
    )
    if statistics.mean_chunk_correlation is None:
        return text + "."
    return text + f", mean correlation between chunks {statistics.mean_chunk_correlation:.3f}."


def _atlas_row(item: AttributeChunks) -> list[str]:
    alone, own = (max(range(len(part)), key=lambda k: part[k].value) for part in (item.alone, item.unique))
    return [
        item.name,
        item.all.number(most=2),
        _best(item.alone[alone].value, alone),
        _best(item.unique[own].value if item.unique[own].differs else 0, own),
        _centre(item.centre_prefix),
        "in every chunk" if item.flat else _centre(item.centre_alone),
    ]


def _best(skill: float, chunk: int) -> str:
    return f"{skill:.2f} in {chunk}" if round(skill, 2) > 0 else "none"


def _centre(centre: Estimate | None) -> str:
    return "none" if centre is None else centre.text(most=0)


def _score(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
