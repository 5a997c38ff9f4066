"""Around the probe: joined labels, saved probes, the report and the command."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from sklearn.metrics import average_precision_score
from typer.testing import CliRunner

from diticli.commands.probe import probe
from diticli.data.labels import LabelColumn, LabelTable
from diticli.data.splits import split_rows
from diticli.errors import ConfigError, DataError, FeatureFileError, LabelError
from diticli.features.read import FeatureMeta
from diticli.features.writer import FeatureWriter
from diticli.probing.directions import load_directions
from diticli.probing.files import write_report
from diticli.probing.label_join import join_labels
from diticli.probing.linear_probe import LinearProbe, load_probe, save_probe
from diticli.probing.probe import probe_features
from diticli.probing.promask import MaskSettings
from diticli.probing.report import ProbeReport

N, D = 600, 12


def data(count: int = N, width: int = D, seed: int = 0) -> tuple[np.ndarray, np.random.Generator]:
    """Correlated features with very unequal scales and offsets."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(count, width)) @ rng.normal(size=(width, width))
    return (mixed * np.logspace(-2, 2, width) + 5).astype(np.float32), rng


def columns(values: np.ndarray, rng: np.random.Generator) -> dict[str, LabelColumn]:
    z = (values - values.mean(0)) / values.std(0)
    score = z @ rng.normal(size=(values.shape[1], 4))
    noisy = score[:, 0] + rng.normal(size=len(z))
    return {
        "smiling": LabelColumn("binary", (noisy > 0).astype(np.float32)),
        "hat": LabelColumn("binary", (score[:, 1] > 2).astype(np.float32)),
        "age": LabelColumn("number", (30 + 10 * score[:, 2]).astype(np.float32)),
        "colour": LabelColumn("category", np.array(["red", "green", "blue"])[score[:, :3].argmax(1)]),
        "noise": LabelColumn("number", rng.normal(size=len(z)).astype(np.float32)),
    }


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def report() -> ProbeReport:
    values, rng = data()
    return probe_features(values, columns(values, rng), seed=3, meta=FeatureMeta(files=(), model_hash="abc"))


def test_probe_round_trip_and_directions(report: ProbeReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "probe.safetensors"
    save_probe(report.probe, path)
    loaded = load_probe(path)
    values, _ = data()
    np.testing.assert_array_equal(loaded.predict(values), report.probe.predict(values))
    assert (loaded.names, loaded.kinds, loaded.classes) == (
        report.probe.names,
        report.probe.kinds,
        report.probe.classes,
    )
    direction = loaded.weights[loaded.row_of("hat")]
    assert direction.shape == (D,)
    moved = (values - loaded.mean) / loaded.std + 2 * math.sqrt(D) * direction / np.linalg.norm(direction)
    row = loaded.names.index("hat")
    assert (loaded.predict(moved * loaded.std + loaded.mean)[:, row] > loaded.predict(values)[:, row]).all()
    assert loaded.row_of("colour=red") != row
    with pytest.raises(LabelError, match="colour=violet"):
        loaded.row_of("colour=violet")
    with pytest.raises(LabelError, match="no attribute 'beard'"):
        loaded.row_of("beard")


def test_damaged_probes(report: ProbeReport, tmp_path: Path) -> None:
    path = tmp_path / "probe.safetensors"
    save_probe(report.probe, path)
    good = path.read_bytes()
    for bad in (b"", good[:50], good[:-5], b"x" * 300):
        path.write_bytes(bad)
        with pytest.raises(FeatureFileError):
            load_probe(path)
    with pytest.raises(FeatureFileError):
        load_probe(tmp_path / "missing.safetensors")
    short = LinearProbe(**(vars(report.probe) | {"bias": report.probe.bias[:-1]}))
    save_probe(short, path)
    with pytest.raises(FeatureFileError, match="fit together"):
        load_probe(path)


TABLE = LabelTable(
    ("a.jpg", "b.jpg", "c.jpg", "d.jpg"),
    {"hat": LabelColumn("binary", np.array([0, 1, 0, 1], np.float32))},
)


def test_join_by_name_and_groups() -> None:
    joined = join_labels(["x/c.png", "x/a.png", "x/zz.png", "x/d.png"], TABLE)
    assert joined.rows.tolist() == [0, 1, 3]
    assert joined.columns["hat"].values.tolist() == [0, 0, 1]
    assert joined.groups is None
    assert joined.describe() == "3 of 4 images matched 4 labels."
    joined = join_labels(["c.jpg", "a.jpg", "d.jpg"], TABLE, {"d.jpg": "p1", "c.jpg": "p2", "q.jpg": "p3"})
    assert joined.rows.tolist() == [0, 2]
    assert joined.groups == ("p2", "p1")
    assert joined.columns["hat"].values.tolist() == [0, 1]
    assert joined.without_group == 1
    assert "1 without a group" in joined.describe()


def test_join_of_strangers_names_both_sides() -> None:
    with pytest.raises(LabelError) as caught:
        join_labels(["1.png", "2.png"], TABLE)
    assert "'1.png'" in caught.value.message
    assert "'a.jpg'" in caught.value.message
    with pytest.raises(LabelError, match="groups") as caught:
        join_labels(["a.jpg"], TABLE, {"z.jpg": "p"})
    assert "'z.jpg'" in caught.value.message


def test_join_keeps_groups_and_parts_on_the_rows_that_have_both() -> None:
    labels = LabelColumn("number", np.arange(4, dtype=np.float32))
    table = LabelTable(("0.png", "1.png", "2.png", "3.png"), {"n": labels})
    names = ["x/3.png", "x/2.png", "x/1.png", "x/0.png"]
    groups = {"1.png": "b", "2.png": "c", "3.png": "d"}
    joined = join_labels(names, table, groups, {"0.png": "train", "1.png": "val", "3.png": "test"})
    assert joined.rows.tolist() == [0, 2]
    assert joined.columns["n"].values.tolist() == [3, 1]
    assert (joined.groups, joined.parts) == (("d", "b"), ("test", "val"))
    assert (joined.without_group, joined.without_part) == (1, 1)
    assert joined.describe().endswith("; 1 without a group left out; 1 without a part in the split left out.")
    with pytest.raises(LabelError, match="None of the parts of the split belong"):
        join_labels(names, table, None, {"z.png": "train"})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A feature file of 60 images, labels for 50 of them, and 10 groups."""
    values, rng = data(60)
    with FeatureWriter(tmp_path / "feats.npy", identity="x") as writer:
        writer.append(values, [f"{i:02d}.png" for i in range(60)])
        writer.finish(FeatureMeta(files=(), model_hash="abc"))
    labels = columns(values, rng)
    rows = [f"{i:02d}.png,{labels['age'].values[i]},{labels['colour'].values[i]}\n" for i in range(50)]
    (tmp_path / "labels.csv").write_text("file,age,colour\n" + "".join(rows))
    (tmp_path / "groups.txt").write_text("".join(f"{i:02d}.png {i % 10}\n" for i in range(60)))
    return tmp_path


def run_command(folder: Path, *more: str) -> Any:
    app = typer.Typer()
    app.command()(probe)
    given = [str(folder / "feats.npy"), "--labels", str(folder / "labels.csv"), "-o", str(folder / "out")]
    return CliRunner().invoke(app, [*given, *more])


def test_command_shows_a_table_and_says_what_it_did(files: Path) -> None:
    result = run_command(files, "--groups", str(files / "groups.txt"))
    assert result.exit_code == 0, result.output
    assert "50 of 60 images matched 50 labels" in result.stderr
    assert "10 groups kept together" in result.stderr
    lines = result.stdout.splitlines()
    order = [next(i for i, line in enumerate(lines) if word in line) for word in ("age", "colour", "mean of 1")]
    assert order == sorted(order)
    report = json.loads((files / "out" / "report.json").read_text())
    counts = {"rows": 50, "features": 60, "labels": 50, "without_group": 0, "without_part": 0}
    assert report["matched"] == counts | {"file_column": "file", "by_number": 0, "notes": []}
    assert load_probe(files / "out" / "probe.safetensors").model_hash == "abc"


def shown_attributes(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "out" / "report.json").read_text())["attributes"]


def test_command_says_which_fits_have_not_converged(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "converged" not in run_command(files).output
    assert all(item["converged"] for item in shown_attributes(files))
    monkeypatch.setattr("diticli.probing.linear.MAX_ITERATIONS", 1)
    monkeypatch.setenv("COLUMNS", "200")
    result = run_command(files, "--mask-dims", "3", "--mask-steps", "10", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "not converged" in result.stdout
    assert "Not converged within 1 iterations:" in result.stderr
    (colour,) = (item for item in shown_attributes(files) if item["name"] == "colour")
    assert not (colour["converged"])
    assert not (colour["masked"]["converged"])


def test_command_prints_only_json_on_stdout(files: Path) -> None:
    result = run_command(files, "--json", "--seed", "4")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown == json.loads((files / "out" / "report.json").read_text())
    assert shown["seed"] == 4
    assert [item["name"] for item in shown["attributes"]] == ["age", "colour"]


def test_command_takes_a_given_split(files: Path) -> None:
    parts = "".join(f"{i:02d}.png {0 if i < 30 else 1 if i < 40 else 2}\n" for i in range(49))
    (files / "list_eval_partition.txt").write_text(parts)
    given = ("--split", str(files / "list_eval_partition.txt"))
    result = run_command(files, *given, "--json")
    assert result.exit_code == 0, result.output
    assert "1 without a part in the split left out" in result.stderr
    assert "30 / 10 / 9 rows, as given" in result.stderr
    shown = json.loads(result.stdout)
    assert shown["split"] == {"train": 30, "val": 10, "test": 9}
    assert shown["seed"] is None
    assert shown["split_file"].endswith("list_eval_partition.txt")
    crossing = run_command(files, *given, "--groups", str(files / "groups.txt"))
    assert isinstance(crossing.exception, LabelError)
    assert "in both train and val" in str(crossing.exception)
    (files / "groups.txt").write_text("".join(f"{i:02d}.png {i // 10}\n" for i in range(60)))
    agreeing = run_command(files, *given, "--groups", str(files / "groups.txt"))
    assert agreeing.exit_code == 0, agreeing.output
    assert "as given, 5 groups kept together" in agreeing.stderr


def test_command_learns_masks_and_shows_them_beside_the_full_scores(files: Path) -> None:
    result = run_command(files, "--mask-dims", "3", "--mask-steps", "40", "--device", "cpu", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "3 dims" in result.stdout
    assert "3 by weight" in result.stdout
    shown = json.loads((files / "out" / "report.json").read_text())
    assert (shown["mask"]["dims"], shown["mask"]["steps"]) == (3, 40)
    directions = load_directions(files / "out")
    for item in shown["attributes"]:
        few = item["masked"]
        assert (len(few["dims"]), few["per_chunk"]) == (3, [])
        assert tuple(few["dims"]) == directions.chosen[item["name"]]
        assert math.isfinite(few["value"])
        assert math.isfinite(few["by_weight"])
    assert "masked_r2" in shown["means"]["number"]
    assert shown["means"]["category"]["masked_accuracy"] == shown["attributes"][1]["masked"]["value"]
    assert directions.full.model_hash == "abc"
    many = run_command(files, "--mask-dims", "13")
    assert isinstance(many.exception, ConfigError)
    assert "13 dims" in str(many.exception)
    alone = run_command(files, "--mask-steps", "50")
    assert isinstance(alone.exception, ConfigError)
    assert "--mask-dims" in str(alone.exception)


def test_masked_scores_are_those_of_the_saved_masked_classifiers() -> None:
    values, rng = data()
    labels = columns(values, rng)
    ends = FeatureMeta(files=(), chunk_ends=(5, 12), timestep_ends=(400, 1000))
    mask = MaskSettings(dims=4, steps=100, batch_size=256)
    report = probe_features(values, labels, seed=3, mask=mask, meta=ends)
    full = probe_features(values, labels, seed=3)
    assert [item.value for item in report.attributes] == [item.value for item in full.attributes]
    test, probe = split_rows(N, seed=3).test, report.directions.masked
    assert probe is not None
    outputs = probe.predict(values[test])
    for row, (name, kind) in enumerate(zip(probe.names, probe.kinds, strict=True)):
        few = next(item.masked for item in report.attributes if item.name == name)
        assert few is not None
        assert set(np.flatnonzero(probe.weights[row])) <= set(few.dims)
        assert few.per_chunk == (sum(dim < 5 for dim in few.dims), sum(dim >= 5 for dim in few.dims))
        if kind == "number":
            r = np.corrcoef(labels[name].values[test], outputs[:, row])[0, 1]
            assert few.value == pytest.approx(r, abs=1e-3)
        if kind == "binary":
            assert few.value == pytest.approx(
                average_precision_score(labels[name].values[test], outputs[:, row]), abs=1e-3
            )
    means = report.means["binary"]
    assert means["by_weight_average_precision"] <= 1
    assert means["masked_average_precision"] == pytest.approx(
        np.mean([i.masked.value for i in report.attributes if i.kind == "binary" and i.masked])
    )


def test_command_takes_folders_for_categories(tmp_path: Path) -> None:
    values = data(90)[0]
    with FeatureWriter(tmp_path / "feats.npy", identity="x") as writer:
        writer.append(values, [f"{'abc'[i % 3]}/{i:02d}.png" for i in range(90)])
        writer.finish(FeatureMeta(files=(), model_hash="abc"))
    result = run_command(tmp_path, "--labels", "folder", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [(item["name"], item["kind"]) for item in shown["attributes"]] == [("folder", "category")]
    assert shown["labels"] == "folder"


def test_command_needs_file_names(files: Path) -> None:
    (files / "feats.json").unlink()
    result = run_command(files)
    assert isinstance(result.exception, FeatureFileError)
    assert "feats.json" in str(result.exception)


def test_report_is_json_and_reproducible(report: ProbeReport, tmp_path: Path) -> None:
    values, rng = data()
    again = probe_features(values, columns(values, rng), seed=3, meta=FeatureMeta(files=(), model_hash="abc"))
    assert again.to_dict() == report.to_dict()
    facts = write_report(report, tmp_path / "deep" / "probe", {"labels": "x.csv"})
    assert json.loads((tmp_path / "deep" / "probe" / "report.json").read_text()) == json.loads(json.dumps(facts))
    assert facts["labels"] == "x.csv"
    assert load_probe(tmp_path / "deep" / "probe" / "probe.safetensors").model_hash == "abc"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"):
        write_report(report, tmp_path / "file", {})


def test_command_hints_at_persons_who_may_be_in_two_parts(files: Path) -> None:
    rows = [f"{i:02d}.png,{20 + i % 9},p{i % 10}\n" for i in range(50)]
    (files / "labels.csv").write_text("file,age,person\n" + "".join(rows))
    alone = run_command(files)
    assert "The labels have a column 'person', but images of one person may be in train and in test" in alone.stderr
    assert "Give --groups FILE" in alone.stderr
    assert json.loads((files / "out" / "report.json").read_text())["identity_hint"]
    apart = run_command(files, "--groups", str(files / "groups.txt"))
    assert "Give --groups" not in apart.stderr
