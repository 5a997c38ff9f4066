"""`diti probe` with --atlas and --metrics, with groups, and without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from diticli.commands.probe import probe
from diticli.errors import ChunkError, ConfigError
from diticli.features.read import FeatureMeta
from diticli.features.writer import FeatureWriter

CHUNK_ENDS, TIMESTEP_ENDS = (3, 6, 9), (200, 500, 1000)


def write_features(folder: Path, meta: FeatureMeta) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
    with FeatureWriter(folder / "feats.npy", identity="x") as writer:
        writer.append(values, [f"{i:03d}.png" for i in range(300)])
        writer.finish(meta)
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 images; "late" is in the last chunk, "hat" in the first."""
    values = write_features(tmp_path, FeatureMeta(files=(), chunk_ends=CHUNK_ENDS, timestep_ends=TIMESTEP_ENDS))
    rows = [f"{i:03d}.png,{row[7]:.5f},{int(row[0] > 0)}" for i, row in enumerate(values)]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,late,hat", *rows]) + "\n")
    (tmp_path / "groups.txt").write_text("".join(f"{i:03d}.png {i // 5}\n" for i in range(300)))
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(probe)

    def invoke(*arguments: str, labels: bool = True) -> Any:
        given = ["--labels", str(folder / "labels.csv")] if labels else []
        return CliRunner().invoke(app, [str(folder / "feats.npy"), *given, "-o", str(folder / "out"), *arguments])

    return invoke


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "report.json").read_text())


def test_plain_probe_shows_intervals_and_draws_nothing(run: Callable[..., Any], folder: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    shown = report_of(folder)
    late, hat = shown["attributes"]
    assert f"{late['low']:.3f}–{late['high']:.3f}" in result.stdout
    assert set(hat["intervals"]) == {"average_precision", "roc_auc"}
    assert set(late["intervals"]) == set(shown["mean_intervals"]["number"]) == {"pearson_r", "r2", "mse", "mse_raw"}
    assert (shown["atlas"], shown["disentanglement"]) == (None, None)
    assert shown["statistics"]["rows"] == 300
    assert "effective rank" in result.stderr
    assert not list((folder / "out").glob("*.png"))


def test_atlas_goes_into_table_report_and_heatmaps(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run("--atlas")
    assert result.exit_code == 0, result.output
    atlas = report_of(folder)["atlas"]
    assert atlas["chunks"] == {"ends": list(CHUNK_ENDS), "timestep_ends": list(TIMESTEP_ENDS), "visible": "prefix"}
    late, hat = atlas["attributes"]
    assert np.argmax(late["alone"]["value"]) == np.argmax(late["unique"]["value"]) == 2
    assert np.argmax(hat["alone"]["value"]) == 0
    assert late["centre_prefix"]["value"] > 600 > 300 > hat["centre_prefix"]["value"]
    assert "gain centre t" in result.stdout
    assert result.stdout.index("hat ", result.stdout.index("gain centre")) < result.stdout.rindex("late ")
    names = {path.name for path in (folder / "out").glob("*.png")}
    assert names == {"atlas-alone.png", "atlas-unique.png", "atlas-prefix.png", "chunk-correlation.png"}
    assert "heatmaps" in result.stderr
    assert "Fewer than 50 test rows" in result.stderr
    assert run().exit_code == 0
    assert not list((folder / "out").glob("*.png")), "those of the earlier probe"


def test_a_terminal_shows_the_best_and_the_least_of_many_and_says_where_all_are(
    run: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diticli.commands import probe_tables

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(probe_tables, "MOST_ROWS", 4)
    monkeypatch.setattr(probe_tables, "BEST_ROWS", 2)
    values = np.random.default_rng(1).normal(size=(300, 6))
    lines = [f"{i:03d}.png,{','.join(f'{v:.4f}' for v in row)}" for i, row in enumerate(values)]
    (folder / "labels.csv").write_text("\n".join(["filename," + ",".join(f"n{i}" for i in range(6)), *lines]) + "\n")
    assert all(f"n{i}" in run().stdout for i in range(6)), "a pipe gets all"
    monkeypatch.setattr("diticli.commands.probe_tables._on_terminal", lambda: True)
    result = run("--overwrite")
    assert sum(f"n{i} " in result.stdout for i in range(6)) == 3
    assert "… 3 others" in result.stdout
    assert "3 attributes are not shown" in result.stderr
    assert "out/report.json holds all" in result.stderr
    assert "no better than guessing" in result.stderr.lower()
    assert {one["than_guessing"] for one in report_of(folder)["attributes"]} <= {"better", "no better", "worse"}


def test_metrics_score_dims_and_chunks(run: Callable[..., Any], folder: Path) -> None:
    result = run("--metrics")
    assert result.exit_code == 0, result.output
    scores = report_of(folder)["disentanglement"]
    assert (scores["dims"]["units"], scores["chunks"]["units"]) == (9, 3)
    assert [factor["name"] for factor in scores["factors"]] == ["late", "hat"]
    for word in ("DCI disentanglement", "MIG", "SAP", "FactorVAE", "modularity", "TAD", "explicitness"):
        assert word in result.stdout


def test_groups_are_resampled_whole(run: Callable[..., Any], folder: Path) -> None:
    assert run("--json").exit_code == 0
    alone = report_of(folder)["attributes"][0]
    result = run("--json", "--groups", str(folder / "groups.txt"))
    assert result.exit_code == 0, result.output
    grouped = report_of(folder)["attributes"][0]
    assert json.loads(result.stdout) == report_of(folder)
    assert grouped["low"] < grouped["value"] < grouped["high"]
    assert (grouped["low"], grouped["high"]) != (alone["low"], alone["high"])


def test_without_labels_only_statistics_are_told(run: Callable[..., Any], folder: Path) -> None:
    result = run(labels=False)
    assert result.exit_code == 0, result.output
    shown = report_of(folder)
    assert shown["statistics"]["dims"] == 9
    assert len(shown["statistics"]["chunks"]) == 3
    assert "attributes" not in shown
    assert "500-999" in result.stdout
    assert "--labels" in result.stderr
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["chunk-correlation.png", "report.json"]
    assert json.loads(run("--json", labels=False).stdout) == shown


def test_statistics_need_neither_names_nor_chunks(run: Callable[..., Any], folder: Path) -> None:
    (folder / "feats.json").unlink()
    result = run(labels=False)
    assert result.exit_code == 0, result.output
    assert report_of(folder)["statistics"]["chunks"] == []
    assert [path.name for path in (folder / "out").iterdir()] == ["report.json"]


@pytest.mark.parametrize("option", ["--atlas", "--metrics", "--mask-dims", "--groups", "--split"])
def test_what_needs_labels_says_so(run: Callable[..., Any], folder: Path, option: str) -> None:
    value = {"--mask-dims": ["3"], "--groups": [str(folder / "groups.txt")], "--split": ["parts.txt"]}.get(option, [])
    result = run(option, *value, labels=False)
    assert isinstance(result.exception, ConfigError)
    assert f"{option} is of no use without labels" in str(result.exception)


def test_an_atlas_of_features_without_chunks_is_refused(run: Callable[..., Any], folder: Path) -> None:
    for path in folder.glob("feats.*"):
        path.unlink()
    write_features(folder, FeatureMeta(files=()))
    result = run("--atlas")
    assert isinstance(result.exception, ChunkError)
    assert "diti encode" in str(result.exception.remedy)
