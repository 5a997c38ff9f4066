"""Disentanglement metrics on codes whose scores are known: copies, rotations, mixtures, noise."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from diticli.chunks import ChunkLayout
from diticli.data.labels import LabelColumn
from diticli.data.splits import Split, split_rows
from diticli.disentanglement import DisentanglementReport, measure_disentanglement
from diticli.errors import ConfigError, FeatureFileError, LabelError
from diticli.progress import SilentReporter

ROWS = 1200


def four_factors() -> tuple[np.ndarray, dict[str, LabelColumn]]:
    """[N, 4] two numbers and two fair coins, and the columns that say so."""
    rng = np.random.default_rng(5)
    values = rng.uniform(-1, 1, size=(ROWS, 4))
    values[:, 2:] = values[:, 2:] > 0
    kinds = ("number", "number", "binary", "binary")
    columns = {f"f{i}": LabelColumn(kind, values[:, i].astype(np.float32)) for i, kind in enumerate(kinds)}
    return values, columns


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


def rotation(dims: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dims, dims)))[0]


def noise(dims: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, dims))


def measure(codes: np.ndarray, columns: dict[str, LabelColumn], **others: Any) -> DisentanglementReport:
    split = split_rows(len(codes), seed=1)
    return measure_disentanglement(codes.astype(np.float32), columns, split, **others)


@pytest.fixture(scope="module", autouse=True)
def fewer_votes() -> Iterator[None]:
    """A tenth of the votes: enough for scores this far apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diticli.disentanglement.factor_vae.TRAIN_VOTES", 1000)
        patch.setattr("diticli.disentanglement.factor_vae.TEST_VOTES", 500)
        yield


@pytest.fixture(scope="module")
def copied() -> DisentanglementReport:
    values, columns = four_factors()
    return measure(np.concatenate([values, noise(2)], axis=1), columns)


def test_copies_of_the_factors_are_perfect(copied: DisentanglementReport) -> None:
    dims = copied.dims
    assert dims.units == 6
    for name in ("disentanglement", "completeness", "linear_disentanglement", "linear_completeness"):
        assert getattr(dims, name) > 0.97, name
    assert dims.mig > 0.9
    assert dims.factor_vae == 1.0
    assert dims.factor_vae_chance == 0.25
    assert copied.informativeness > 0.97
    assert copied.explicitness > 0.97
    assert copied.chunks is None


def test_sap_and_tad_of_copies_have_their_own_perfect_values(copied: DisentanglementReport) -> None:
    assert copied.dims.sap == pytest.approx((1 + 1 + 0.5 + 0.5) / 4, abs=0.05)
    assert copied.dims.tad == pytest.approx(4 * 0.5, abs=0.2)
    assert copied.dims.captured == ("f0", "f1", "f2", "f3")
    assert copied.dims.considered == 4


def test_best_dims_of_copies_are_the_copies(copied: DisentanglementReport) -> None:
    assert [factor.best_dim for factor in copied.factors] == [0, 1, 2, 3]
    assert [factor.best_chunk for factor in copied.factors] == [None] * 4
    assert all(factor.chunk_information == () for factor in copied.factors)


def test_a_rotation_keeps_what_can_be_read_and_mixes_what_dims_say(copied: DisentanglementReport) -> None:
    values, columns = four_factors()
    rotated = measure(standardised(values) @ rotation(4, seed=2), columns)
    assert rotated.explicitness == pytest.approx(copied.explicitness, abs=0.02)
    assert rotated.informativeness > 0.8
    assert rotated.dims.mig < 0.3
    assert rotated.dims.linear_disentanglement < 0.5
    assert rotated.dims.linear_completeness < 0.5
    assert rotated.dims.disentanglement < 0.6
    assert rotated.dims.sap < 0.4
    assert rotated.dims.tad < 1.2


def test_noise_tells_nothing() -> None:
    report = measure(noise(6), four_factors()[1])
    assert report.informativeness < 0.05
    assert report.explicitness == pytest.approx(0.5, abs=0.06)
    assert report.dims.mig < 0.03
    assert report.dims.sap < 0.05
    assert report.dims.tad == 0
    assert report.dims.captured == ()
    assert report.dims.factor_vae < 0.45
    assert report.dims.linear_disentanglement is None
    assert report.dims.linear_completeness is None
    assert report.dims.disentanglement < 0.3


def test_a_factor_told_twice_is_less_complete_and_has_no_gap(copied: DisentanglementReport) -> None:
    values, columns = four_factors()
    report = measure(np.concatenate([values, 1 - 2 * values[:, :1], noise(1)], axis=1), columns)
    assert report.factors[0].dim_mig < 0.05 < 0.85 < copied.factors[0].dim_mig
    assert report.factors[0].dim_sap == pytest.approx(0, abs=1e-6)
    assert report.dims.completeness < copied.dims.completeness - 0.02
    assert report.factors[1].dim_mig == pytest.approx(copied.factors[1].dim_mig, abs=0.05)
    assert report.dims.tad < copied.dims.tad - 0.4


def test_constant_dims_count_for_nothing(copied: DisentanglementReport) -> None:
    values, columns = four_factors()
    dead = np.full((ROWS, 3), 1000.0)
    report = measure(np.concatenate([dead, values, noise(2)], axis=1), columns)
    assert report.dims == copied.dims
    assert [factor.best_dim for factor in report.factors] == [3, 4, 5, 6]


def test_order_and_scale_of_dims_do_not_matter() -> None:
    values, columns = four_factors()
    codes = standardised(values) @ rotation(4, seed=2) + 0.1 * noise(4)
    first = measure(codes, columns)
    order = [2, 0, 3, 1]
    second = measure(codes[:, order] * np.array([100.0, 0.01, 1.0, -7.0]) + 3, columns)
    exact = ("units", "captured", "considered", "factor_vae", "factor_vae_chance")
    by_range = ("info_modularity", "info_compactness")  # dims of a small range do not count there
    for name, value in vars(first.dims).items():
        if name in by_range:
            continue
        expected = value if name in exact else pytest.approx(value, abs=0.02)
        assert getattr(second.dims, name) == expected, name
    assert [order[f.best_dim] for f in second.factors] == [f.best_dim for f in first.factors]


def test_chunks_are_perfect_where_each_holds_one_factor_in_a_rotation() -> None:
    values, columns = four_factors()
    even = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    truth = standardised(values)
    parts = [np.concatenate([truth[:, [k]], noise(3, seed=20 + k)], axis=1) @ even for k in range(4)]
    report = measure(np.concatenate(parts, axis=1), columns, layout=ChunkLayout.uniform(chunks=4, latent_dim=16))
    chunks, dims = report.chunks, report.dims
    assert (chunks.units, dims.units) == (4, 16)
    assert chunks.linear_disentanglement > 0.95
    assert chunks.linear_completeness > 0.95
    assert dims.linear_completeness == pytest.approx(1 - np.log(4) / np.log(16), abs=0.03)
    assert chunks.completeness > 0.85 > 0.7 > dims.completeness
    assert chunks.mig > 0.6 > 0.1 > dims.mig
    assert chunks.sap > 0.65 > 0.2 > dims.sap
    assert chunks.modularity > 0.9
    assert chunks.tad == pytest.approx(2.0, abs=0.3)
    assert dims.tad < 0.5
    assert chunks.factor_vae > 0.95
    assert [factor.best_chunk for factor in report.factors] == [0, 1, 2, 3]
    table = np.array([factor.chunk_information for factor in report.factors])
    assert table.shape == (4, 4)
    assert (table.argmax(axis=1) == np.arange(4)).all()


def test_a_dead_chunk_is_no_unit_and_shares_no_information() -> None:
    values, columns = four_factors()
    codes = np.concatenate([values[:, :2], np.zeros((ROWS, 2)), values[:, 2:]], axis=1)
    report = measure(codes, columns, layout=ChunkLayout.uniform(chunks=3, latent_dim=6))
    assert report.chunks.units == 2
    assert [factor.best_chunk for factor in report.factors] == [0, 0, 2, 2]
    assert all(factor.chunk_information[1] == 0 for factor in report.factors)


def test_one_chunk_is_nothing_to_compare() -> None:
    values, columns = four_factors()
    report = measure(values, columns, layout=ChunkLayout.uniform(chunks=1, latent_dim=4))
    assert report.chunks is None


def test_undefined_scores_are_none_not_nan() -> None:
    values, columns = four_factors()
    report = measure(values[:, 2:3], {"f2": columns["f2"]})
    dims = report.dims
    assert (dims.disentanglement, dims.completeness, dims.mig, dims.sap, dims.factor_vae) == (None,) * 5
    assert (dims.modularity, dims.tad, dims.factor_vae_chance) == (None,) * 3
    assert dims.captured == ("f2",)
    assert report.informativeness == 1.0


def test_categories_have_scores_on_dims_and_chunks() -> None:
    rng = np.random.default_rng(3)
    codes = rng.integers(3, size=(ROWS, 2))
    names = np.array(["left", "middle", "right"])
    columns = {name: LabelColumn("category", names[codes[:, i]]) for i, name in enumerate("ab")}
    values = np.stack([codes[:, 0], noise(1)[:, 0], codes[:, 1], noise(1, seed=4)[:, 0]], axis=1)
    report = measure(values, columns, layout=ChunkLayout.uniform(chunks=2, latent_dim=4))
    for scores in (report.dims, report.chunks):
        assert scores.mig > 0.9
        assert scores.completeness > 0.97
        assert scores.considered == 0
        assert scores.tad is None
        assert scores.factor_vae > 0.99
    assert report.dims.sap == pytest.approx(2 / 3, abs=0.08)
    assert report.explicitness > 0.95


def test_unknown_values_are_left_out() -> None:
    values, columns = four_factors()
    holes = values[:, 0].astype(np.float32)
    holes[::3] = np.nan
    texts = np.where(values[:, 2] > 0, "yes", "no").astype("U3")
    texts[1::3] = ""
    columns |= {"f0": LabelColumn("number", holes), "f2": LabelColumn("category", texts)}
    report = measure(values, columns)
    assert report.dims.mig > 0.85
    assert report.informativeness > 0.97


def test_columns_that_cannot_serve_are_skipped_with_the_reason() -> None:
    values, columns = four_factors()
    rare = np.zeros(ROWS, dtype=np.float32)
    rare[:4] = 1
    unknown = np.full(ROWS, np.nan, dtype=np.float32)
    columns |= {
        "constant": LabelColumn("number", np.ones(ROWS, dtype=np.float32)),
        "rare": LabelColumn("binary", rare),
        "unknown": LabelColumn("number", unknown),
        "names": LabelColumn("category", np.array([f"person {row}" for row in range(ROWS)])),
    }
    report = measure(values, columns)
    assert {item.name: item.reason for item in report.skipped}.keys() == {"constant", "rare", "unknown", "names"}
    assert all(item.reason for item in report.skipped)
    assert [item.name for item in report.factors] == ["f0", "f1", "f2", "f3"]


def test_the_same_seed_gives_the_same_report_as_plain_json() -> None:
    values, columns = four_factors()
    codes = (standardised(values) @ rotation(4, seed=2)).astype(np.float32)
    layout = ChunkLayout.uniform(chunks=2, latent_dim=4)
    first = measure_disentanglement(codes, columns, None, layout=layout, seed=7)
    again = measure_disentanglement(codes, columns, None, layout=layout, seed=7)
    assert first == again
    assert (first.train_rows, first.test_rows) == (840, 360)
    facts = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert facts["chunks"]["mig"] == first.chunks.mig
    assert facts["factors"][0]["name"] == "f0"


def test_progress_counts_factors() -> None:
    class Counter(SilentReporter):
        done = 0

        def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
            self.total = total

        def advance(self, amount: int = 1, **fields: str | float) -> None:
            self.done += amount

    values, columns = four_factors()
    counter = Counter()
    measure(values, columns, reporter=counter)
    assert counter.done == counter.total == 4


def test_validation_rows_do_not_matter() -> None:
    values, columns = four_factors()
    split = Split(train=np.arange(600), val=np.arange(600, 800), test=np.arange(800, ROWS))
    spoiled = values.copy()
    spoiled[600:800] = 77.0
    pair = [measure_disentanglement(codes.astype(np.float32), columns, split) for codes in (values, spoiled)]
    assert pair[0] == pair[1]


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"seed": -1}, ConfigError, "seed -1"),
        ({"columns": {"short": LabelColumn("number", np.zeros(3, dtype=np.float32))}}, LabelError, "3 values for 1200"),
        ({"columns": {}}, LabelError, "None of the 0 attributes"),
        ({"codes_ND": np.ones((ROWS, 4), dtype=np.float32)}, FeatureFileError, "All 4 features are constant"),
        ({"codes_ND": np.full((ROWS, 4), np.nan, dtype=np.float32)}, FeatureFileError, "not finite"),
        ({"layout": ChunkLayout.uniform(chunks=2, latent_dim=6)}, FeatureFileError, "cover 6 dimensions"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], error: type[Exception], text: str) -> None:
    values, columns = four_factors()
    arguments: dict[str, Any] = {"codes_ND": values.astype(np.float32), "columns": columns, "split": None} | change
    with pytest.raises(error, match=text):
        measure_disentanglement(**arguments)
