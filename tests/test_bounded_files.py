"""Memory is that of a file's size, not of what it declares; named pipes are not opened; damaged files are errors."""

import io
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from diticli.data.labels import read_groups, read_labels, read_parts
from diticli.editing.table import read_pairs
from diticli.errors import DataError, FeatureFileError, LabelError
from diticli.features.formats import CONVERTERS
from diticli.features.manifest import FeatureMeta
from diticli.features.read import read_features


def test_a_packed_array_of_zeros_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", features=np.zeros((2**14, 512), np.float32))
    assert (tmp_path / "f.npz").stat().st_size < 2**17
    with pytest.raises(FeatureFileError, match="unpacks to 33,55"):
        read_features(tmp_path / "f.npz")


def test_an_array_that_declares_more_than_it_holds_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (2**33, 512)})
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as packed:
        packed.writestr("features.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(FeatureFileError, match="declares 17,592,186,044,416 bytes and holds 64"):
        read_features(tmp_path / "f.npz")


def test_a_parquet_file_of_equal_values_is_refused(tmp_path):
    rows = 2**15
    lists = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 512, np.float32)), 512)
    pq.write_table(pa.table({"features": lists}), tmp_path / "f.parquet")
    assert (tmp_path / "f.parquet").stat().st_size < 2**16
    with pytest.raises(FeatureFileError, match="unpacks to 67,1"):
        read_features(tmp_path / "f.parquet")
    pq.write_table(pa.table({"file": ["a"], "x": [1]}), tmp_path / "small.parquet")
    assert list(read_labels(tmp_path / "small.parquet").columns) == ["x"]
    columns = {f"c{i}": np.zeros(2**19, np.int8) for i in range(16)}
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    for read in (read_labels, read_groups, read_parts):
        with pytest.raises(LabelError, match="stands for 8,388,608 cells"):
            read(tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="stands for 8,388,608 cells"):
        read_pairs(tmp_path / "labels.parquet")


def test_equal_long_texts_are_kept_once(tmp_path):
    """A column that names one folder of a megabyte a thousand times is one text."""
    table = pa.table({"file": [f"{i}.png" for i in range(1000)], "path": ["x" * 2**20] * 1000})
    pq.write_table(table, tmp_path / "labels.parquet")
    from diticli.data.tables import read_records

    rows = read_records(tmp_path / "labels.parquet").rows
    assert len({id(cells[1]) for _, cells in rows}) == 1


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_ordinary_files_come_back_in_groups(tmp_path, suffix):
    values = np.random.default_rng(0).standard_normal((20_000, 8)).astype(np.float32)
    names = [f"{i}" for i in range(len(values))]
    CONVERTERS[suffix](tmp_path / f"f{suffix}", values, names, FeatureMeta(files=tuple(names)).to_json())
    features = read_features(tmp_path / f"f{suffix}")
    assert np.array_equal(features.values, values)
    assert len(features.meta.files) == len(values)


@pytest.mark.parametrize("suffix", [".csv", ".txt", ".json", ".jsonl", ".parquet"])
def test_named_pipes_are_no_tables(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    os.mkfifo(path)
    for read in (read_labels, read_groups, read_parts):
        with pytest.raises(LabelError, match="not a regular file"):
            read(path)
    with pytest.raises(DataError, match="not a regular file"):
        read_pairs(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".parquet", ".safetensors"])
def test_named_pipes_are_no_features(tmp_path, suffix):
    os.mkfifo(tmp_path / f"f{suffix}")
    with pytest.raises(FeatureFileError, match="no feature file"):
        read_features(tmp_path / f"f{suffix}")


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "features.json")
    with pytest.raises(FeatureFileError, match="not a regular file"):
        read_features(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("chunk_ends", [8, 4, 16], "do not rise"),
        ("chunk_ends", [0, 16], "do not rise"),
        ("chunk_ends", [-4, 16], "do not rise"),
        ("chunk_ends", [4.5, 16], "no whole numbers"),
        ("chunk_ends", [True, 16], "no whole numbers"),
        ("timestep_ends", [500, "1000"], "no whole numbers"),
        ("timestep_ends", [1000, 500], "do not rise"),
        ("preprocessing", {"resolution": float("nan")}, "NaN is no value of JSON"),
        ("chunk_ends", ["9" * 100_000], "no whole numbers"),
    ],
)
def test_sidecars_of_impossible_numbers_are_refused(tmp_path, key, value, reason):
    np.save(tmp_path / "f.npy", np.ones((1, 16), np.float32))
    (tmp_path / "f.json").write_text(json.dumps({"files": ["a"], key: value}))
    with pytest.raises(FeatureFileError, match=reason) as caught:
        read_features(tmp_path / "f.npy")
    assert caught.value.remedy
    assert len(str(caught.value)) < 500 + len(str(tmp_path))
