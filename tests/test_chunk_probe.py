"""The atlas of what chunks know, on features whose truth is planted, and its closed forms against scikit-learn."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from diticli.chunks import ChunkLayout
from diticli.data.label_columns import Kind
from diticli.data.labels import LabelColumn
from diticli.data.splits import split_rows
from diticli.errors import ChunkError
from diticli.features.read import FeatureMeta
from diticli.probing.chunk_probe import AttributeChunks, ChunkProbe
from diticli.probing.files import draw_atlas
from diticli.probing.fit import same_rows
from diticli.probing.linear import FeatureSpace
from diticli.probing.masked_fit import ProbeRows
from diticli.probing.probe import layout_of, probe_features
from diticli.probing.resampling import average_precision, resample_scores, skill_of
from diticli.probing.subset_fits import SubsetFits, discriminant
from diticli.statistics import Bootstrap, Estimate
from diticli.targets import Target, make_target

K, PER = 5, 4
LAYOUT = ChunkLayout.uniform(chunks=K, latent_dim=K * PER)
META = FeatureMeta(files=(), chunk_ends=LAYOUT.ends, timestep_ends=LAYOUT.timestep_ends)
MIDDLES = (100, 300, 500, 700, 900)


def planted(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, dict[str, LabelColumn]]:
    """Mixed within chunks. "first" lies in chunk 0, "last" in 4; "spread" in 1 and 3 by halves; "twice" in 2 and 3."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(count, K, PER))
    twice, half_a, half_b = rng.normal(size=(3, count))
    own[:, 2, 0] = own[:, 3, 1] = twice
    own[:, 1, 0], own[:, 3, 0] = half_a, half_b
    columns = {
        "first": LabelColumn("number", own[:, 0, 1].astype(np.float32)),
        "last": LabelColumn("binary", (own[:, 4, 2] > 0.5).astype(np.float32)),
        "spread": LabelColumn("number", (half_a + half_b).astype(np.float32)),
        "twice": LabelColumn("number", twice.astype(np.float32)),
        "colour": LabelColumn("category", np.array(["r", "g", "b"])[own[:, 2, 1:].argmax(1)]),
        "none": LabelColumn("number", rng.normal(size=count).astype(np.float32)),
        "luck": LabelColumn("binary", (rng.random(count) < 0.3).astype(np.float32)),
    }
    mixed = np.einsum("nkp,kpq->nkq", own, rng.normal(size=(K, PER, PER)))
    return mixed.reshape(count, -1).astype(np.float32), columns


@pytest.fixture(scope="module")
def atlas() -> ChunkProbe:
    values, columns = planted()
    found = probe_features(values, columns, meta=META, atlas=True).atlas
    assert found is not None
    return found


def item(atlas: ChunkProbe, name: str) -> AttributeChunks:
    return next(one for one in atlas.attributes if one.name == name)


def row(atlas: ChunkProbe, name: str, part: str) -> np.ndarray:
    return np.array([one.value for one in getattr(item(atlas, name), part)])


@pytest.mark.parametrize(("name", "chunk"), [("first", 0), ("last", 4), ("colour", 2)])
def test_a_factor_of_one_chunk_is_found_there_and_nowhere_else(atlas: ChunkProbe, name: str, chunk: int) -> None:
    found = item(atlas, name)
    others = np.arange(K) != chunk
    assert found.all.value > 0.8
    for part in ("alone", "unique"):
        values = row(atlas, name, part)
        assert values[chunk] > 0.8
        assert np.abs(values[others]).max() < 0.12
    prefix = row(atlas, name, "prefix")
    assert np.abs(prefix[:chunk]).max(initial=0) < 0.12
    assert (prefix[chunk:] > 0.8).all()
    for centre in (found.centre_alone, found.centre_prefix):
        assert centre is not None
        assert centre.low is not None
        assert centre.high is not None
        assert centre.low <= centre.value <= centre.high
        assert centre.value == pytest.approx(MIDDLES[chunk], abs=60)


def test_factors_of_two_chunks(atlas: ChunkProbe) -> None:
    """Halves add up; a copy tells nothing of its own, and the prefix gains with the first of the two."""
    np.testing.assert_allclose(row(atlas, "spread", "alone"), [0, 0.5, 0, 0.5, 0], atol=0.12)
    np.testing.assert_allclose(row(atlas, "spread", "unique"), [0, 0.5, 0, 0.5, 0], atol=0.12)
    np.testing.assert_allclose(row(atlas, "spread", "prefix"), [0, 0.5, 0.5, 1, 1], atol=0.12)
    np.testing.assert_allclose(row(atlas, "twice", "alone"), [0, 0, 1, 1, 0], atol=0.03)
    np.testing.assert_allclose(row(atlas, "twice", "unique"), np.zeros(K), atol=0.03)
    centres = {name: (item(atlas, name).centre_alone, item(atlas, name).centre_prefix) for name in ("spread", "twice")}
    assert [round(centre.value, -1) if centre else 0 for centre in centres["twice"]] == [600, 500]
    for centre in centres["spread"]:
        assert centre is not None
        assert centre.value == pytest.approx(500, abs=25)


def test_what_every_chunk_tells_has_no_centre_alone() -> None:
    """The middle of all timesteps would be the answer whatever the attribute is, with a narrow interval."""
    rng = np.random.default_rng(0)
    number = rng.normal(size=900)
    values = (number[:, None] + 0.3 * rng.normal(size=(900, K * PER)) * np.linspace(2, 3, K * PER)).astype(np.float32)
    flat = probe_features(values, {"x": LabelColumn("number", number.astype(np.float32))}, meta=META, atlas=True).atlas
    assert flat is not None
    (found,) = flat.attributes
    assert min(one.value for one in found.alone) > 0.6
    assert (found.flat, found.centre_alone) == (True, None)
    assert found.centre_prefix is not None  # the first chunk brings it


def test_of_many_chunks_a_few_odd_ones_make_no_centre() -> None:
    """A row of 40 noisy skills has a low one somewhere; that does not make its middle a finding."""
    rng = np.random.default_rng(1)
    many = ChunkLayout.uniform(chunks=40, latent_dim=40)
    number = rng.normal(size=900)
    noise = np.linspace(0.9, 1.1, 40)
    noise[[3, 17]] = 4.0
    values = (number[:, None] + noise * rng.normal(size=(900, 40))).astype(np.float32)
    columns = {"x": LabelColumn("number", number.astype(np.float32))}
    meta = FeatureMeta(files=(), chunk_ends=many.ends, timestep_ends=many.timestep_ends)
    found = probe_features(values, columns, meta=meta, atlas=True).atlas
    assert found is not None
    (flat,) = found.attributes
    assert min(one.value for one in flat.alone) < 0.2 < 0.4 < max(one.value for one in flat.alone)
    assert (flat.flat, flat.centre_alone) == (True, None)


def test_centres_that_chunks_all_alike_would_have_are_named(atlas: ChunkProbe) -> None:
    layout, first = atlas.layout, atlas.attributes[0]
    middle = float(np.mean(np.array(layout.timestep_starts) + np.array(layout.timestep_ends))) / 2

    def placed(name: str, at: float) -> AttributeChunks:
        return replace(first, name=name, centre_alone=Estimate(value=at, low=at - 10, high=at + 10))

    found = replace(atlas, attributes=(placed("light", middle + 5), placed("hat", middle + 50)))
    assert f"holds {middle:.0f}" in found.as_if_flat()
    assert found.as_if_flat().endswith(": light.")
    assert replace(atlas, attributes=(placed("hat", middle + 50),)).as_if_flat() == ""


def test_what_is_nowhere_has_no_centre(atlas: ChunkProbe) -> None:
    for name in ("none", "luck"):
        assert (item(atlas, name).centre_prefix, item(atlas, name).centre_alone) == (None, None)
        assert np.abs(row(atlas, name, "alone")).max() < 0.15
    assert item(atlas, "luck").base_rate == pytest.approx(0.3, abs=0.06)
    assert item(atlas, "first").base_rate == 0


def test_all_chunks_are_the_probe_itself_for_numbers() -> None:
    values, columns = planted(600)
    report = probe_features(values, columns, meta=META, atlas=True)
    assert report.atlas is not None
    for scored, known in zip(report.attributes, report.atlas.attributes, strict=True):
        if scored.kind == "number":
            assert known.all.value == pytest.approx(scored.extras["r2"], abs=2e-4)
            if known.all.value > 0.5:
                assert (known.all.low, known.all.high) == pytest.approx(scored.intervals["r2"], abs=0.02)
        assert known.prefix[-1] == known.all
        assert known.prefix[0] == known.alone[0]


def test_the_interval_of_a_centre_covers_it_about_as_often_as_it_says() -> None:
    """Two of three chunks tell halves of a number; the truth is their middle, and only test rows vary."""
    rng = np.random.default_rng(0)
    layout = ChunkLayout.uniform(chunks=3, latent_dim=3)
    meta = FeatureMeta(files=(), chunk_ends=layout.ends, timestep_ends=layout.timestep_ends)
    covered, middle = 0, layout.timestep_ends[0]
    for seed in range(40):
        values = rng.normal(size=(800, 3)).astype(np.float32)
        number = values @ [1.0, 1.0, 0.0] + rng.normal(size=800)
        columns = {"x": LabelColumn("number", number.astype(np.float32))}
        found = probe_features(values, columns, meta=meta, atlas=True, seed=seed, fractions=(0.7, 0.15, 0.15)).atlas
        assert found is not None
        centre = found.attributes[0].centre_alone
        assert centre is not None
        assert centre.low is not None
        assert centre.high is not None
        covered += centre.low <= middle <= centre.high
    assert 0.85 <= covered / 40 <= 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_and_its_influence(ties: bool) -> None:
    """The influence is the derivative by each row's weight."""
    rng = np.random.default_rng(0)
    truth = (rng.random(60) < 0.4).astype(float)
    scores = truth + rng.normal(size=60)
    scores = np.round(scores) if ties else scores
    value, influence = average_precision(truth, scores)
    assert value == pytest.approx(average_precision_score(truth, scores))
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    for i in range(60):
        weights = np.ones(60)
        weights[i] += 1e-4
        moved = average_precision_score(truth, scores, sample_weight=weights)
        assert influence[i] == pytest.approx((moved - value) / 1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["number", "binary", "category"])
def test_first_order_resamples_are_close_to_real_ones(kind: Kind) -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(size=500)
    noisy = score + rng.normal(size=500)
    codes = np.digitize(noisy, [-0.5, 0.7]).astype(float)
    truth = {"number": noisy, "binary": (noisy > 0.5).astype(float), "category": codes}[kind]
    truth[:20] = np.nan
    outputs = -np.square(score[:, None] - [-1.2, 0, 1.4]) if kind == "category" else score[:, None]
    names = ("a", "b", "c") if kind == "category" else ()
    target = Target(name="x", kind=kind, values=truth, classes=names)
    skill = skill_of(target, np.arange(500), outputs)
    assert (skill.influence[:20] == 0).all()
    draws = Bootstrap.over_rows(500)
    first_order = skill.value + np.concatenate(list(draws.blocks())) @ skill.influence
    metric = {"number": "r2", "binary": "average_precision", "category": "accuracy"}[kind]
    real = resample_scores([target], np.arange(500), {"x": outputs}, draws)["x"][metric]
    real = real if kind == "number" else (real - skill.base_rate) / (1 - skill.base_rate)
    assert np.corrcoef(first_order, real)[0, 1] > 0.8
    assert first_order.std() == pytest.approx(real.std(), rel=0.35)


def rows_of(values: np.ndarray) -> ProbeRows:
    split = split_rows(len(values), seed=0)
    space = FeatureSpace.fit(values, split.train)
    return ProbeRows(split=split, space=space, parts={p: space.project(values, i) for p, i in vars(split).items()})


def test_fits_of_a_subset_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diticli.probing.subset_fits.REGULARISATIONS", (0.1,))
    values, columns = planted(500)
    columns["first"].values[:60] = np.nan
    rows = rows_of(values)
    targets = [make_target(name, columns[name], vars(rows.split)) for name in ("first", "last", "colour")]
    groups = list(same_rows(targets, rows.split.train))
    assert [[target.name for target in group] for group in groups] == [["first"], ["last", "colour"]]
    dims = [1, 2, 6, 8, 9, 10, 11]
    standard = ((values - rows.space.mean) / rows.space.std)[:, dims]
    train, test = rows.split.train, rows.split.test
    outputs = SubsetFits(groups[0], rows).test_outputs(dims) | SubsetFits(groups[1], rows).test_outputs(dims)
    for target in targets[:2]:
        known = target.known(train)
        exact = Ridge(alpha=0.1 * len(known)).fit(standard[known], target.standard[known])
        np.testing.assert_allclose(outputs[target.name][:, 0], exact.predict(standard[test]), atol=1e-4)
    codes = targets[2].values
    exact = LinearDiscriminantAnalysis(solver="lsqr").fit(standard[train], codes[train])
    within = exact.covariance_ + 0.1 * np.eye(len(dims))
    weights = np.linalg.solve(within, exact.means_.T)
    bias = np.log(exact.priors_) - 0.5 * np.einsum("cs,sc->c", exact.means_, weights)
    expected = standard[test] @ weights + bias
    found = outputs["colour"]
    np.testing.assert_allclose(found - found[:, :1], expected - expected[:, :1], atol=2e-3)


def test_discriminant_of_two_classes_orders_rows_as_ridge_does() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.3).astype(float)
    x = rng.normal(size=(300, 4)) * [1, 2, 3, 4] + np.outer(y, [1, 0, 1, 0])
    x = np.linalg.qr(x - x.mean(0))[0] * 20
    total = np.square(x).mean(axis=0) + 0.2
    one_hot = np.stack([1 - y, y], axis=1)
    weights, _ = discriminant(x.T @ (one_hot - one_hot.mean(0)) / 300, one_hot.mean(0), total)
    ridge = (x.T @ (y - y.mean()) / 300) / total
    difference = weights[:, 1] - weights[:, 0]
    np.testing.assert_allclose(difference / np.linalg.norm(difference), ridge / np.linalg.norm(ridge), atol=1e-9)


def test_json_and_pictures(atlas: ChunkProbe, tmp_path: Path) -> None:
    facts = json.loads(json.dumps(atlas.to_dict(), allow_nan=False))
    assert ChunkLayout.from_dict(facts["chunks"]) == LAYOUT
    one = facts["attributes"][0]
    facts_of_one = {"name", "kind", "measure", "base_rate", "n_test"}
    assert set(one) == facts_of_one | {"all", "alone", "unique", "prefix", "flat", "centre_alone", "centre_prefix"}
    for part in ("alone", "unique", "prefix"):
        assert {key: len(values) for key, values in one[part].items()} == {"value": K, "low": K, "high": K}
    assert one["all"]["low"] <= one["all"]["value"] <= one["all"]["high"]
    paths = draw_atlas(atlas, tmp_path)
    assert [path.name for path in paths] == ["atlas-alone.png", "atlas-unique.png", "atlas-prefix.png"]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_a_single_group_of_test_rows_leaves_no_intervals() -> None:
    values, columns = planted(300)
    parts = {"test": range(60), "val": range(60, 120), "train": range(120, 300)}
    groups = [next(part for part, rows in parts.items() if i in rows) for i in range(300)]
    split = replace(split_rows(300), **{part: np.array(rows) for part, rows in parts.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probe_features(values, columns, groups, split=split, meta=META, atlas=True).atlas
    assert found is not None
    assert item(found, "first").all.low is None
    centre = item(found, "last").centre_prefix
    assert centre is not None
    assert centre.low is None
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_one_chunk_is_an_atlas_too() -> None:
    values, columns = planted(300)
    meta = FeatureMeta(files=(), chunk_ends=(20,), timestep_ends=(1000,))
    found = probe_features(values, columns, meta=meta, atlas=True).atlas
    assert found is not None
    first = item(found, "first")
    assert first.alone == first.prefix == (first.all,)
    assert first.unique[0].value == pytest.approx(first.all.value, abs=0.05)


def test_constant_chunks_know_nothing() -> None:
    values, columns = planted(400)
    values[:, LAYOUT.dims_of(4)] = 3.0
    found = probe_features(values, columns, meta=META, atlas=True).atlas
    assert found is not None
    for one in found.attributes:
        # The commonest class of the training rows need not be that of the test rows.
        assert one.alone[4].value == pytest.approx(0, abs=0.2 if one.kind == "category" else 0.02)
        assert one.unique[4].value == pytest.approx(0, abs=1e-6)


def test_an_atlas_needs_chunks_that_fit() -> None:
    values, columns = planted(100)
    with pytest.raises(ChunkError, match="unknown"):
        probe_features(values, columns, atlas=True)
    with pytest.raises(ChunkError, match="cover 20 dims, the features have 19"):
        probe_features(values[:, :19], columns, meta=META, atlas=True)
    assert layout_of(None) is None
    assert layout_of(META) == LAYOUT
