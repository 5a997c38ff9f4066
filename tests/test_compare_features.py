"""`diti compare` on feature files that anyone made, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare import SMALL, Notes

from diticli.comparison.entry_specs import parse_entries
from diticli.comparison.report import write_comparison
from diticli.comparison.run import compare
from diticli.comparison.settings import CompareSettings
from diticli.comparison.tables import metric_table, statistics_table
from diticli.errors import ConfigError, FeatureFileError, LabelError, ModelError


@pytest.fixture(scope="module")
def model(make_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "diti"
    make_pipeline().save_pretrained(str(folder))
    return folder


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """Features of 60 files that tell the attribute "a", and others that do not."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60)
    names = [f"p{i:03d}.jpg" for i in range(60)]
    (tmp_path / "labels.csv").write_text(
        "file,a,b,who\n"
        + "\n".join(f"{n},{v},{int(v > 0)},{'xyz'[i % 3]}" for i, (n, v) in enumerate(zip(names, truth, strict=True)))
    )
    (tmp_path / "groups.csv").write_text("file,group\n" + "\n".join(f"{n},g{i // 4}" for i, n in enumerate(names)))
    for stem, columns, rows in (("good", truth[:, None], 60), ("poor", 0 * truth[:, None], 50)):
        values = np.concatenate([columns, rng.normal(size=(60, 4))], axis=1).astype(np.float32)
        np.save(tmp_path / f"{stem}.npy", values[:rows][::-1])
        chunks = {"chunk_ends": [2, 5], "timestep_ends": [400, 1000]} if stem == "good" else {}
        (tmp_path / f"{stem}.json").write_text(json.dumps({"files": names[:rows][::-1], **chunks}))
    return tmp_path, tmp_path / "labels.csv"


def test_feature_files_without_images(labelled: tuple[Path, Path]) -> None:
    folder, labels = labelled
    named = parse_entries([str(folder / "good.npy"), str(folder / "poor.npy")], ())
    settings = CompareSettings(data=(), labels=str(labels), groups=folder / "groups.csv")
    result = compare(named, settings, folder / "out")
    assert result is not None
    assert result.protocol.counts == {"images": 60, "rows": 50, "left_out": 10}
    assert "10 labelled images are left out" in result.protocol.describe()
    groups = result.protocol.groups
    assert groups is not None
    parts = [{groups[i] for i in rows} for rows in vars(result.protocol.split).values()]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    poor = result.scores["poor"]
    assert result.scores["good"].means["number"]["r2"].value > 0.99
    assert poor.by_attribute["a"].verdict == "worse"  # type: ignore[union-attr]
    assert poor.differences["number"]["mse"].verdict == "worse"  # type: ignore[union-attr]
    assert set(poor.means) == {"number", "binary", "category"}
    data = write_comparison(result, folder / "out", ["diti", "compare"])
    assert data["protocol"]["groups"] == 13
    script = (folder / "out" / "commands.sh").read_text()
    assert f"diti probe {folder / 'good.npy'}" in script
    assert "--groups" in script
    page = (folder / "out" / "report.html").read_text()
    assert "good: probes of each chunk" in page
    assert "poor: probes of each chunk" not in page
    measured = result.probed["good"].report
    assert measured["statistics"]["dims"] == 5
    first, second = (measured["atlas"]["attributes"][0]["alone"]["value"][k] for k in (0, 1))
    assert first > 0.99 > 0.5 > second, "the attribute is the first dim"
    units = [row[:2] for row in metric_table(result)[1]]
    assert units == [["good", "5 dims"], ["good", "2 chunks"], ["poor", "4 dims"]]
    columns, rows = metric_table(result)
    for name in ("InfoM", "InfoC", "InfoE"):
        assert all(0 <= float(str(row[columns.index(name)])) <= 1 for row in rows[:2]), name
    assert "A chunk is represented by its best linear readout" in page
    assert len(statistics_table(result)[1]) == 2


def test_what_is_odd_about_labels_and_fits_is_said_and_kept(
    labelled: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, labels = labelled
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join([f"{lines[0]},original", *(f"{line},copy{i}.jpg" for i, line in enumerate(lines[1:]))]))
    monkeypatch.setattr("diticli.probing.linear.MAX_ITERATIONS", 1)
    said = Notes()
    named = parse_entries([str(folder / "good.npy")], ())
    settings = CompareSettings(data=(), labels=str(labels), metrics=False)
    result = compare(named, settings, folder / "out", reporter=said)
    assert result is not None
    assert len(result.notes) == 2
    assert set(result.notes) < set(said.lines)
    assert result.notes[0] == "The column 'original' names other pictures and is left out."
    assert result.notes[1].startswith("good: not converged within 1 iterations: b, who. Their scores may be off")
    again = compare(named, settings, folder / "out", reporter=Notes())
    assert again is not None
    assert again.notes == result.notes
    assert write_comparison(result, folder / "out", ["diti", "compare"])["notes"] == list(result.notes)


def test_features_without_names_are_taken_in_the_order_of_the_images(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(160, 3)).astype(np.float32))
    result = compare(parse_entries([str(tmp_path / "a.npy")], ("pixels",)), CompareSettings(**SMALL), tmp_path / "o")
    assert result is not None
    assert (result.protocol.rows["a"] == result.protocol.images).all()
    other = CompareSettings(**SMALL | {"data": ("faces:100:1",)})
    with pytest.raises(FeatureFileError, match="160 rows without names, the data 100 images"):
        compare(parse_entries([str(tmp_path / "a.npy")], ("pixels",)), other, tmp_path / "o")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"labels": "gone.csv"}, LabelError, "gone.csv"),
        ({"data": ("photos",)}, ConfigError, "The labels of photos are missing"),
        ({"data": ()}, ConfigError, "Neither images nor labels"),
        ({"edits": True, "labels": "folder"}, ConfigError, "Exchanges cannot be judged"),
        ({"steps": 1}, ConfigError, "steps must be at least 2"),
    ],
)
def test_what_is_missing_is_named(model: Path, tmp_path: Path, change: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        compare(parse_entries([str(model)]), CompareSettings(**SMALL | change), tmp_path / "o")
    assert caught.value.remedy
    assert not (tmp_path / "o").exists(), "nothing is left behind"


def test_a_run_that_does_not_exist_or_has_not_finished(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for source in (tmp_path / "run", tmp_path / "gone"):
        with pytest.raises(ModelError):
            compare(parse_entries([str(source)]), CompareSettings(**SMALL), tmp_path / "o")


def test_features_of_other_images(labelled: tuple[Path, Path], tmp_path: Path) -> None:
    named = parse_entries([str(labelled[0] / "good.npy")], ("pixels",))
    with pytest.raises(FeatureFileError, match="features of good are of other images"):
        compare(named, CompareSettings(**SMALL | {"data": ("faces:20:1",)}), tmp_path / "o")
