"""Heatmaps of rows by chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.pictures.heatmaps import MAX_TEXT_CHUNKS, chunk_heatmap


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_cells_are_blue_above_zero_orange_below_and_grey_when_unknown(tmp_path: Path) -> None:
    layout = ChunkLayout(timestep_ends=(50, 300, 1000), ends=(1, 5, 9))
    path = chunk_heatmap(tmp_path / "new" / "a.png", [[1.0, -1.0, np.nan]], rows=["$hat_1$"], layout=layout, title="A")
    colours = {tuple(colour) for colour in pixels(path).reshape(-1, 3)}
    assert {(18, 63, 120), (138, 74, 0), (230, 232, 235)} <= colours


def test_marks_and_totals_are_drawn(tmp_path: Path) -> None:
    layout = ChunkLayout.uniform(chunks=4, latent_dim=4)
    values = np.zeros((2, 4))
    plain = pixels(chunk_heatmap(tmp_path / "a.png", values, rows=["a", "b"], layout=layout, title="t"))
    marked = chunk_heatmap(
        tmp_path / "b.png", values, rows=["a", "b"], layout=layout, title="t", marks=[(600.0, 500.0, 700.0), None],
        totals=[0.0, 1.0], limit=1.0,
    )  # fmt: skip
    found = pixels(marked)
    red = np.array([209, 36, 47])
    assert not (np.abs(plain - red).sum(axis=2) < 20).any()
    rows, columns = np.nonzero(np.abs(found - red).sum(axis=2) < 20)
    assert np.ptp(rows) < 20 < np.ptp(columns)
    assert (np.abs(found - [18, 63, 120]).sum(axis=2) < 5).sum() > 200


@pytest.mark.parametrize("chunks", [1, 64, MAX_TEXT_CHUNKS + 20])
def test_any_number_of_chunks_fits(tmp_path: Path, chunks: int) -> None:
    layout = ChunkLayout.uniform(chunks=chunks, latent_dim=chunks)
    text = "a long note that has to be wrapped into the width of the picture " * 4
    path = chunk_heatmap(
        tmp_path / "a.png", np.full((1, chunks), 0.5), rows=["x"], layout=layout, title=text, note=text
    )  # fmt: skip
    picture = pixels(path)
    assert picture.shape[1] <= 1152 or chunks > 64, "a report page shows it unreduced"
    dark = np.flatnonzero((picture.sum(axis=2) < 250).any(axis=0))
    assert dark[0] > 0
    assert dark[-1] < picture.shape[1] - 1


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"values_RK": np.zeros((2, 3))}, "1 x 3 values"),
        ({"rows": []}, "0 x 3 values"),
        ({"totals": [1.0, 2.0]}, "1 totals"),
        ({"marks": [None, None]}, "1 totals and marks"),
        ({"limit": 0.0}, "not above 0"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, wrong: dict[str, object], match: str) -> None:
    layout = ChunkLayout.uniform(chunks=3, latent_dim=3)
    given = {"values_RK": np.zeros((1, 3)), "rows": ["a"], "layout": layout, "title": "t"} | wrong
    with pytest.raises(ValueError, match=match):
        chunk_heatmap(tmp_path / "a.png", **given)  # type: ignore[arg-type]


def test_hostile_names_and_sizes_stay_within_a_picture(tmp_path: Path) -> None:
    layout = ChunkLayout.uniform(chunks=2, latent_dim=2)
    names = ["x" * 20_000, "$\\frac{", "\udcff\x00", ""]
    path = chunk_heatmap(tmp_path / "a.png", np.eye(4, 2), rows=names, layout=layout, title="")
    assert pixels(path).shape[1] < 1000
