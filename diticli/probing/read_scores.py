"""Scores of a probe that was written earlier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from diticli.reading import parse_json, printable, read_regular, shortened

SHORT = {"average_precision": "AP", "pearson_r": "Pearson r", "accuracy": "accuracy", "r2": "R2"}
"""Names of metrics where there is little room."""


AgainstGuessing = Literal["better", "no better", "worse"]


class ProbeScore(NamedTuple):
    """Of one attribute on test images, with its 95 % interval, and what guessing scores."""

    value: float
    low: float
    high: float
    guessing: float
    metric: str = ""

    def short(self) -> str:
        """E.g. "AP 0.74"."""
        return f"{SHORT.get(self.metric, 'score')} {self.value:.2f}"


def read_scores(probe: Path | None) -> dict[str, ProbeScore]:
    """Attribute -> score, of the report in a probe's folder; empty where there is none that can be read."""
    if probe is None:
        return {}
    try:
        found = {}
        for one in parse_json(read_regular(probe / "report.json"))["attributes"]:
            numbers = (one.get(key) for key in ("value", "low", "high", "base_rate"))
            value, low, high, guessing = (math.nan if number is None else float(number) for number in numbers)
            found[str(one["name"])] = ProbeScore(value, low, high, guessing, str(one.get("metric", "")))
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def score_of(scores: Mapping[str, ProbeScore], attribute: str) -> ProbeScore | None:
    """The score of an attribute; of a class, "attribute=class", that of its category."""
    return scores.get(attribute) or scores.get(attribute.rpartition("=")[0])


def against_guessing(value: float, low: float | None, high: float | None, guessing: float) -> AgainstGuessing:
    """How a score stands to what guessing scores, by its interval where there is one."""
    if (value if low is None else low) > guessing:
        return "better"
    return "worse" if (value if high is None else high) < guessing else "no better"


def is_chance(score: ProbeScore) -> bool:
    """Whether an attribute is not read surely better than by guessing."""
    return score.low <= score.guessing


def chance_warnings(scores: Mapping[str, ProbeScore], attributes: Sequence[str]) -> list[str]:
    """A warning for each attribute that the probe does not read surely better than guessing."""
    return [
        f"The probe hardly reads {shortened(printable(name))}: it scores {score.value:.2f} ({score.low:.2f} to "
        f"{score.high:.2f}), guessing {score.guessing:.2f}. Something else may move. More labelled images help."
        for name in attributes
        if (score := score_of(scores, name)) is not None and is_chance(score)
    ]
