"""Attribute directions: moved features, restrictions, files and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diticli.chunks import ChunkLayout
from diticli.data.labels import LabelColumn
from diticli.data.splits import split_rows
from diticli.errors import ChunkError, ConfigError, DataError, FeatureFileError, LabelError, ModelError
from diticli.features.read import FeatureMeta
from diticli.probing.directions import MAX_AMOUNT, Directions, load_directions, save_directions
from diticli.probing.probe import probe_features
from diticli.probing.promask import MaskSettings

N, D = 500, 12
LAYOUT = ChunkLayout(timestep_ends=(300, 600, 1000), ends=(4, 9, 12))
META = FeatureMeta(
    files=(), model="runs/x", model_hash="abc", chunk_ends=LAYOUT.ends, timestep_ends=LAYOUT.timestep_ends
)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data() -> tuple[np.ndarray, dict[str, LabelColumn]]:
    """Features of unequal scales: Smiling depends on dims 1 and 6, Age on 2, colour on 10 and 11; dim 5 is constant."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    noise = 0.3 * rng.normal(size=(N, 3))
    labels = {
        "Smiling": LabelColumn("binary", (x[:, 1] - x[:, 6] + noise[:, 0] > 0).astype(np.float32)),
        "Age": LabelColumn("number", (40 + 10 * (x[:, 2] + noise[:, 1])).astype(np.float32)),
        "colour": LabelColumn("category", np.where(x[:, 10] + x[:, 11] + noise[:, 2] > 0, "red", "blue")),
    }
    x[:, 5] = 0.0
    return (x * np.logspace(-1, 1, D) + 3).astype(np.float32), labels


@pytest.fixture(scope="module")
def directions() -> Directions:
    values, labels = data()
    mask = MaskSettings(dims=2, steps=150, batch_size=256)
    return probe_features(values, labels, meta=META, mask=mask).directions


@pytest.fixture(scope="module")
def z() -> torch.Tensor:
    return torch.from_numpy(data()[0][:5])


def standard(directions: Directions, z: torch.Tensor) -> np.ndarray:
    return (z.numpy() - directions.full.mean) / directions.full.std


def test_move_follows_the_formula(directions: Directions, z: torch.Tensor) -> None:
    w = directions.full.weights[directions.full.row_of("Smiling")]
    moved = directions.move(z, "Smiling", -0.4, along="weight")
    expected = standard(directions, z) - 0.4 * np.sqrt(D) * w / np.linalg.norm(w)
    np.testing.assert_allclose(standard(directions, moved), expected, atol=1e-4)
    change = standard(directions, moved) - standard(directions, z)
    assert np.sqrt(np.square(change).mean(axis=1)) == pytest.approx(0.4, rel=1e-4)
    assert torch.equal(moved[:, 5], z[:, 5])


def test_moves_go_where_the_name_says(directions: Directions, z: torch.Tensor) -> None:
    probe = directions.full
    for row, label in enumerate(directions.attributes):
        before = probe.predict(z.numpy())[:, row]
        assert (probe.predict(directions.move(z, label, 0.3).numpy())[:, row] > before).all()
        assert (probe.predict(directions.move(z, label, -0.3).numpy())[:, row] < before).all()
    assert directions.attributes == ("Smiling", "Age", "colour=blue", "colour=red")


def test_restricted_to_chunks_dims_and_learned_dims(directions: Directions, z: torch.Tensor) -> None:
    assert directions.learned_dims("Smiling") == (1, 6)
    assert 2 in directions.learned_dims("Age")
    assert directions.learned_dims("colour=red") == directions.learned_dims("colour=blue") == (10, 11)
    for options, allowed in (
        ({"chunks": [1]}, range(4, 9)),
        ({"dims": [0, 6]}, [0, 6]),
        ({"dims": "learned"}, [1, 6]),
        ({"dims": "learned", "chunks": (0, 2)}, [1]),
        ({"dims": [1, 6, 8], "chunks": [1, 2]}, [6, 8]),
    ):
        vector = directions.vector("Smiling", **options)  # type: ignore[arg-type]
        assert np.linalg.norm(vector) == pytest.approx(np.sqrt(D), rel=1e-5)
        assert set(np.flatnonzero(vector)) <= set(allowed)
        moved = directions.move(z, "Smiling", 1.0, **options)  # type: ignore[arg-type]
        still = np.setdiff1d(np.arange(D), list(allowed))
        assert torch.equal(moved[:, still], z[:, still])
    other = ChunkLayout(timestep_ends=(500, 1000), ends=(6, 12))
    assert set(np.flatnonzero(directions.vector("Smiling", chunks=[0], layout=other))) <= set(range(6))


def test_patterns_are_how_features_go_with_the_output(directions: Directions, z: torch.Tensor, tmp_path: Path) -> None:
    values, _ = data()
    train = split_rows(N, seed=0).train
    outputs = directions.full.predict(values[train])
    x = (values[train] - directions.full.mean) / directions.full.std
    expected = (outputs - outputs.mean(axis=0)).T @ x / len(train)
    for row, label in enumerate(directions.attributes):
        vector = directions.vector(label, along="pattern")
        scale = np.sqrt(D) / np.linalg.norm(expected[row])
        np.testing.assert_allclose(vector, expected[row] * scale, atol=1e-2)
    assert set(np.flatnonzero(directions.vector("Smiling", dims="learned", along="pattern"))) == {1, 6}
    save_directions(directions, tmp_path)
    moved = load_directions(tmp_path).move(z, "Age", 0.2, along="pattern", chunks=[0])
    assert torch.equal(moved, directions.move(z, "Age", 0.2, along="pattern", chunks=[0]))
    with pytest.raises(ConfigError, match="cannot go along 'gradient'"):
        directions.vector("Age", along="gradient")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no patterns"):
        replace(directions, patterns=None).vector("Age", along="pattern")


def test_amounts_and_dtypes(directions: Directions, z: torch.Tensor) -> None:
    amounts = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    moved = directions.move(z, "Age", amounts)
    for row, amount in enumerate(amounts.tolist()):
        torch.testing.assert_close(moved[row : row + 1], directions.move(z[row : row + 1], "Age", amount))
    assert torch.equal(moved[2], z[2])
    assert directions.move(z.to(torch.bfloat16), "Age", 0.5).dtype == torch.bfloat16
    for bad in (MAX_AMOUNT * 1.01, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="out of range"):
            directions.move(z, "Age", bad)
    with pytest.raises(ConfigError, match="2 amounts for 5 rows"):
        directions.move(z, "Age", amounts[:2])
    with pytest.raises(ConfigError, match=r"\[5, 11\] cannot move along directions of 12"):
        directions.move(z[:, 1:], "Age", 0.1)


def test_unknown_attributes_suggest_near_ones(directions: Directions, z: torch.Tensor) -> None:
    for asked, remedy in (
        ("smilin", "Did you mean Smiling? Choose one of Smiling, Age, colour=blue, colour=red."),
        ("COLOUR", "Choose one of colour=blue, colour=red."),
    ):
        with pytest.raises(LabelError) as caught:
            directions.move(z, asked, 0.1)
        assert repr(asked) in caught.value.message
        assert caught.value.remedy == remedy
    with pytest.raises(LabelError, match="Smiling, Age, colour=blue"):
        directions.vector("xyzzy")
    endless = replace(directions.full, names=("X" * 5000, *directions.full.names[1:]))
    with pytest.raises(LabelError) as caught:
        endless.row_of("xyzzy")
    assert caught.value.remedy == f"Choose one of {'X' * 39}…, Age, colour=blue, colour=red."


def test_capitals_of_attributes_do_not_count_unless_they_tell_two_apart(directions: Directions) -> None:
    for asked, meant in (("AGE", "Age"), ("smiling", "Smiling"), ("Colour=RED", "colour=red")):
        assert directions.full.row_of(asked) == directions.full.row_of(meant)
        assert directions.named(asked) == meant
    two = replace(directions.full, names=("Age", "age", *directions.full.names[2:]))
    assert (two.row_of("Age"), two.row_of("age")) == (0, 1)
    with pytest.raises(LabelError, match="Age, age"):
        two.row_of("AGE")


def test_restrictions_that_cannot_be(directions: Directions) -> None:
    with pytest.raises(ConfigError, match=r"No dimension that predicts 'Smiling' is left in dims \[5\]"):
        directions.vector("Smiling", dims=[5])
    with pytest.raises(ConfigError, match=r"in dims \[1, 6\] in chunks \[2\]"):
        directions.vector("Smiling", dims="learned", chunks=[2])
    with pytest.raises(ConfigError, match="is left in chunks"):
        directions.vector("Smiling", chunks=[])
    with pytest.raises(ConfigError, match="Dimension 12 does not exist"):
        directions.vector("Smiling", dims=[12])
    with pytest.raises(ChunkError, match="Chunk 3 does not exist"):
        directions.vector("Smiling", chunks=[3])
    with pytest.raises(ChunkError, match="layout of 6 dims"):
        directions.vector("Smiling", chunks=[0], layout=ChunkLayout(timestep_ends=(1000,), ends=(6,)))
    values, labels = data()
    plain = probe_features(values, labels).directions
    with pytest.raises(ChunkError, match="chunks of these features are unknown"):
        plain.vector("Smiling", chunks=[0])
    with pytest.raises(LabelError, match="chose no dimensions") as caught:
        plain.vector("Smiling", dims="learned")
    assert "--mask-dims" in caught.value.remedy


def test_another_models_features_are_refused(directions: Directions) -> None:
    directions.check_model("abc")
    directions.check_model("")
    with pytest.raises(ModelError, match=r"runs/x \(hash abc\), not runs/y \(hash def\)"):
        directions.check_model("def", "runs/y")
    with pytest.raises(ModelError, match="not this one"):
        directions.check_model("def")


def test_files_give_back_what_was_saved(directions: Directions, z: torch.Tensor, tmp_path: Path) -> None:
    save_directions(directions, tmp_path / "deep" / "probe")
    assert sorted(p.name for p in (tmp_path / "deep" / "probe").iterdir()) == [
        "directions.json",
        "directions.safetensors",
    ]
    loaded = load_directions(str(tmp_path / "deep" / "probe"))
    for options in ({}, {"dims": "learned"}, {"chunks": [0, 1]}):
        for label in directions.attributes:
            try:
                expected = directions.move(z, label, 0.5, **options)  # type: ignore[arg-type]
            except ConfigError:
                continue
            assert torch.equal(loaded.move(z, label, 0.5, **options), expected)  # type: ignore[arg-type]
    assert loaded.chosen == directions.chosen
    assert (loaded.layout, loaded.model, loaded.full.model_hash) == (LAYOUT, "runs/x", "abc")
    facts = json.loads((tmp_path / "deep" / "probe" / "directions.json").read_text())
    assert [row["towards"] for row in facts["rows"]] == ["Smiling = 1", "larger Age", "colour = blue", "colour = red"]
    values, labels = data()
    save_directions(probe_features(values, labels).directions, tmp_path / "plain")
    plain = load_directions(tmp_path / "plain")
    assert (plain.masked, plain.layout, plain.chosen) == (None, None, {})


def test_damaged_and_mixed_files_are_refused(directions: Directions, tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="There are no directions in") as caught:
        load_directions(tmp_path)
    assert "diti probe" in caught.value.remedy
    save_directions(directions, tmp_path)
    facts, tensors = tmp_path / "directions.json", tmp_path / "directions.safetensors"
    good = facts.read_text(), tensors.read_bytes()
    for text in ("", "[]", "{}", good[0][:-30], good[0].replace("directions/1", "directions/9"), "[" * 100_000):
        facts.write_text(text)
        with pytest.raises(FeatureFileError, match="damaged"):
            load_directions(tmp_path)
    data_without_a_row = json.loads(good[0])
    data_without_a_row["rows"].pop()
    facts.write_text(json.dumps(data_without_a_row))
    with pytest.raises(FeatureFileError, match="fit together"):
        load_directions(tmp_path)
    facts.write_text(good[0])
    tensors.write_bytes(good[1][:-1] + b"x")
    with pytest.raises(FeatureFileError, match="not of one probe"):
        load_directions(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Cannot write"):
        save_directions(directions, tmp_path / "file")
