"""Linear probes: the optimum against scikit-learn, splits, missing values, the join, the saved probe."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score
from typer.testing import CliRunner

from diticli.analysis.label_join import join_labels
from diticli.analysis.linear import BinaryLoss, CategoryLoss, FeatureSpace, SquaredLoss, fit_path
from diticli.analysis.linear_probe import LinearProbe, load_probe, save_probe
from diticli.analysis.probe import REGULARISATIONS, probe_features
from diticli.analysis.probe_files import write_report
from diticli.analysis.probe_report import ProbeReport
from diticli.analysis.splits import split_rows
from diticli.commands.probe import probe
from diticli.data.feature_writer import FeatureWriter
from diticli.data.features import FeatureMeta
from diticli.data.labels import LabelColumn, LabelTable
from diticli.errors import ConfigError, DataError, FeatureFileError, LabelError

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
    return probe_features(values, columns(values, rng), seed=3, model_hash="abc")


def standard_space(values: np.ndarray) -> tuple[FeatureSpace, np.ndarray, np.ndarray]:
    rows = np.arange(len(values))
    space = FeatureSpace.fit(values, rows)
    return space, space.project(values, rows), ((values - space.mean) / space.std).astype(np.float64)


@pytest.mark.parametrize("width", [D, 900])
def test_space_is_an_orthonormal_view_of_standardised_features(width: int) -> None:
    values, _ = data(200, width)
    values[:, 1] = 7.0
    space, projected, standard = standard_space(values)
    assert space.std[1] == 1
    np.testing.assert_allclose(space.mean, values.mean(0, dtype=np.float64), rtol=1e-9)
    rank = space.basis.shape[1]
    assert rank <= min(199, width)
    np.testing.assert_allclose(space.basis.T @ space.basis, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(projected @ space.basis.T, standard, atol=2e-3)
    np.testing.assert_allclose(projected.var(0, dtype=np.float64), space.variances, rtol=1e-3)


@pytest.mark.parametrize("width", [D, 700])
def test_binary_path_matches_scikit_learn(width: int) -> None:
    values, rng = data(400, width)
    space, projected, standard = standard_space(values)
    logits = standard @ rng.normal(size=(width, 3))
    truth = (logits / logits.std(0) * 2 + [0, 2, -2] + rng.normal(size=logits.shape) > 0).astype(np.float64)
    truth[:100, 1] = np.nan
    for fit in fit_path(projected, space.variances, BinaryLoss(truth), [1.0, 0.1, 0.01, 0.001]):
        for column in range(3):
            known = ~np.isnan(truth[:, column])
            exact = LogisticRegression(C=1 / (fit.reg * known.sum()), tol=1e-10, max_iter=10_000)
            exact.fit(standard[known], truth[known, column])
            ours = space.basis @ fit.weights[:, column]
            assert np.linalg.norm(ours - exact.coef_[0]) < 2e-3 * np.linalg.norm(exact.coef_)
            assert fit.bias[column] == pytest.approx(exact.intercept_[0], abs=3e-3)


def test_number_path_matches_scikit_learn() -> None:
    values, rng = data(300)
    space, projected, standard = standard_space(values)
    truth = standard @ rng.normal(size=(D, 2)) + rng.normal(size=(300, 2)) + 1
    truth[rng.random(300) < 0.3, 1] = np.nan
    for fit in fit_path(projected, space.variances, SquaredLoss(truth), [1.0, 0.01, 0.0001]):
        for column in range(2):
            known = ~np.isnan(truth[:, column])
            exact = Ridge(alpha=fit.reg * known.sum()).fit(standard[known], truth[known, column])
            np.testing.assert_allclose(space.basis @ fit.weights[:, column], exact.coef_, atol=2e-3)
            assert fit.bias[column] == pytest.approx(exact.intercept_, abs=1e-3)


def test_category_path_matches_scikit_learn() -> None:
    values, rng = data(300)
    space, projected, standard = standard_space(values)
    codes = (standard @ rng.normal(size=(D, 4)) + 2 * rng.normal(size=(300, 4))).argmax(1)
    codes[:40] = -1
    for fit in fit_path(projected, space.variances, CategoryLoss(codes, 4), [1.0, 0.1, 0.01]):
        exact = LogisticRegression(C=1 / (fit.reg * 260), tol=1e-10, max_iter=10_000)
        exact.fit(standard[40:], codes[40:])
        np.testing.assert_allclose((space.basis @ fit.weights).T, exact.coef_, atol=2e-3)


def test_report_scores_what_the_saved_probe_predicts(report: ProbeReport) -> None:
    """The test rows, the metric and the weights are the ones that are reported."""
    values, rng = data()
    labels = columns(values, rng)
    test = split_rows(N, seed=3).test
    outputs = report.probe.predict(values[test])
    by_name = {item.name: item for item in report.attributes}
    assert list(by_name) == list(labels)
    for row, name in enumerate(report.probe.names):
        truth = labels[name].values[test]
        if report.probe.kinds[row] == "binary":
            expected = average_precision_score(truth, outputs[:, row])
            assert by_name[name].value == pytest.approx(expected, abs=1e-3)
            assert by_name[name].base_rate == pytest.approx(truth.mean())
        if report.probe.kinds[row] == "number":
            item = by_name[name]
            assert item.value == pytest.approx(np.corrcoef(truth, outputs[:, row])[0, 1], abs=1e-3)
            assert item.extras["r2"] == pytest.approx(r2_score(truth, outputs[:, row]), abs=1e-3)
            assert item.extras["mse_raw"] == pytest.approx(np.mean((truth - outputs[:, row]) ** 2), rel=1e-2)
    rows = [row for row, name in enumerate(report.probe.names) if name == "colour"]
    classes = np.array([report.probe.classes[row] for row in rows])
    assert sorted(classes) == ["blue", "green", "red"]
    correct = classes[outputs[:, rows].argmax(1)] == labels["colour"].values[test]
    assert by_name["colour"].value == pytest.approx(correct.mean())


def test_report_finds_what_is_there_and_nothing_else(report: ProbeReport) -> None:
    by_name = {item.name: item for item in report.attributes}
    assert by_name["hat"].value > 0.95
    assert by_name["age"].value > 0.99
    assert by_name["age"].extras["mse"] < 0.02
    assert by_name["age"].extras["mse_raw"] > by_name["age"].extras["mse"]
    assert by_name["colour"].value > 0.85 > by_name["colour"].base_rate
    assert abs(by_name["noise"].value) < 0.3
    assert by_name["smiling"].value > by_name["smiling"].base_rate + 0.2
    assert all(item.regularisation in REGULARISATIONS for item in report.attributes)
    assert report.means["binary"]["attributes"] == 2
    assert report.means["binary"]["average_precision"] == pytest.approx(
        (by_name["hat"].value + by_name["smiling"].value) / 2
    )
    assert report.split == {"train": 420, "val": 90, "test": 90}
    assert {(item.n_train, item.n_val, item.n_test) for item in report.attributes} == {(420, 90, 90)}


def test_report_is_json_and_reproducible(report: ProbeReport, tmp_path: Path) -> None:
    values, rng = data()
    again = probe_features(values, columns(values, rng), seed=3, model_hash="abc")
    assert again.to_dict() == report.to_dict()
    facts = write_report(report, tmp_path / "deep" / "probe", {"labels": "x.csv"})
    assert json.loads((tmp_path / "deep" / "probe" / "report.json").read_text()) == json.loads(json.dumps(facts))
    assert facts["labels"] == "x.csv"
    assert load_probe(tmp_path / "deep" / "probe" / "probe.safetensors").model_hash == "abc"
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"):
        write_report(report, tmp_path / "file", {})


def test_the_test_rows_choose_nothing() -> None:
    values, rng = data()
    labels = columns(values, rng)
    test = split_rows(N, seed=0).test
    before = probe_features(values, labels)
    spoiled = {name: LabelColumn(c.kind, c.values.copy()) for name, c in labels.items()}
    changed = values.copy()
    changed[test] = changed[test][::-1] * 3
    for column in spoiled.values():
        column.values[test] = column.values[test][::-1]
    after = probe_features(changed, spoiled)
    np.testing.assert_array_equal(before.probe.weights, after.probe.weights)
    np.testing.assert_array_equal(before.probe.mean, after.probe.mean)
    assert before.attributes != after.attributes


def test_rows_select_from_a_memory_map(tmp_path: Path) -> None:
    values, rng = data()
    labels = columns(values, rng)
    rows = np.sort(rng.permutation(N)[:300])
    np.save(tmp_path / "x.npy", values)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    some = {name: LabelColumn(c.kind, c.values[rows]) for name, c in labels.items()}
    chosen = probe_features(mapped, some, rows=rows)
    assert chosen.to_dict() == probe_features(values[rows], some).to_dict()


def test_missing_values_are_left_out_per_attribute() -> None:
    values, rng = data()
    labels = columns(values, rng)
    split = split_rows(N, seed=0)
    for name, unknown in (("smiling", np.nan), ("age", np.nan), ("colour", "")):
        labels[name].values[split.train[:100]] = unknown
        labels[name].values[split.test[:7]] = unknown
    labels["age"].values[split.val[0]] = np.inf
    report = probe_features(values, labels)
    by_name = {item.name: item for item in report.attributes}
    for name in ("smiling", "age", "colour"):
        assert (by_name[name].n_train, by_name[name].n_test) == (320, 83)
    assert by_name["age"].n_val == 89
    assert by_name["hat"].n_train == 420
    assert by_name["age"].value > 0.99


def test_attributes_that_cannot_be_probed_say_why() -> None:
    values, rng = data()
    split = split_rows(N, seed=0)
    few, absent, lonely = np.zeros(N), np.zeros(N), rng.normal(size=N)
    few[split.train[:4]] = few[split.val[:3]] = few[split.test[:3]] = 1
    absent[split.train[:50]] = absent[split.val[:5]] = 1
    lonely[split.test] = 2.0
    labels = {
        "few": LabelColumn("binary", few.astype(np.float32)),
        "absent": LabelColumn("binary", absent.astype(np.float32)),
        "always": LabelColumn("binary", np.ones(N, np.float32)),
        "unknown": LabelColumn("binary", np.full(N, np.nan, np.float32)),
        "constant": LabelColumn("number", np.full(N, 0.1, np.float32)),
        "nothing": LabelColumn("number", np.full(N, np.nan, np.float32)),
        "lonely": LabelColumn("number", lonely.astype(np.float32)),
        "same": LabelColumn("category", np.full(N, "red")),
        "ids": LabelColumn("category", np.array([f"id{i}" for i in range(N)])),
        "blank": LabelColumn("category", np.full(N, "")),
    }
    good = columns(values, rng)["hat"]
    report = probe_features(values, labels | {"hat": good})
    reasons = {item.name: item.reason for item in report.skipped}
    assert list(reasons) == list(labels)
    assert reasons["few"] == "4 positives in train, 5 are needed"
    assert reasons["absent"] == "no positives in test"
    assert reasons["always"] == "0 negatives in train, 5 are needed"
    assert reasons["constant"] == "constant in train"
    assert reasons["lonely"] == "constant or unknown in test"
    assert "fewer than two classes" in reasons["ids"]
    assert [item.name for item in report.attributes] == ["hat"]
    with pytest.raises(LabelError, match="None of the 10 attributes"):
        probe_features(values, labels)


def test_rare_classes_are_left_out_and_counted() -> None:
    values, rng = data()
    colour = columns(values, rng)["colour"].values.astype(object)
    colour[split_rows(N, seed=0).train[:2]] = "violet"
    colour[split_rows(N, seed=0).test[0]] = "ochre"
    report = probe_features(values, {"colour": LabelColumn("category", colour)})
    item = report.attributes[0]
    assert item.extras == {"classes": 3, "rare_classes_left_out": 2, "rows_left_out": 3}
    assert (item.n_train, item.n_test) == (418, 89)


def test_no_score_is_ever_nan_on_degenerate_features() -> None:
    values, rng = data(200, 6)
    labels = columns(values, rng)
    values[:, 1:] = 3.0
    values[:, 0] = rng.normal(size=200) * 1e-20
    report = probe_features(values, labels)
    scores = [v for item in report.attributes for v in (item.value, item.base_rate, *item.extras.values())]
    assert all(math.isfinite(score) for score in scores)
    assert np.isfinite(report.probe.weights).all()
    with pytest.raises(FeatureFileError, match="constant"):
        probe_features(np.full((200, 6), 2.5, np.float32), labels)


def test_more_features_than_rows() -> None:
    values, _ = data(150, 400)
    report = probe_features(values, {"x": LabelColumn("binary", (values[:, 3] > 5).astype(np.float32))})
    assert report.probe.weights.shape == (1, 400)
    assert report.attributes[0].value > report.attributes[0].base_rate


@pytest.mark.parametrize("case", ["lengths", "rows", "seed", "fractions"])
def test_arguments_that_cannot_be(case: str) -> None:
    values, rng = data(40)
    labels = columns(values, rng)
    error, match = {
        "lengths": (LabelError, "40 values for 39 rows"),
        "rows": (LabelError, "2 rows cannot be split"),
        "seed": (ConfigError, "negative"),
        "fractions": (ConfigError, "three positive shares"),
    }[case]
    short = {"x": LabelColumn("binary", np.zeros(2, np.float32))}
    calls: dict[str, Any] = {
        "lengths": lambda: probe_features(values[:39], labels),
        "rows": lambda: probe_features(values[:2], short),
        "seed": lambda: probe_features(values, labels, seed=-1),
        "fractions": lambda: probe_features(values, labels, fractions=(0.5, 0.5, 0.5)),
    }
    with pytest.raises(error, match=match):
        calls[case]()


@given(
    count=st.integers(3, 300),
    groups=st.one_of(st.none(), st.integers(3, 40)),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=60, deadline=None)
def test_splits_are_partitions_and_keep_groups(count: int, groups: int | None, seed: int) -> None:
    ids = None
    if groups is not None:
        count = max(count, groups)
        ids = [f"g{i % groups if i < groups else (i * i + seed) % groups}" for i in range(count)]
    split = split_rows(count, groups=ids, seed=seed)
    parts = [split.train, split.val, split.test]
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(len(part) for part in parts)
    again = split_rows(count, groups=ids, seed=seed)
    assert all((a == b).all() for a, b in zip(parts, (again.train, again.val, again.test), strict=True))
    if ids is not None:
        of = [{ids[row] for row in part} for part in parts]
        assert not of[0] & of[1]
        assert not (of[0] | of[1]) & of[2]


def test_splits_hold_their_fractions() -> None:
    assert split_rows(1000, seed=1).sizes == {"train": 700, "val": 150, "test": 150}
    rng = np.random.default_rng(0)
    ids = [str(i) for i in rng.zipf(1.5, size=4000) % 500]
    sizes = split_rows(4000, groups=ids, seed=1, fractions=(0.5, 0.25, 0.25)).sizes
    biggest = max(ids.count(i) for i in set(ids))
    assert all(abs(sizes[part] - f * 4000) <= biggest for part, f in zip(sizes, (0.5, 0.25, 0.25), strict=True))
    assert (split_rows(100, seed=1).test != split_rows(100, seed=2).test).any()
    with pytest.raises(LabelError, match="2 groups cannot"):
        split_rows(10, groups=["a"] * 5 + ["b"] * 5)
    with pytest.raises(LabelError, match="3 groups for 10 rows"):
        split_rows(10, groups=["a", "b", "c"])


def test_groups_reach_the_report() -> None:
    values, rng = data()
    ids = [f"person{i % 50}" for i in range(N)]
    report = probe_features(values, columns(values, rng), ids)
    assert report.groups == 50
    assert "50 groups kept together" in report.describe_split()


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
    direction = loaded.direction("hat")
    assert direction.shape == (D,)
    moved = (values - loaded.mean) / loaded.std + 2 * math.sqrt(D) * direction / np.linalg.norm(direction)
    row = loaded.names.index("hat")
    assert (loaded.predict(moved * loaded.std + loaded.mean)[:, row] > loaded.predict(values)[:, row]).all()
    assert loaded.direction("colour", "red").shape == (D,)
    with pytest.raises(LabelError, match="colour=violet"):
        loaded.direction("colour", "violet")
    with pytest.raises(LabelError, match="no attribute 'beard'"):
        loaded.direction("beard")


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
    assert report["matched"] == {"rows": 50, "features": 60, "labels": 50, "without_group": 0}
    assert load_probe(files / "out" / "probe.safetensors").model_hash == "abc"


def test_command_prints_only_json_on_stdout(files: Path) -> None:
    result = run_command(files, "--json", "--seed", "4")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown == json.loads((files / "out" / "report.json").read_text())
    assert shown["seed"] == 4
    assert [item["name"] for item in shown["attributes"]] == ["age", "colour"]


def test_command_needs_file_names(files: Path) -> None:
    (files / "feats.json").unlink()
    result = run_command(files)
    assert isinstance(result.exception, FeatureFileError)
    assert "feats.json" in str(result.exception)
