"""Heatmaps of attributes by chunks, with the timesteps of the chunks below, as PNG files.

chunk_heatmap(path, skill_RK, rows=names, layout=layout, title="Each chunk alone", marks=centres)
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diticli.chunks import ChunkLayout
from diticli.pictures.captions import cut
from diticli.pictures.charts import diverging, not_readable, plain, save_chart, short
from diticli.types import DoubleArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

Mark = tuple[float, float, float] | None

MAX_TEXT_CHUNKS = 20
"""Cells of more chunks are too narrow for numbers; a bar of the colours stands in for them."""
_LABELS = 20
"""Chunk numbers and timesteps that have room side by side."""
_PAGE, _WIDEST_CELL, _NARROWEST_CELL = 8.8, 0.42, 0.06
"""Inches: a report page shows a picture up to the first unreduced, and that holds any usual number of chunks."""
_ROW, _LEAST_ROW = 0.27, 0.2
"""Inches: the height of a row, and the least that a name needs."""
_TOTALS, _GAP = 0.4, 0.12
"""Inches: width of the column of totals, and how far it stands apart."""
_MAX_SIDE = 300.0
"""Inches; matplotlib draws at most 2^16 pixels."""
_MARK = "#d1242f"
_UNSURE = "#8a929b"


def chunk_heatmap(
    path: Path | str,
    values_RK: npt.ArrayLike,
    *,
    rows: Sequence[str],
    layout: ChunkLayout,
    title: str,
    limit: float | None = None,
    totals: Sequence[float] | None = None,
    totals_label: str = "all",
    marks: Sequence[Mark] | None = None,
    marks_label: str = "centre of mass with 95 % interval",
    note: str = "",
    chunk_names: Sequence[str] | None = None,
    sure_RK: npt.ArrayLike | None = None,
    square: bool = False,
) -> Path:
    """Write a PNG of one value for each row and chunk, rows from top to bottom, chunks from left to right.

    Columns are equally wide; chunk numbers (or `chunk_names`) stand above, the timesteps at the chunks' borders below,
    and values in the cells where they fit (`MAX_TEXT_CHUNKS`), else a bar of the colours beside them. White is 0, blue
    positive, orange negative.

    Args:
        path: where to.
        values_RK: [R, K]; NaN leaves a grey cell.
        rows: [R] names; long ones are cut.
        layout: K chunks and their timesteps.
        title: text above.
        limit: value of the darkest colour, above 0 (default: the largest magnitude of a value, at least 0.05).
        totals: [R] value of each row for all chunks together, drawn as one more column apart.
        totals_label: heading of that column.
        marks: [R] (timestep, low, high) drawn as a dot with a bar across the row, or None for no mark.
        marks_label: what the dots are, said below the picture.
        note: more text below.
        chunk_names: [K] headings of the columns (default: 0, 1, ...), for groups of chunks "0-3", "4-7", ...
        sure_RK: [R, K] whether a value differs from 0; others stay white, which is said below.
        square: rows are as high as columns are wide, and only some have their names: for chunks by chunks.

    Raises:
        ValueError: when the numbers of rows, chunks, totals or marks do not fit together, or `limit` is not above 0.
        DataError: when the file cannot be written.
    """
    grid = np.asarray(values_RK, dtype=np.float64)
    if grid.shape != (len(rows), layout.chunks) or not len(rows):
        raise ValueError(f"{len(rows)} x {layout.chunks} values expected, got {list(grid.shape)}.")
    if any(len(extra) != len(rows) for extra in (totals, marks) if extra is not None):
        raise ValueError(f"{len(rows)} totals and marks expected, one for each row.")
    if limit is not None and not limit > 0:
        raise ValueError(f"The limit {limit} is not above 0.")
    everything = grid if totals is None else np.column_stack([grid, totals])
    top = limit or max(0.05, float(np.abs(everything[np.isfinite(everything)]).max(initial=0.0)))

    names = [short(name) for name in rows]
    bar = 0.0 if layout.chunks <= MAX_TEXT_CHUNKS else 0.5
    beside = 0.9 + 0.075 * max(map(len, names)) + bar
    cell = max(_NARROWEST_CELL, min(_WIDEST_CELL, (_PAGE - beside) / (layout.chunks + 2)))
    apart = None if totals is None else (layout.chunks + _GAP / cell, max(1.0, _TOTALS / cell))
    width = max(4.0, beside + cell * (layout.chunks + 2))
    unsure = "" if sure_RK is None else f"{'White' if bar else 'Grey on white'}: the 95 % interval holds 0"
    texts = ["timestep t (0: clean, T: noise)", note, unsure, f"Red: {marks_label}" if any(marks or ()) else ""]
    # What stands below is centred on the axes, which begin right of the names.
    axes_width = max(cell * (layout.chunks + 2), width - beside)
    above = _wrapped(title, width / 0.115)
    below = "\n".join(_wrapped(text, axes_width / 0.077) for text in texts if text)
    sure = None if sure_RK is None else np.asarray(sure_RK, dtype=bool)

    def draw(axes: Axes) -> None:
        image = _cells(axes, grid, 0.0, layout.chunks, top, sure)
        not_readable(axes, grid, layout.chunks / 2, 0.5)
        if totals is not None and apart is not None:
            _cells(axes, np.asarray(totals, dtype=np.float64)[:, None], *apart, top)
        _axes(axes, names, layout, chunk_names, cell if square else _ROW)
        axes.set_xlim(0, layout.chunks if apart is None else sum(apart))
        if apart is not None:
            axes.text(apart[0] + apart[1] / 2, -0.1, plain(totals_label), ha="center", va="bottom", fontsize=7)
        if bar:
            axes.figure.colorbar(image, ax=axes, fraction=0.03, pad=0.015, aspect=25).ax.tick_params(labelsize=7)
        for row, mark in enumerate(marks or ()):
            if mark is not None:
                _mark(axes, row, mark, layout)
        axes.set_title(above, loc="left", fontsize=11)
        axes.set_xlabel(below, fontsize=8.5)

    text_height = 0.19 * above.count("\n") + 0.15 * below.count("\n")
    height = 1.25 + text_height + (cell if square else _ROW) * len(rows)
    return save_chart(path, draw, (min(width, _MAX_SIDE), min(height, _MAX_SIDE)))


def _cells(
    axes: Axes, grid: DoubleArray, left: float, width: float, top: float, sure: npt.NDArray[np.bool_] | None = None
) -> AxesImage:
    """Cells of height 1 from x = `left` on, together `width` wide, the first row at y = 0..1."""
    height, columns = grid.shape
    image = axes.imshow(
        np.ma.masked_invalid(grid if sure is None else np.where(sure | np.isnan(grid), grid, 0.0)),
        cmap=diverging(),
        vmin=-top,
        vmax=top,
        aspect="auto",
        extent=(left, left + width, height, 0),
        interpolation="nearest",
    )
    if columns > MAX_TEXT_CHUNKS:
        return image
    for (row, column), value in np.ndenumerate(grid):
        if math.isfinite(value):
            colour = "w" if abs(value) > 0.62 * top else "k"
            if sure is not None and not sure[row, column]:
                colour = _UNSURE
            place = (left + (column + 0.5) * width / columns, row + 0.5)
            axes.text(*place, _number(value, top), ha="center", va="center", fontsize=7, color=colour)
    return image


def _axes(
    axes: Axes,
    rows: Sequence[str],
    layout: ChunkLayout,
    chunk_names: Sequence[str] | None,
    row_height: float,
) -> None:
    chunks = layout.chunks
    axes.set_ylim(len(rows), 0)
    named = range(0, len(rows), math.ceil(_LEAST_ROW / row_height))
    axes.set_yticks([row + 0.5 for row in named], [rows[row] for row in named])
    borders = (0, *layout.timestep_ends)
    step = 2 ** max(0, math.ceil(math.log2(chunks / _LABELS)))
    at = list(range(0, chunks + 1, step))
    axes.set_xticks(at, [f"{borders[k]}" for k in at], fontsize=7)
    above = axes.secondary_xaxis("top")
    numbers = list(range(0, chunks, step))
    labels = [(k + 0.5, f"{k}" if chunk_names is None else plain(chunk_names[k])) for k in numbers]
    above.set_xticks([x for x, _ in labels], [text for _, text in labels], fontsize=7)
    above.set_xlabel("chunk" if chunk_names is None else "chunks", loc="left", fontsize=8)
    above.tick_params(length=0, pad=1)
    above.spines["top"].set_visible(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", length=3, pad=1)


def _mark(axes: Axes, row: int, mark: tuple[float, float, float], layout: ChunkLayout) -> None:
    """Timesteps lie where the columns of their chunks are, also where chunks differ in length."""
    centre, low, high = np.interp(mark, (0, *layout.timestep_ends), np.arange(layout.chunks + 1))
    axes.plot([low, high], [row + 0.88] * 2, color=_MARK, linewidth=1.6, solid_capstyle="butt", zorder=3)
    axes.plot([centre], [row + 0.88], marker="o", markersize=3.6, color=_MARK, zorder=4)


def _number(value: float, top: float) -> str:
    digits = 3 if top < 0.1 else 2
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.00"


def _wrapped(text: str, letters: float) -> str:
    return "\n".join(plain(line) for line in textwrap.wrap(cut(text), max(20, int(letters))))
