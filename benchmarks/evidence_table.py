"""The rows of `benchmarks.evidence` as a table, and where along the timesteps chunks act."""

from __future__ import annotations

from typing import Any

import numpy as np

from diticli.statistics import completeness, disentanglement

COLUMNS = {
    "r2": "R2",
    "average_precision": "AP",
    "together": "all swapped",
    "first_quarter": "first quarter",
    "mean_t": "mean t",
    "off_by": "off by",
    "off_by_alike": "off by, if alike",
    "order": "order",
    "concentration": "concentration",
    "selectivity": "selectivity",
    "chunk_disentanglement": "DCI chunks",
    "told_in": "predicting chunks",
    "mig": "MIG",
}
"""Scores of a row that the table shows."""
_DIGITS = {"r2": 3, "average_precision": 3, "told_in": 1, "mean_t": 0, "off_by": 0, "off_by_alike": 0}


def when(atlas: dict[str, Any], lost: dict[str, float]) -> dict[str, float | None]:
    """Where the effects of single chunks lie, each weighted by the share that it transfers.

    Args:
        atlas: `SwapEffects.to_dict`.
        lost: factor -> timestep at which one half of it is lost.

    Returns:
        first_quarter: the part that chunks of the first quarter of all have.
        mean_t: mean middle of the chunks' timesteps.
        off_by: mean number of timesteps between that middle and the one at which the factor is lost, either way.
        off_by_alike: the same, if the effects on every factor were distributed over the chunks as those on all are:
            what of off_by comes from when chunks act at all, and not from which factor they move when.
        All None where there is one chunk, or none acts.
    """
    middle_G = np.array([(start + end) / 2 for start, end in atlas["timesteps"]])
    names = list(atlas["shares"])
    effects_AG = np.array([[max(share["value"], 0.0) for share in atlas["shares"][name]] for name in names])
    if len(middle_G) < 2 or not effects_AG.sum():
        return dict.fromkeys(("first_quarter", "mean_t", "off_by", "off_by_alike"))
    known = [name in lost for name in names]
    alike_AG = np.outer(effects_AG[known].sum(axis=1), effects_AG[known].sum(axis=0))
    off_AG = np.abs(np.array([lost[name] for name in names if name in lost])[:, None] - middle_G)
    return {
        "first_quarter": float(effects_AG[:, : len(middle_G) // 4].sum() / effects_AG.sum()),
        "mean_t": float((effects_AG * middle_G).sum() / effects_AG.sum()),
        "off_by": float(np.average(off_AG, weights=effects_AG[known])),
        "off_by_alike": float(np.average(off_AG, weights=alike_AG)),
    }


def perfect(lost: dict[str, float], found: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of chunks that each move all factors that are lost in their own timesteps and no others: what none
    can surpass, since noise may hide several factors at once.

    Args:
        lost: factor -> timestep at which one half of it is lost.
        found: other rows, for the timesteps of their chunks.
    """
    timesteps = max((row["atlas"]["timesteps"] for row in found), key=len)
    shares = {name: [{"value": float(start <= t < end)} for start, end in timesteps] for name, t in lost.items()}
    effects_GA = np.array([[share["value"] for share in row] for row in shares.values()]).T
    return {
        "arm": "each factor in its time",
        **dict.fromkeys(COLUMNS),
        **when({"timesteps": timesteps, "shares": shares}, lost),
        "together": 1.0,
        "order": 1.0,
        "concentration": float(completeness(effects_GA)),
        "selectivity": float(disentanglement(effects_GA)),
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: the mean over seeds, and half the range where there are several."""
    lines = [f"| setting | seeds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for arm in dict.fromkeys(row["arm"] for row in found):
        same = [row for row in found if row["arm"] == arm]
        cells = [_cell([row[key] for row in same if row[key] is not None], _DIGITS.get(key, 2)) for key in COLUMNS]
        lines.append(f"| {arm} | {len(same)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {np.ptp(values) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"
