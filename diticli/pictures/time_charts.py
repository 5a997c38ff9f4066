"""Charts over the timesteps: errors with and without features, and when attributes are lost.

gap_chart(path, timesteps, {"base alone": before, "with features": after}, layout=layout)
lost_chart(path, timesteps, left_AG, rows=names, lost=halves, act=centres)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diticli.chunks import ChunkLayout
from diticli.pictures.charts import (
    MAX_BOUNDARIES,
    SERIES,
    UNKNOWN,
    check_matplotlib,
    not_readable,
    plain,
    save_chart,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Mark = tuple[float, float, float] | None
_LOST, _ACT = "#d1242f", "#e08a1e"


def gap_chart(
    path: Path | str,
    timesteps: Sequence[int],
    series: Mapping[str, Sequence[float]],
    *,
    layout: ChunkLayout,
    title: str = "Error of the predicted image",
    y_label: str = "mean squared error",
) -> Path:
    """Write a PNG of lines over the timesteps on a logarithmic axis, chunk boundaries below them.

    Args:
        path: where to.
        timesteps: [G], rising.
        series: name -> [G] values above 0, at most `len(SERIES)`; others leave a gap.
        layout: its boundaries are drawn faintly when there are at most `MAX_BOUNDARIES`.
        title: text above.
        y_label: text beside.

    Raises:
        ValueError: when a series has not one value a timestep.
        DataError: when the file cannot be written.
    """
    if any(len(values) != len(timesteps) for values in series.values()):
        raise ValueError(f"{len(timesteps)} values expected in each series.")
    check_matplotlib()
    from matplotlib.ticker import NullFormatter

    colours = (SERIES[1], SERIES[0], *SERIES[2:])

    def draw(axes: Axes) -> None:
        if layout.chunks <= MAX_BOUNDARIES:
            for end in layout.timestep_ends[:-1]:
                axes.axvline(end, color="#d5d9de", linewidth=0.7, zorder=0)
        for (name, values), colour in zip(series.items(), colours, strict=False):
            known = np.array([value if value > 0 else np.nan for value in values])
            axes.plot(timesteps, known, label=short(name), color=colour, linewidth=1.6)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set(title=plain(title), ylabel=plain(y_label), xlim=(0, layout.timesteps))
        axes.set_xlabel("timestep t (0: clean, T: noise)")
        axes.legend(frameon=False)

    return save_chart(path, draw, (7.2, 3.6))


def lost_chart(
    path: Path | str,
    timesteps: Sequence[int],
    left_AG: npt.ArrayLike,
    *,
    rows: Sequence[str],
    lost: Sequence[Mark],
    act: Sequence[Mark] | None = None,
    title: str = "What is left of each attribute",
) -> Path:
    """Write a PNG of how much of each attribute (row) is left at each timestep: blue all, white nothing.

    Args:
        path: where to.
        timesteps: [G], rising.
        left_AG: [A, G] in [0, 1]; NaN is grey.
        rows: [A] names.
        lost: [A] (timestep, low, high) at which one half is lost, or None.
        act: [A] the same of the chunks that move the attribute, drawn beside it.
        title: text above.

    Raises:
        ValueError: when numbers of rows, timesteps or marks do not fit together.
        DataError: when the file cannot be written.
    """
    grid = np.asarray(left_AG, dtype=np.float64)
    if grid.shape != (len(rows), len(timesteps)) or any(len(m) != len(rows) for m in (lost, act) if m is not None):
        raise ValueError(f"{len(rows)} x {len(timesteps)} values and a mark a row expected, got {list(grid.shape)}.")

    def draw(axes: Axes) -> None:
        middle = [(a + b) / 2 for a, b in pairwise(timesteps)]
        edges = [timesteps[0], *middle, timesteps[-1]]
        axes.pcolormesh(edges, np.arange(len(rows) + 1), np.ma.masked_invalid(grid), cmap="Blues", vmin=0, vmax=1.25)
        for marks, colour, offset in ((lost, _LOST, 0.36), (act, _ACT, 0.7)):
            for row, mark in enumerate(marks or ()):
                if mark is not None:
                    axes.plot(mark[1:], [row + offset] * 2, color=colour, linewidth=1.8, solid_capstyle="butt")
                    axes.plot(mark[:1], [row + offset], marker="o", markersize=4, color=colour)
        axes.set_facecolor(UNKNOWN)
        not_readable(axes, grid, (timesteps[0] + timesteps[-1]) / 2, 0.5)
        axes.set_ylim(len(rows), 0)
        axes.set_yticks(np.arange(len(rows)) + 0.5, [short(name) for name in rows])
        axes.tick_params(axis="y", length=0)
        axes.spines[["left"]].set_visible(False)
        axes.set_title(plain(title), loc="left")
        chunks = "" if act is None else ".  Orange: transfer centre of the chunks"
        axes.set_xlabel(
            "timestep t (0: clean, T: noise)\nBlue: all is left.  White: nothing\n"
            f"Red: half-life under noise{chunks}, with 95 % intervals"
        )

    return save_chart(path, draw, (7.2, 1.7 + 0.27 * len(rows)))
