"""The swap atlas of one arm of `benchmarks.evidence` as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.pictures.heatmaps import chunk_heatmap


def atlas_picture(path: Path, row: dict[str, Any], lost: dict[str, float]) -> Path:
    """Write a PNG of factors by chunks, the factor that noise hides first on top: where dots and colour meet, a chunk
    acts at the timesteps at which noise hides the factor.

    Args:
        path: where to.
        row: scores of the arm, with its `atlas` and `layout`.
        lost: factor -> timestep at which one half of it is lost.
    """
    shares = row["atlas"]["shares"]
    names = sorted(shares, key=lambda name: lost.get(name, float("inf")))
    return chunk_heatmap(
        path,
        np.array([[share["value"] for share in shares[name]] for name in names]),
        rows=names,
        layout=ChunkLayout.from_dict(row["layout"]),
        title=f"{row['arm']}, {row['images']:,} images: what each chunk alone transfers",
        limit=1.0,
        totals=[row["atlas"]["together"][name]["value"] for name in names],
        marks=[(lost[name],) * 3 if name in lost else None for name in names],
        marks_label="timestep at which noise has hidden half of the factor",
    )
