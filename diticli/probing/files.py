"""What a probe leaves behind in one folder: report, classifiers, directions to edit along, and heatmaps of an atlas."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diticli._version import __version__
from diticli.chunks import ChunkLayout
from diticli.disentanglement import FeatureStatistics
from diticli.errors import DataError
from diticli.probing.directions import save_directions
from diticli.probing.linear_probe import save_probe
from diticli.probing.pictures import draw_atlas, draw_statistics
from diticli.probing.report import ProbeReport

REPORT_NAME = "report.json"
PROBE_NAME = "probe.safetensors"


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
    temporary = folder / (REPORT_NAME + ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / REPORT_NAME)
    except OSError as error:
        raise DataError(f"Cannot write into {folder} ({error}).", remedy="Name another folder.") from error
    return data
