"""The picture of `benchmarks.reconstruction`: fidelity by number of steps, one line a solver."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.pictures.charts import SERIES
from diticli.pictures.grids import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"psnr": "Round trip: PSNR, dB", "edit_dpm_400": "Edit: PSNR against 400 + 400 steps, dB"}


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a PNG of the rows' PSNRs against the steps of both directions together."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=130, layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(PANELS))
    for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, rows, key, title)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], key: str, title: str) -> None:
    colours = itertools.cycle(SERIES)
    for name in dict.fromkeys(row["name"] for row in rows):
        points = [(row["invert_steps_run"] + row["decode_steps_run"], row[key]) for row in rows if row["name"] == name]
        mark = "*" if len(points) == 1 else "o"
        size = 11 if len(points) == 1 else 4
        axes.plot(*zip(*points, strict=True), marker=mark, markersize=size, label=name, color=next(colours))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(title=title, xlabel="network evaluations, both directions", xscale="log")
    ticks = sorted({row["invert_steps_run"] + row["decode_steps_run"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45)
    axes.minorticks_off()
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.7)
