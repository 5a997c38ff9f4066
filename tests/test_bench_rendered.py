"""The benchmark on rendered pictures: what it writes and which commands it runs, with a stand-in for the renderer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.experiments import rendered
from benchmarks.experiments.disent_scores import FACTORS, rotation, usable_torchvision
from diticli.data.images import load_images, open_images
from diticli.data.labels import read_labels


def test_pictures_labels_and_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run_python(arguments: list[str], **_: object) -> None:
        commands.append(arguments)
        if arguments[0] == "-c":
            compile(arguments[1], "RENDER", "exec")
            count, out = int(arguments[3]), arguments[4]
            factors = np.arange(count)[:, None] % np.array([23, 23, 7, 4, 6])
            images = np.full((count, 32, 32, 3), 7, np.uint8) + factors[:, :1, None, None].astype(np.uint8)
            names = np.array(["x", "y", "scale", "intensity", "color"])
            np.savez(out, images=images, labels=factors, names=names)

    monkeypatch.setattr(rendered, "run_python", run_python)
    monkeypatch.setattr(rendered, "environment", lambda folder: (Path("python"), {}))
    words = ["rendered", "--folder", str(tmp_path), "--train", "20", "--images", "12", "--budget", "8", "--seeds", "2"]
    words += ["--set", "chunks.count=16"]
    monkeypatch.setattr(sys, "argv", words)
    rendered.main()
    trainings, compared = commands[1:-1], commands[-1]
    assert [Path(c[c.index("-o") + 1]).name for c in trainings] == [
        f"{method}-{seed}" for seed in (0, 1) for method in ("diti", "pdae", "modular", "simclr", "simsiam")
    ]
    assert ["--base" in c for c in trainings] == [False, True, True, False, False] * 2
    counts = [[word for word in c if word.startswith("chunks.count")][-1] for c in trainings[:3]]
    assert counts == ["chunks.count=16", "chunks.count=1", "chunks.count=16"]
    assert f"pdae={tmp_path / 'pdae-1'}" in compared
    assert compared[:5] == ["-m", "diticli", "compare", "--benchmark", "--seeds"]

    source = open_images([str(tmp_path / "test.npz")], 32)
    names = [source.file_name(index) for index in range(len(source))]
    table = read_labels(tmp_path / "labels.csv", names)
    rows, of_table = table.match(names)
    assert len(rows) == 12
    levels = load_images(source).images[:, 0, 0, 0]
    np.testing.assert_array_equal(np.asarray(table.columns["x"].values)[of_table], levels[rows] - 7)
    assert table.columns["color"].kind == "category"


def test_the_rotation_is_one() -> None:
    turn = rotation()
    np.testing.assert_allclose(turn @ turn.T, np.eye(FACTORS), atol=1e-12)


@pytest.mark.filterwarnings("ignore:failed to JIT compile")
def test_a_grid_that_disent_drew_is_read_as_it_drew_it(tmp_path: Path) -> None:
    pytest.importorskip("disent")
    usable_torchvision()
    from disent.dataset.data import XYObjectShadedData

    drawn = XYObjectShadedData(8, 2, min_square_size=2, max_square_size=3, square_size_spacing=1, palette="rainbow_4")
    pictures = np.stack([drawn[row] for row in range(len(drawn))])
    factors = np.stack([drawn.idx_to_pos(row) for row in range(len(drawn))])
    np.savez_compressed(tmp_path / "drawn.npz", images=pictures)
    sizes = ",".join(f"{name}={size}" for name, size in zip(drawn.factor_names, drawn.factor_sizes, strict=True))
    source = open_images(str(tmp_path / "drawn.npz"), 8)
    np.testing.assert_array_equal(load_images(source).images, pictures)
    table = read_labels(tmp_path / f"drawn.npz:{sizes}")
    grid = "3 x 3 x 2 x 4 x 6 values of x, y, scale, intensity, color"
    assert table.notes == (f"The factors are a complete grid: {grid}.",)
    columns = np.stack([table.columns[name].values for name in drawn.factor_names], axis=1)
    np.testing.assert_array_equal(columns, factors)
