"""The linear probe: what it reports, leaves out and refuses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, r2_score

from diticli.data.labels import LabelColumn
from diticli.data.splits import given_split, split_rows
from diticli.errors import ConfigError, FeatureFileError, LabelError
from diticli.features.read import FeatureMeta
from diticli.probing.probe import REGULARISATIONS, probe_features
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


def test_groups_reach_the_report() -> None:
    values, rng = data()
    ids = [f"person{i % 50}" for i in range(N)]
    report = probe_features(values, columns(values, rng), ids)
    assert report.groups == 50
    assert "50 groups kept together" in report.describe_split()
    again = {"who": LabelColumn("category", np.array([f"p{i % 50}" for i in range(N)]))}
    report = probe_features(values, columns(values, rng) | again, ids)
    assert [(item.name, item.reason) for item in report.skipped if item.name == "who"] == [
        ("who", "it is the group, which the split keeps together")
    ]


def test_a_given_split_is_used_and_said() -> None:
    values, rng = data()
    parts = ["test" if i < 100 else "val" if i < 250 else "train" for i in range(N)]
    report = probe_features(values, columns(values, rng), split=given_split(parts), seed=7)
    assert report.split == {"train": 350, "val": 150, "test": 100}
    assert report.seed is None
    assert report.describe_split() == "Split train / val / test: 350 / 150 / 100 rows, as given."
    np.testing.assert_allclose(report.probe.mean, values[250:].mean(0), rtol=1e-3, atol=1e-4)
