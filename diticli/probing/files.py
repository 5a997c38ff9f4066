"""Write a probe's results into one folder: report, classifiers, directions to edit along, and heatmaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diticli._version import __version__
from diticli.chunks import ChunkLayout
from diticli.disentanglement import FeatureStatistics
from diticli.errors import DataError
from diticli.files import write_json
from diticli.pictures.heatmaps import MAX_TEXT_CHUNKS, Mark, chunk_heatmap
from diticli.probing.chunk_probe import AGAINST_THE_IDEA, GAIN_CENTRE, OWN_SKILL_CENTRE, ChunkProbe
from diticli.probing.directions import save_directions
from diticli.probing.linear_probe import save_probe
from diticli.probing.report import ProbeReport
from diticli.statistics import Estimate

REPORT_NAME = "report.json"
PROBE_NAME = "probe.safetensors"
PICTURES = ("atlas-alone.png", "atlas-unique.png", "atlas-prefix.png", "chunk-correlation.png")
"""Those of an earlier probe go with its report: a new one need not draw them."""


def write_report(report: ProbeReport, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files, each by a rename; returns what `report.json` holds. An atlas also gets its heatmaps.

    Args:
        report: of `probe_features`.
        folder: made when missing.
        facts: where the rows came from; goes first in the report.

    Raises:
        DataError: when the folder cannot be written.
        FeatureFileError: when the probe cannot be written.
    """
    data = _write_json(folder, {**facts, **report.to_dict()})
    save_probe(report.probe, folder / PROBE_NAME)
    save_directions(report.directions, folder)
    if report.atlas is not None:
        draw_atlas(report.atlas, folder)
        if report.statistics is not None:
            draw_statistics(report.statistics, report.atlas.layout, folder)
    return data


def write_statistics(
    statistics: FeatureStatistics, layout: ChunkLayout | None, folder: Path, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `report.json` of features without labels, and the correlation of their chunks; as `write_report`.

    Raises:
        DataError: when the folder cannot be written.
    """
    data = _write_json(folder, {**facts, "statistics": statistics.to_dict()})
    if layout is not None and layout.chunks > 1:
        draw_statistics(statistics, layout, folder)
    return data


def _write_json(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    data = {"version": __version__, **facts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in PICTURES if (folder / REPORT_NAME).exists() else ():
            (folder / name).unlink(missing_ok=True)
        write_json(folder / REPORT_NAME, data, indent=1, allow_nan=False)
    except OSError as error:
        raise DataError(f"Cannot write into {folder} ({error}).", remedy="Name another folder.") from error
    return data


SCALE = (
    "Skill: R2 of numbers; of others the share of the way from the base rate to 1, in average precision (binary) or "
    "rows that are right (categories). Test rows"
)
LEAST_UNIQUE = 0.25
"""Skill of the darkest colour at least: a few test rows more or less are not to look like a finding."""


def draw_atlas(atlas: ChunkProbe, folder: Path) -> list[Path]:
    """Write atlas-alone.png, atlas-unique.png and atlas-prefix.png, attributes in the order of their gain centres.

    Raises:
        DataError: when one cannot be written.
    """
    order = sorted(range(len(atlas.attributes)), key=lambda i: _gain_centre(atlas.attributes[i].centre_prefix))
    items = [atlas.attributes[i] for i in order]
    tables = {part: atlas.table(part)[order] for part in ("alone", "unique", "prefix")}
    names, totals = [item.name for item in items], [item.all.value for item in items]
    return [
        chunk_heatmap(
            folder / "atlas-alone.png",
            tables["alone"],
            rows=names,
            layout=atlas.layout,
            title="Skill of each chunk alone",
            limit=1.0,
            totals=totals,
            marks=_marks([item.centre_alone for item in items]),
            marks_label=f"{OWN_SKILL_CENTRE}, with 95 % interval",
            note=SCALE,
        ),
        chunk_heatmap(
            folder / "atlas-unique.png",
            tables["unique"],
            rows=names,
            layout=atlas.layout,
            title="Skill that only this chunk has: all chunks minus all but this one",
            limit=max(LEAST_UNIQUE, float(np.abs(tables["unique"]).max())),
            sure_RK=[[one.differs for one in item.unique] for item in items],
            note=SCALE,
        ),
        chunk_heatmap(
            folder / "atlas-prefix.png",
            tables["prefix"],
            rows=names,
            layout=atlas.layout,
            title="Skill of chunks 0 to k together",
            limit=1.0,
            marks=_marks([item.centre_prefix for item in items]),
            marks_label=f"{GAIN_CENTRE}, with 95 % interval. {AGAINST_THE_IDEA}",
            note=SCALE,
        ),
    ]


def draw_statistics(statistics: FeatureStatistics, layout: ChunkLayout, folder: Path) -> Path:
    """Write chunk-correlation.png.

    Raises:
        DataError: when it cannot be written.
    """
    return chunk_heatmap(
        folder / "chunk-correlation.png",
        np.array(statistics.chunk_correlation),
        rows=[f"chunk {k}" for k in range(layout.chunks)],
        layout=layout,
        title="Correlation between chunks (RV coefficient)",
        limit=1.0,
        note="0: unrelated, 1: the same up to rotation and scale",
        square=layout.chunks > MAX_TEXT_CHUNKS,
    )


def _gain_centre(centre: Estimate | None) -> float:
    return float("inf") if centre is None else centre.value


def _marks(centres: Sequence[Estimate | None]) -> list[Mark]:
    return [
        None if one is None or one.low is None or one.high is None else (one.value, one.low, one.high)
        for one in centres
    ]
