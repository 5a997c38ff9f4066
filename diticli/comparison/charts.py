"""Bars of scores with their intervals, one panel for each kind of attribute."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diticli.comparison.scores import METRICS, EntryScores
from diticli.pictures.charts import GREYS, SERIES, save_chart, short
from diticli.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRIC_NAMES = {
    "average_precision": "AP",
    "roc_auc": "ROC AUC",
    "pearson_r": "Pearson r",
    "r2": "R2",
    "mse": "MSE",
    "accuracy": "accuracy",
}


def score_chart(path: Path | str, scores: Mapping[str, EntryScores], baselines: Collection[str] = ()) -> Path:
    """Write a PNG of the mean of each kind's main metric, a group of bars for each entry.

    Args:
        path: where to.
        scores: by entry, from top to bottom.
        baselines: entries that are drawn in grey.

    Raises:
        DataError: when the file cannot be written.
    """
    kinds = list(next(iter(scores.values())).means)

    def draw(axes: Axes) -> None:
        thick = 0.8 / len(kinds)
        for i, kind in enumerate(kinds):
            metric = METRICS[kind][0]
            found = [own.means[kind][metric] for own in scores.values()]
            label = f"mean {METRIC_NAMES[metric]}, {kind}"
            colours = [GREYS[i] if name in baselines else SERIES[i] for name in scores]
            _bars(axes, found, -0.4 + thick * (i + 0.5), thick * 0.9, colours, label)
        axes.set_yticks(range(len(scores)), [short(name) for name in scores])
        if len(scores) > 1:
            axes.get_yticklabels()[0].set_fontweight("bold")  # what the others are compared with
        axes.set_ylim(len(scores) - 0.5, -0.5)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.margins(x=0.1)
        axes.set(title="Mean scores with 95 % intervals", xlabel="score")
        if len(kinds) > 1:
            axes.figure.legend(loc="outside lower center", ncols=len(kinds), frameon=False)

    return save_chart(path, draw, (7.2, 1.4 + len(scores) * (0.12 + 0.2 * len(kinds))))


def _bars(axes: Axes, found: list[Estimate], offset: float, height: float, colours: list[str], label: str) -> None:
    at = [row + offset for row in range(len(found))]
    axes.barh(at, [score.value for score in found], height=height, color=colours, label=label)
    for y, score in zip(at, found, strict=True):
        low, high = (score.value if bound is None else bound for bound in (score.low, score.high))
        axes.plot([low, high], [y, y], color="#1f2328", linewidth=1.1, solid_capstyle="butt")
        place = (max(0.0, score.value, high), y)
        axes.annotate(score.number(), place, (4, 0), textcoords="offset points", va="center", fontsize=7)
