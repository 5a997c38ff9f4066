"""`diti compare --benchmark`: seeds, intervals and tests by formula, units of chunks, resuming, table and command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from typer.testing import CliRunner

from diticli.chunks import ChunkLayout
from diticli.commands.app import app
from diticli.comparison import benchmark, entries
from diticli.comparison.entry_specs import parse_entries
from diticli.disentanglement import factor_vae, measure_disentanglement
from diticli.disentanglement.components import first_components
from diticli.errors import ConfigError, FeatureFileError
from diticli.statistics import difference_p, mean_of_runs

T_975_2 = 4.302652729911275
"""97.5 % quantile of Student's t with two degrees of freedom."""


# intervals and tests


def test_intervals_over_splits_have_the_variance_for_shared_rows() -> None:
    values = np.array([[0.4, 0.5, 0.6]])
    found = mean_of_runs(values, 0.15 / 0.7)
    half = T_975_2 * 0.1 * np.sqrt(1 / 3 + 0.15 / 0.7)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    alone = mean_of_runs(values[:, :1], 0.2)
    assert (alone.low, alone.high) == (None, None)
    unknown = mean_of_runs(np.array([[0.4, np.nan]]), 0.2)
    assert np.isnan(unknown.value)
    assert unknown.low is None


def test_intervals_over_runs_are_of_their_means() -> None:
    values = np.array([[0.3, 0.5], [0.4, 0.6], [0.5, 0.7]])
    found = mean_of_runs(values, 0.2)
    assert found.value == pytest.approx(0.5)
    assert found.high == pytest.approx(0.5 + T_975_2 * 0.1 / np.sqrt(3))


def test_differences_are_tested_on_the_same_splits_or_over_runs() -> None:
    first = np.array([[0.1, 0.5, 0.9]])
    near = first + np.array([[0.2, 0.2001, 0.1999]])
    p = difference_p(first, near, 0.2)
    assert p is not None
    assert p < 1e-3, "what all splits share does not hide a difference"
    assert difference_p(first, first, 0.2) is None
    assert difference_p(first[:, :1], near[:, :1], 0.2) is None
    runs = np.array([[0.5, 0.5], [0.6, 0.6], [0.55, 0.55]])
    one = np.array([[0.9, 0.9]])
    against_one = difference_p(runs, one, 0.2)
    assert against_one is not None
    assert against_one == pytest.approx(difference_p(one, runs, 0.2))
    assert against_one < 0.01
    assert difference_p(runs, runs, 0.2) == pytest.approx(1)


# units


def test_a_chunk_is_its_first_principal_component() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7))
    layout, train = ChunkLayout(timestep_ends=(500, 900, 1000), ends=(3, 6, 7)), np.arange(40)
    found = first_components(values.astype(np.float32), layout, train)
    for chunk, dims in enumerate((slice(0, 3), slice(3, 6), slice(6, 7))):
        theirs = PCA(1).fit(values[train][:, dims]).transform(values[:, dims])[:, 0]
        assert abs(np.corrcoef(theirs, found[:, chunk])[0, 1]) == pytest.approx(1, abs=1e-5)
        assert np.abs(found[:, chunk]) == pytest.approx(np.abs(theirs), rel=1e-4, abs=1e-4)
    with pytest.raises(FeatureFileError):
        first_components(values[:, :6].astype(np.float32), layout, train)


# entries


def test_runs_of_one_name_are_runs_of_one_method() -> None:
    runs = ["diti=runs/a", "pdae=runs/p", "diti=runs/b"]
    named = parse_entries(runs, ("untrained",), untrained=2, several=True)
    assert [(spec.name, spec.method) for spec in named] == [
        ("diti, run 1", "diti"),
        ("pdae", ""),
        ("diti, run 2", "diti"),
        ("untrained encoder, seed 0", "untrained encoder"),
        ("untrained encoder, seed 1", "untrained encoder"),
    ]
    with pytest.raises(ConfigError, match="2 entries are called 'diti'"):
        parse_entries(runs, ())


# the command


@pytest.fixture(autouse=True)
def few_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_vae, "TRAIN_VOTES", 1000)
    monkeypatch.setattr(factor_vae, "TEST_VOTES", 500)


@pytest.fixture(scope="module")
def models(make_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, scale in (("a", 1.0), ("b", 1.5)):
        pipeline = make_pipeline()
        next(pipeline.encoder.parameters()).data.mul_(scale)
        pipeline.save_pretrained(str(folder / name))
    one = ChunkLayout.uniform(chunks=1, latent_dim=16).to_dict()
    make_pipeline(chunk_layout=one).save_pretrained(str(folder / "pdae"))
    return folder


def of_two_factors(codes: Any, columns: Any, split: Any, **options: Any) -> Any:
    """The real scores of fewer factors by fewer votes, which take less time."""
    return measure_disentanglement(codes, {name: columns[name] for name in list(columns)[:2]}, split, **options)


def test_the_command_goes_on_after_an_interruption(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    arguments = ["compare", "--benchmark", "--seeds", "2", f"diti={models / 'a'}", f"diti={models / 'b'}"]
    arguments += [str(models / "pdae"), "--data", "faces:120:1", "--baselines", "pca,base:50", "--no-metrics"]
    arguments += ["--steps", "2", "--shown", "0", "--device", "cpu", "-o", str(tmp_path / "out")]
    made: list[int] = []

    def stop(*values: Any, seed: int, **options: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(seed)
        return of_two_factors(*values, seed=seed, **options)

    with monkeypatch.context() as patched:
        patched.setattr(benchmark, "measure_disentanglement", stop)
        interrupted = CliRunner().invoke(app, arguments)
        assert interrupted.exit_code == 130, interrupted.output
    assert made == [0, 0, 1], interrupted.output
    again: list[int] = []

    def count(*values: Any, seed: int, **options: Any) -> Any:
        again.append(seed)
        return of_two_factors(*values, seed=seed, **options)

    monkeypatch.setattr(benchmark, "measure_disentanglement", count)
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert len(again) == 2 + 4 + 2 + 2 + 2, "the first seed of the first run is kept"
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Benchmark, dims as units" in done.stdout
    assert "InfoM" in done.stdout

    data = json.loads((tmp_path / "out" / "compare.json").read_text())
    found = data["benchmark"]
    assert (found["seeds"], found["splits"]) == ([0, 1], "drawn")
    methods = {item["name"]: item for item in found["methods"]}
    assert list(methods) == ["diti", "pdae", "PCA of pixels", "base features, t = 50"]
    assert (methods["diti"]["over"], methods["pdae"]["over"]) == ("2 runs", "2 splits")
    assert (set(methods["diti"]["scores"]), set(methods["pdae"]["scores"])) == ({"dims", "chunks"}, {"dims"})
    assert methods["diti"]["units"] == {"dims": 16, "chunks": 4}
    score = methods["diti"]["scores"]["dims"]["mig"]
    assert np.shape(score["values"]) == (2, 2)
    assert score["estimate"]["value"] == pytest.approx(np.mean(score["values"]), abs=1e-5)
    assert score["estimate"]["low"] < score["estimate"]["value"] < score["estimate"]["high"]
    assert set(score) == {"estimate", "values", "p", "verdict"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Benchmark of disentanglement" in page
    assert "first principal component" in page

    here = [p for p in (tmp_path / "out" / "results").glob("*.json") if "units" in json.loads(p.read_text())]
    assert len(here) == 10
    here[0].write_text(here[0].read_text().replace("0.", "1.", 1))
    again.clear()
    assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    assert len(set(again)) == 1, "a damaged result is made again, and it alone"
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["benchmark"] == found


def test_what_each_seed_chose_of_the_base_is_said_once(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "measure_disentanglement", of_two_factors)
    monkeypatch.setattr(entries, "candidate_timesteps", lambda _: (50, 200))
    arguments = ["compare", "--benchmark", "--seeds", "2", str(models / "a"), "--baselines", "base"]
    arguments += ["--data", "faces:120:1", "--shown", "0", "--no-metrics", "--device", "cpu", "-o", str(tmp_path / "o")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert said.count("chosen by the mean score on validation images") == 2
    assert said.count("Seed 0, base features: t = ") == said.count("Seed 1, base features: t = ") == 1
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.count("chosen by the mean score on validation images") == 2


def test_wide_features_are_left_out_and_it_is_said(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "measure_disentanglement", of_two_factors)
    arguments = ["compare", "--benchmark", "--seeds", "1", str(models / "pdae"), "--baselines", "none"]
    arguments += ["--data", "faces:120:1", "--shown", "0", "--no-metrics", "--device", "cpu"]
    (tmp_path / "wide").mkdir()
    rng = np.random.default_rng(0)
    np.save(tmp_path / "wide" / "wide.npy", rng.normal(size=(120, 1025)).astype(np.float32))
    done = CliRunner().invoke(
        app, [*arguments, str(tmp_path / "wide" / "wide.npy"), "-o", str(tmp_path / "out")], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert "more than 1,024 dims: wide." in done.output.replace("\n", " ")
    found = json.loads((tmp_path / "out" / "compare.json").read_text())["benchmark"]
    assert "wide" not in [item["name"] for item in found["methods"]]
