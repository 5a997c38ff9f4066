"""Charts of the page."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.pictures.charts import save_chart


def feature_bars(by_chunk: npt.NDArray[np.float64]) -> Any:
    """One bar a chunk, as a picture.

    Args:
        by_chunk: [K].
    """
    import tempfile
    from pathlib import Path

    def draw(axes: Any) -> None:
        axes.bar(np.arange(len(by_chunk)), by_chunk, color="#2563eb")
        axes.set_xlabel("chunk, from fine to coarse")
        axes.set_ylabel("root mean square")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bars.png"
        save_chart(path, draw, (8, 2.6))
        return np.asarray(Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)).convert("RGB"))
