"""Feature files: every format there and back, and damage of every kind."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diticli.chunks import ChunkLayout
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.features.formats import READERS, sidecar_path
from diticli.features.read import FeatureMeta, read_features
from diticli.features.writer import FeatureWriter

META = FeatureMeta(
    files=(),
    chunk_ends=(2, 5),
    timestep_ends=(500, 1000),
    model="runs/x",
    model_hash="abc",
    preprocessing={"resolution": 8},
)
VALUES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
FILES = [f"a/{i}.png" for i in range(7)]


def write(path: Path, values: np.ndarray = VALUES, files: list[str] = FILES) -> FeatureMeta:
    with FeatureWriter(path, identity="id") as writer:
        writer.append(values[:3], files[:3], [Skipped("bad.png", "truncated")])
        writer.append(values[3:], files[3:])
        return writer.finish(META)


@pytest.mark.parametrize("suffix", READERS)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / f"feats{suffix}"
    meta = write(path)
    features = read_features(path)
    np.testing.assert_array_equal(features.values, VALUES)
    assert features.values.dtype == np.float32
    assert features.meta == meta
    assert meta.files == tuple(FILES)
    assert meta.skipped == (Skipped("bad.png", "truncated"),)
    assert meta.created
    assert meta.version
    assert FeatureMeta.from_json(sidecar_path(path).read_text()) == meta
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "feats.json"])


def test_npy_is_plain_and_mapped(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    plain = np.load(path, mmap_mode="r", allow_pickle=False)
    assert isinstance(plain, np.memmap)
    np.testing.assert_array_equal(plain, VALUES)
    assert isinstance(read_features(path).values, np.memmap)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_embedded_metadata_needs_no_sidecar(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"feats{suffix}"
    meta = write(path)
    sidecar_path(path).unlink()
    assert read_features(path).meta == meta


def test_other_formats_leave_the_sidecar_of_an_npy_alone(tmp_path: Path) -> None:
    npy = write(tmp_path / "feats.npy")
    write(tmp_path / "feats.npz", VALUES[:, :3] * 2, [f"b/{i}.png" for i in range(7)])
    assert read_features(tmp_path / "feats.npy").meta == npy


def test_npy_without_sidecar_is_foreign_but_fine(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    features = read_features(tmp_path / "x.npy")
    assert features.meta is None
    np.testing.assert_array_equal(features.values, VALUES)


def test_parquet_layout_and_foreign_columns(tmp_path: Path) -> None:
    write(tmp_path / "feats.parquet")
    table = pq.read_table(tmp_path / "feats.parquet")
    assert table.column_names == ["file", "features"]
    assert table["file"].to_pylist() == FILES
    columns = {"file": FILES} | {f"z{i}": VALUES[:, i] for i in range(5)}
    import pyarrow as pa

    pq.write_table(pa.table(columns), tmp_path / "foreign.parquet")
    features = read_features(tmp_path / "foreign.parquet")
    np.testing.assert_array_equal(features.values, VALUES)


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    files = [os.fsdecode(b"\xff.png"), *FILES[1:]]
    for suffix in READERS:
        write(tmp_path / f"f{suffix}", files=files)
        meta = read_features(tmp_path / f"f{suffix}").meta
        assert meta is not None
        assert meta.files[0] == files[0]


@pytest.mark.parametrize("name", ["feats.csv", "feats.pt"])
def test_unknown_suffix_names_the_four(tmp_path: Path, name: str) -> None:
    for call in (lambda p: read_features(p), lambda p: FeatureWriter(p, identity="x")):
        with pytest.raises(FeatureFileError) as caught:
            call(tmp_path / name)
        assert all(suffix in caught.value.remedy for suffix in READERS)


def test_a_name_without_suffix_is_a_folder_to_read_and_no_file_to_write(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="no feature file or folder"):
        read_features(tmp_path / "feats")
    with pytest.raises(FeatureFileError, match="no known feature format"):
        FeatureWriter(tmp_path / "feats", identity="x")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="no feature file") as caught:
        read_features(tmp_path / "no.npy")
    assert "diti encode" in caught.value.remedy


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "header"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"feats{suffix}"
    write(path)
    good = path.read_bytes()
    noise = np.random.default_rng(1).bytes(300)
    path.write_bytes({"empty": b"", "noise": noise, "cut": good[:-9], "header": good[:20]}[damage])
    with pytest.raises(FeatureFileError) as caught:
        read_features(path)
    assert path.name in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("suffix", READERS)
def test_cut_anywhere_is_an_error_never_a_crash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"feats{suffix}"
    write(path)
    good = path.read_bytes()
    for size in range(0, len(good), max(1, len(good) // 25)):
        path.write_bytes(good[:size])
        with pytest.raises(FeatureFileError):
            read_features(path)


@pytest.mark.parametrize(
    "values",
    [
        VALUES.astype(np.float64),
        VALUES[0],
        VALUES[:0],
        VALUES.astype(">f4"),
        np.zeros((3, 2), dtype="U3"),
        VALUES[None],
    ],
)
def test_wrong_dtype_or_shape(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(FeatureFileError):
        read_features(tmp_path / "x.npy")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FeatureFileError):
        read_features(tmp_path / "x.npy")


def test_non_finite_rows_are_counted(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 2], values[4, 0], values[4, 1] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(FeatureFileError, match="2 of 7 rows"):
        read_features(tmp_path / "x.npy")


def test_metadata_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    np.save(path, VALUES[:4])
    with pytest.raises(FeatureFileError, match="4 rows, but its metadata names 7"):
        read_features(path)
    np.save(path, VALUES[:, :4])
    with pytest.raises(FeatureFileError, match="4 columns, but its chunks end at 5"):
        read_features(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": "abc"}', '{"files": [1]}', "[" * 100_000])
def test_damaged_sidecar(tmp_path: Path, text: str) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    sidecar_path(path).write_text(text)
    with pytest.raises(FeatureFileError, match=r"feats\.json"):
        read_features(path)


def test_sidecar_is_readable_json(tmp_path: Path) -> None:
    write(tmp_path / "feats.npy")
    data = json.loads((tmp_path / "feats.json").read_text())
    assert data["files"] == FILES
    assert data["skipped"] == [{"file": "bad.png", "reason": "truncated"}]
    assert data["chunk_ends"] == [2, 5]


def test_what_a_timestep_sees_comes_back(tmp_path: Path) -> None:
    layout = ChunkLayout(timestep_ends=(400, 1000), ends=(1, 3), visible="all")
    meta = FeatureMeta(files=(), chunk_ends=layout.ends, timestep_ends=layout.timestep_ends, visible="all")
    assert FeatureMeta.from_json(meta.to_json()).layout == layout
    old = {key: value for key, value in json.loads(meta.to_json()).items() if key != "visible"}
    assert FeatureMeta.from_json(json.dumps(old)).layout == replace(layout, visible="prefix")
    assert FeatureMeta(files=()).layout is None
    with pytest.raises(FeatureFileError, match="damaged"):
        FeatureMeta.from_json(json.dumps(old | {"visible": "some"}))
