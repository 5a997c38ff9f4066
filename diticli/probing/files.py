"""What a probe leaves behind in one folder: the report, the classifiers, the directions to edit along."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diticli._version import __version__
from diticli.errors import DataError
from diticli.probing.directions import save_directions
from diticli.probing.linear_probe import save_probe
from diticli.probing.report import ProbeReport

REPORT_NAME = "report.json"
PROBE_NAME = "probe.safetensors"


def write_report(report: ProbeReport, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write all files, each by a rename; returns what `report.json` holds.

    Args:
        report: of `probe_features`.
        folder: made when missing.
        facts: where the rows came from; goes first in the report.

    Raises:
        DataError: when the folder cannot be written.
        FeatureFileError: when the probe cannot be written.
    """
    data = {"version": __version__, **facts, **report.to_dict()}
    temporary = folder / (REPORT_NAME + ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / REPORT_NAME)
    except OSError as error:
        raise DataError(f"Cannot write into {folder} ({error}).", remedy="Name another folder.") from error
    save_probe(report.probe, folder / PROBE_NAME)
    save_directions(report.directions, folder)
    return data
