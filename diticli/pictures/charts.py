"""Charts as PNG files, drawn with matplotlib on a figure of its own: no global state, no display."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.errors import DataError
from diticli.pictures.captions import clean, cut
from diticli.pictures.grids import PAPER, save_png
from diticli.reading import check_regular

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

SERIES = ("#2463b4", "#e08a1e", "#8a929b", "#3c8d5a", "#b0435c", "#6b52a8")
GREYS = ("#8a929b", "#b4bac1", "#d5d9de")
"""Of baselines."""
UNKNOWN = "#e6e8eb"
MAX_BOUNDARIES = 32
LONGEST_NAME = 40


def loss_by_timestep_chart(
    path: Path | str,
    loss: Sequence[float] | npt.NDArray[np.floating],
    *,
    base_loss: Sequence[float] | npt.NDArray[np.floating] | None = None,
    layout: ChunkLayout | None = None,
    timesteps: int = 1000,
    title: str = "Loss by timestep",
    y_label: str = "loss",
) -> Path:
    """Write a PNG of the mean loss in equal bins of timesteps 0..T.

    Args:
        path: where to.
        loss: one value a bin; NaN for a bin without samples leaves a gap.
        base_loss: the same for the frozen base alone, to show what the features gained.
        layout: its chunk boundaries are drawn faintly when there are at most `MAX_BOUNDARIES`.
        timesteps: T.
        title: text above the chart.
        y_label: what is drawn.
    """
    bounded = layout is not None and layout.chunks <= MAX_BOUNDARIES
    x_label = "timestep t (0: clean, T: noise)" + ("; grey lines: borders of chunks" if bounded else "")
    lines = {"base alone": base_loss, "with features": loss} if base_loss is not None else {"loss": loss}

    def draw(axes: Axes) -> None:
        if layout is not None and bounded:
            for end in layout.timestep_ends[:-1]:
                axes.axvline(end, color="#d5d9de", linewidth=0.7, zorder=0)
        for (name, values), colour in zip(lines.items(), SERIES[1::-1][-len(lines) :], strict=True):
            edges = np.linspace(0, timesteps, len(values) + 1)
            axes.stairs(
                np.asarray(values, dtype=float),
                edges,
                baseline=None,
                label=short(name),
                color=colour,
                linewidth=1.6,
            )
        axes.set(title=plain(title), xlabel=x_label, ylabel=plain(y_label), xlim=(0, timesteps))
        _log_if_wide(axes, [v for values in lines.values() for v in values])
        if len(lines) > 1:
            axes.legend(frameon=False)

    return save_chart(path, draw, (7.2, 3.6))


def bar_table_chart(
    path: Path | str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    *,
    title: str,
    x_label: str = "score",
    baselines: Collection[str] = (),
) -> Path:
    """Write a PNG of horizontal bars: a group for each name (top to bottom), a bar for each series.

    Series that are `baselines` are grey, the others coloured.

    Raises:
        ValueError: when a series has not one value a name.
    """
    if not names or any(len(values) != len(names) for values in series.values()):
        raise ValueError("Every series needs one value for every name.")

    def draw(axes: Axes) -> None:
        thick = 0.8 / len(series)
        colours, greys = iter(SERIES), iter(GREYS)
        for i, (label, values) in enumerate(series.items()):
            at = np.arange(len(names)) - 0.4 + thick * (i + 0.5)
            finite = np.nan_to_num(np.asarray(values, dtype=float), nan=0.0)
            colour = next(greys, GREYS[-1]) if label in baselines else next(colours, SERIES[-1])
            axes.barh(at, finite, height=thick * 0.92, label=short(label), color=colour)
            for y, value, end in zip(at, values, finite, strict=True):
                text = "n/a" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no "-0.00"
                place = (max(0.0, end), y)
                axes.annotate(text, place, (3, 0), textcoords="offset points", va="center", fontsize=7)
        axes.set_yticks(np.arange(len(names)), [short(name) for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set(title=plain(title), xlabel=plain(x_label))
        axes.margins(x=0.08)
        axes.axvline(0, color="black", linewidth=0.8)
        if len(series) > 1:
            axes.figure.legend(loc="outside lower center", ncols=len(series), frameon=False)

    return save_chart(path, draw, (7.2, 1.2 + len(names) * (0.12 + 0.15 * len(series))))


def heatmap_chart(
    path: Path | str,
    values: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> Path:
    """Write a PNG of numbers in coloured cells, rows from top to bottom; colours run from -1 over 0 to 1, NaN is grey.

    A row of NaN alone is called not readable. Headings may have several lines. In the colours of
    `diticli.pictures.heatmaps`, so that one quantity looks the same in both.

    Raises:
        ValueError: when the values are not one per row and column.
    """
    grid = np.asarray(values, dtype=float)
    if grid.shape != (len(rows), len(columns)):
        raise ValueError(f"{len(rows)} x {len(columns)} values expected, got {list(grid.shape)}.")

    def draw(axes: Axes) -> None:
        axes.imshow(np.ma.masked_invalid(grid), cmap=diverging(), vmin=-1, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(grid):
            text = "" if math.isnan(value) else f"{round(value, 2) + 0.0:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if abs(value) > 0.6 else "k")
        not_readable(axes, grid, (len(columns) - 1) / 2)
        heads = ["\n".join(map(short, name.split("\n"))) for name in columns]
        axes.set_xticks(np.arange(len(columns)), heads, fontsize=8)
        axes.set_yticks(np.arange(len(rows)), [short(name) for name in rows])
        axes.set_title(plain(title), loc="left", fontsize=11)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.tick_params(length=0)

    longest = max((len(line) for name in columns for line in name.split("\n")), default=0)
    wide = max(0.55, 0.09 * min(longest, LONGEST_NAME))
    return save_chart(path, draw, (1.6 + wide * len(columns), 1.1 + 0.27 * len(rows)))


def not_readable(axes: Axes, grid: npt.NDArray[np.float64], middle: float, below: float = 0.0) -> None:
    """Say so on every row that is unknown throughout, at x = `middle` and `below` its number."""
    for row in np.flatnonzero(np.isnan(grid).all(axis=1)).tolist():
        axes.text(middle, row + below, "not readable", ha="center", va="center", fontsize=8, color="#59636e")


def diverging() -> Colormap:
    """Of values around 0: blue positive, white 0, orange negative, grey unknown."""
    check_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    stops = ["#8a4a00", "#e08a1e", "#ffffff", "#5b93d8", "#123f78"]
    return LinearSegmentedColormap.from_list("diti", stops).with_extremes(bad=UNKNOWN)


def save_chart(path: Path | str, draw: Callable[[Axes], None], size: tuple[float, float]) -> Path:
    """Write a PNG of what `draw` puts on the axes of a figure of `size` (width, height in inches).

    Raises:
        DataError: when the file cannot be written.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _own_style():
        figure = Figure(figsize=size, dpi=130, layout="constrained", facecolor=PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        canvas.draw()
    return save_png(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), path)


def check_matplotlib() -> None:
    """Make sure that matplotlib can be imported: it reads a `matplotlibrc` of the working folder, whatever that is.

    Raises:
        DataError: when that is, say, a named pipe, which nobody may ever write to.
    """
    place = Path("matplotlibrc")
    if "matplotlib" in sys.modules or not place.exists() or place.is_dir():
        return
    try:
        check_regular(place)
    except OSError as error:
        raise DataError(
            f"Charts cannot be drawn: {place.absolute()} is {error.strerror}.", remedy="Remove it."
        ) from error


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """matplotlib's built-in settings within the block, with formulas off.

    matplotlib reads a `matplotlibrc` of the working folder, which may come with somebody else's data; and label names
    come from files, where "$" must not start a formula.
    """
    import matplotlib

    built_in = {key: value for key, value in matplotlib.rcParamsDefault.items() if "backend" not in key}
    with matplotlib.rc_context({**built_in, "text.parse_math": False}):
        yield


def plain(text: str) -> str:
    """The text without control characters, as a chart shows it."""
    return cut(clean(text))


def short(name: str) -> str:
    """A name as an axis or a legend shows it, which a long one would leave no room for the chart."""
    name = clean(name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    known = [v for v in values if math.isfinite(v)]
    if known and min(known) > 0 and max(known) / min(known) > 30:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
