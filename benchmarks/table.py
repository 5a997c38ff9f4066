"""Plain-text tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from benchmarks.timing import Ratio


def render(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Markdown table with columns padded to one width; the first is left-aligned, the others right-aligned."""
    texts = [list(headers), *([cell(value) for value in row] for row in rows)]
    if bad := [row for row in texts if len(row) != len(headers)]:
        raise ValueError(f"Rows need {len(headers)} cells, got {bad[0]}.")
    widths = [max(len(row[i]) for row in texts) for i in range(len(headers))]
    lines = ["| " + " | ".join(_pad(row[i], widths[i], i) for i in range(len(headers))) + " |" for row in texts]
    rule = "|" + "|".join(("-" * (w + 2)) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def cell(value: Any) -> str:
    """A number with as many digits as one reads; None is a dash."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.1e}"


def ratio_text(ratio: Ratio) -> str:
    """`3.1 [3.0, 3.2]`; without an interval where the rounds were too few for one."""
    if not (math.isfinite(ratio.low) and math.isfinite(ratio.high)):
        return f"{ratio.median:.3f} [too few rounds]"
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"


def _pad(text: str, width: int, column: int) -> str:
    return text.ljust(width) if column == 0 else text.rjust(width)
