"""Bootstrap intervals of the probe: their metrics, their draws, and whether they hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, r2_score, roc_auc_score

from diticli.data.label_columns import Kind
from diticli.data.labels import LabelColumn
from diticli.probing.probe import probe_features
from diticli.probing.resampling import intervals_of, mean_intervals_of, resample_scores
from diticli.statistics import Bootstrap, interval, mean_of
from diticli.targets import Target


def target(kind: Kind, values: np.ndarray, name: str = "a", scale: float = 1.0, classes: int = 0) -> Target:
    names = tuple(map(str, range(classes)))
    return Target(name=name, kind=kind, values=values.astype(np.float64) * scale, std=scale, classes=names)


def resampled(one: Target, outputs: np.ndarray, draws: Bootstrap) -> dict[str, np.ndarray]:
    return resample_scores([one], np.arange(len(outputs)), {one.name: outputs}, draws)[one.name]


def picked(draws: Bootstrap) -> list[np.ndarray]:
    """Row numbers of every resample."""
    counts = np.concatenate(list(draws.blocks())).astype(int)
    return [np.repeat(np.arange(counts.shape[1]), row) for row in counts]


@pytest.mark.parametrize("ties", [False, True])
def test_binary_scores_of_resamples_are_those_of_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(70) < 0.3).astype(float)
    scores = truth + rng.normal(size=70)
    scores = np.round(scores) if ties else scores
    draws = Bootstrap(unit_of_row=np.arange(70), resamples=25, seed=3)
    found = resampled(target("binary", truth), scores[:, None], draws)
    for i, rows in enumerate(picked(draws)):
        assert found["average_precision"][i] == pytest.approx(
            average_precision_score(truth[rows], scores[rows]), abs=1e-6
        )
        assert found["roc_auc"][i] == pytest.approx(roc_auc_score(truth[rows], scores[rows]), abs=1e-6)


def test_number_and_category_scores_of_resamples_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=60) + 1e4
    truth[:5] = np.nan
    outputs = (truth + rng.normal(size=60))[:, None]
    outputs[:5] = 0
    draws = Bootstrap(unit_of_row=np.arange(60), resamples=20)
    found = resampled(target("number", truth, scale=3.0), outputs, draws)
    logits = rng.normal(size=(60, 4))
    codes = rng.integers(0, 4, 60).astype(float)
    accuracy = resampled(target("category", codes, classes=4), logits, draws)["accuracy"]
    for i, rows in enumerate(picked(draws)):
        known = rows[rows >= 5]
        y, p = truth[known], outputs[known, 0]
        assert found["pearson_r"][i] == pytest.approx(np.corrcoef(y, p)[0, 1], abs=1e-6)
        assert found["r2"][i] == pytest.approx(r2_score(y, p), abs=1e-6)
        assert found["mse"][i] == pytest.approx(np.mean((y - p) ** 2))
        assert found["mse_raw"][i] == pytest.approx(9 * np.mean((y - p) ** 2))
        assert accuracy[i] == pytest.approx(accuracy_score(codes[rows], logits[rows].argmax(1)))


def test_draws_take_whole_groups_and_repeat_themselves() -> None:
    groups = [f"person{i // 4}" for i in range(40)]
    draws = Bootstrap.over_rows(40, groups, seed=5)
    counts = np.concatenate(list(draws.blocks()))
    assert counts.shape == (1000, 40)
    assert (counts.reshape(1000, 10, 4) == counts[:, ::4, None]).all()
    assert (counts[:, ::4].sum(axis=1) == 10).all()
    np.testing.assert_array_equal(counts, np.concatenate(list(Bootstrap.over_rows(40, groups, seed=5).blocks())))
    assert (counts != np.concatenate(list(Bootstrap.over_rows(40, groups, seed=6).blocks()))).any()


@pytest.mark.parametrize("kind", ["number", "binary"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: Kind) -> None:
    def sample(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        score = rng.normal(size=count)
        noisy = score + rng.normal(size=count)
        return score, noisy if kind == "number" else (noisy > 1).astype(float)

    score, values = sample(np.random.default_rng(99), 1_000_000)
    metric = "pearson_r" if kind == "number" else "average_precision"
    truth = np.corrcoef(values, score)[0, 1] if kind == "number" else average_precision_score(values, score)
    covered = 0
    for run in range(200):
        score, values = sample(np.random.default_rng(run), 250)
        draws = Bootstrap(unit_of_row=np.arange(250), resamples=300, seed=run)
        low, high = intervals_of(resampled(target(kind, values), score[:, None], draws))[metric]
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_groups_make_intervals_as_wide_as_their_number_warrants() -> None:
    """Ten copies of each row are no more evidence than the row itself."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=40)
    outputs = (truth + rng.normal(size=40))[:, None]
    many, copies = np.repeat(truth, 10), np.repeat(outputs, 10, axis=0)
    groups = [str(i // 10) for i in range(400)]

    def width(values: np.ndarray, predicted: np.ndarray, draws: Bootstrap) -> float:
        low, high = intervals_of(resampled(target("number", values), predicted, draws))["pearson_r"]
        return high - low

    own = width(truth, outputs, Bootstrap.over_rows(40))
    assert width(many, copies, Bootstrap.over_rows(400, groups)) == pytest.approx(own, rel=0.15)
    assert width(many, copies, Bootstrap.over_rows(400)) < 0.5 * own


def test_means_see_the_same_rows() -> None:
    """The mean of an attribute and its copy is as uncertain as the attribute; with its opposite it is certain."""
    rng = np.random.default_rng(2)
    right = (rng.random(200) < 0.6).astype(float)
    logits = np.stack([np.zeros(200), np.ones(200)], axis=1)
    targets = [target("category", values, name=str(i), classes=2) for i, values in enumerate((right, right, 1 - right))]
    found = resample_scores(targets, np.arange(200), {t.name: logits for t in targets}, Bootstrap.over_rows(200))
    alone = intervals_of(found["0"])["accuracy"]
    assert mean_intervals_of([found["0"], found["1"]])["accuracy"] == pytest.approx(alone)
    assert mean_intervals_of([found["0"], found["2"]])["accuracy"] == pytest.approx((0.5, 0.5))


def test_resamples_without_a_score_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0])
    assert interval(values) == pytest.approx((1.05, 2.95))
    assert interval(np.full(3, np.nan)) is None
    np.testing.assert_allclose(mean_of([values, np.array([0.0, 1.0, 2.0, 3.0])]), [1.0, 1.0, 2.0, 3.0])
    rare = np.zeros(12)
    rare[0] = 1
    found = resampled(target("binary", rare), np.arange(12.0)[::-1, None], Bootstrap.over_rows(12))
    assert np.isnan(found["average_precision"]).any()
    assert intervals_of(found)["average_precision"] == pytest.approx((1, 1))


def test_report_holds_intervals_around_its_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(600, 8)).astype(np.float32)
    noisy = values[:, 0] + rng.normal(size=600)
    columns = {
        "age": LabelColumn("number", noisy.astype(np.float32)),
        "hat": LabelColumn("binary", (noisy > 0.5).astype(np.float32)),
        "smile": LabelColumn("binary", (values[:, 1] + rng.normal(size=600) > 0).astype(np.float32)),
        "colour": LabelColumn("category", np.array(["r", "g"])[(noisy > 0).astype(int)]),
    }
    report = probe_features(values, columns, seed=1)
    for item in report.attributes:
        assert item.low is not None
        assert item.high is not None
        assert item.low < item.value < item.high
        assert item.intervals[item.metric] == (item.low, item.high)
        assert set(item.intervals) == {item.metric} | {k for k in item.extras if not k.endswith(("_out", "classes"))}
    low, high = report.mean_intervals["binary"]["average_precision"]
    assert low < report.means["binary"]["average_precision"] < high
    widest = max(item.high - item.low for item in report.attributes if item.kind == "binary" and item.high and item.low)
    assert high - low < widest
    assert report.to_dict() == probe_features(values, columns, seed=1).to_dict()


def test_one_group_of_test_rows_has_no_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(90, 3)).astype(np.float32)
    groups = [f"{i // 30}" for i in range(90)]
    report = probe_features(values, {"x": LabelColumn("number", values[:, 0])}, groups)
    assert (report.attributes[0].low, report.attributes[0].high, report.mean_intervals) == (None, None, {})
