"""Data sets as they are distributed: files of arrays and Parquet files with pictures, written here in each form."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diticli.data import array_files
from diticli.data.faces import render_face, sample_factors
from diticli.data.images import UnreadableImageError, load_images, open_images
from diticli.data.labels import read_labels, read_parts
from diticli.errors import DataError, LabelError
from diticli.progress import SilentReporter

RNG = np.random.default_rng(0)
FACES = np.stack([render_face(factors, 16) for factors in sample_factors(0, np.arange(12))])


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


def loaded(path: Path, side: int = 16) -> np.ndarray:
    return load_images(open_images(str(path), side), workers=0).images


def names(path: Path) -> list[str]:
    source = open_images(str(path), 16)
    return [source.file_name(at) for at in range(len(source))]


def write_h5(path: Path, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values)
    return path


def save(path: Path, *, packed: bool = False, **arrays: Any) -> Path:
    (np.savez_compressed if packed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["stored", "packed", "packed, unpacked to a file", "hdf5", "columns first"])
def test_pictures_come_out_as_they_went_in(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if kind == "hdf5":
        path = write_h5(tmp_path / "a.h5", images=FACES)
    elif kind == "columns first":
        path = save(tmp_path / "a.npz", images=np.asfortranarray(FACES))
    else:
        path = save(tmp_path / "a.npz", packed=kind != "stored", images=FACES)
    if kind == "packed, unpacked to a file":
        monkeypatch.setattr(array_files, "IN_MEMORY", 100)
    assert np.array_equal(loaded(path), FACES)
    assert names(path)[:2] == ["000000", "000001"]
    kept = list((tmp_path / "cache").rglob("*.raw"))
    assert len(kept) == (kind == "packed, unpacked to a file")
    source = copy.deepcopy(open_images(str(path), 16))  # as a worker process gets it
    assert np.array_equal(source.load(3), FACES[3])
    assert source.size(0) == (16, 16)
    assert len(list((tmp_path / "cache").rglob("*"))) <= 3  # unpacked once


def test_dsprites_is_read_as_distributed(tmp_path):
    count = 24
    imgs = RNG.integers(0, 2, (count, 64, 64), dtype=np.uint8)
    values = np.column_stack(
        [np.ones(count), np.arange(count) % 3 + 1, np.linspace(0.5, 1, count), *RNG.random((3, count))]
    )
    pickled = np.array({"author": "an object, never loaded"}, dtype=object)
    path = save(
        tmp_path / "dsprites.npz",
        packed=True,
        metadata=pickled,
        imgs=imgs,
        latents_values=values,
        latents_classes=values,
    )
    assert np.array_equal(loaded(path, 64)[..., 0], 255 * imgs)
    warnings = Warnings()
    open_images(str(path), 64, reporter=warnings)
    assert "0 and 1 are taken as black and white" in " ".join(warnings.lines)
    table = read_labels(path)
    assert list(table.columns) == ["color", "shape", "scale", "orientation", "x", "y"]
    assert table.columns["shape"].kind == "category"
    assert table.columns["scale"].kind == "number"
    np.testing.assert_allclose(table.columns["y"].values, values[:, 5], rtol=1e-6)
    rows, table_rows = table.match(names(path))
    assert rows.tolist() == table_rows.tolist() == list(range(count))
    assert table.notes == ()


def test_a_grid_with_gaps_is_named(tmp_path):
    labels = np.stack(np.unravel_index(np.arange(12), (3, 4)), axis=1)
    path = save(tmp_path / "gaps.npz", images=FACES[:11], labels=labels[:11])
    gaps = "11 of 12 combinations (3 x 4 values of label_0, label_1), 11 pictures"
    assert read_labels(path).notes == (f"The factors are no complete grid: {gaps}.",)
    measured = np.stack([np.arange(12) % 3, np.linspace(0, 1, 12)], axis=1)
    assert read_labels(save(tmp_path / "no_grid.npz", images=FACES, labels=measured)).notes == ()


def test_medmnist_keeps_its_parts_and_names_its_classes(tmp_path):
    arrays = {f"{part}_images": RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in
              (("train", 6), ("val", 2), ("test", 3))}  # fmt: skip
    arrays |= {
        f"{part}_labels": np.arange(len(arrays[f"{part}_images"]))[:, None] % 4 for part in ("train", "val", "test")
    }
    path = save(tmp_path / "pathmnist.npz", **arrays)
    assert names(path) == [f"train/{i:06d}" for i in range(6)] + ["val/000000", "val/000001"] + [
        f"test/{i:06d}" for i in range(3)
    ]
    assert np.array_equal(loaded(path, 28)[6, :, :, 1], arrays["val_images"][0])
    assert read_parts(path)["val/000001"] == "val"
    label = read_labels(path).columns["label"]
    assert label.kind == "category"
    assert label.values[:6].tolist() == ["class_0", "class_1", "class_2", "class_3", "class_0", "class_1"]


def test_several_labels_a_picture_are_attributes(tmp_path):
    truth = RNG.integers(0, 2, (5, 3))
    path = save(tmp_path / "chest.npz", images=FACES[:5], labels=truth)
    columns = read_labels(path).columns
    assert {name: column.kind for name, column in columns.items()} == dict.fromkeys(
        ["label_0", "label_1", "label_2"], "binary"
    )
    assert np.array_equal(np.stack([column.values for column in columns.values()], 1), truth)


def test_shapes3d_and_mpi3d_know_their_factors(tmp_path, monkeypatch):
    from diticli.data import array_sets

    monkeypatch.setattr(array_sets, "_MPI3D_SIZES", {24: (2, 1, 2, 1, 1, 3, 2)})
    path = save(tmp_path / "mpi3d_toy.npz", images=np.zeros((24, 8, 8, 3), np.uint8))
    columns = read_labels(path).columns
    assert columns["vertical"].values[:4].tolist() == [0, 1, 0, 1]
    assert columns["horizontal"].values[:7].tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert columns["object_color"].values[[0, 23]].tolist() == ["class_0", "class_1"]
    grid = "2 x 2 x 3 x 2 values of object_color, object_size, horizontal, vertical"
    assert read_labels(path).notes == (f"The factors are a complete grid: {grid}.",)
    given = read_labels(tmp_path / "mpi3d_toy.npz:1,2,3,1,1,2,2").columns
    assert given["object_shape"].values[[0, 12]].tolist() == ["class_0", "class_1"]
    assert given["object_size"].values[::4].tolist() == [0, 1, 2] * 2
    path = write_h5(tmp_path / "3dshapes.h5", images=FACES, labels=RNG.random((12, 6)))
    assert list(read_labels(path).columns) == [f"label_{at}" for at in range(6)]  # not its 480,000 rows: no names


def test_sizes_of_factors_may_be_given(tmp_path):
    path = save(tmp_path / "mine.npz", images=FACES)
    with pytest.raises(LabelError, match="no labels") as caught:
        read_labels(path)
    assert f"{path}:4,4,2" in str(caught.value.remedy)
    columns = read_labels(Path(f"{path}:shape=2, 3,size=2")).columns
    assert {name: column.kind for name, column in columns.items()} == {
        "shape": "category",
        "label_1": "number",
        "size": "binary",
    }
    assert columns["label_1"].values.tolist() == [0, 0, 1, 1, 2, 2] * 2
    rows, table_rows = read_labels(Path(f"{path}:12")).match(names(path))
    assert rows.tolist() == table_rows.tolist() == list(range(12))
    with pytest.raises(LabelError, match="has 12 pictures, the factors 3 x 5 = 15 combinations") as caught:
        read_labels(Path(f"{path}:3,5"))
    assert "slowest first" in str(caught.value.remedy)
    for wrong in ("", "3,", "0,12", "a=3,a=4", "3;4", "-3,4", ",".join("1" * 40)):
        with pytest.raises(LabelError, match="as the sizes of factors") as caught:
            read_labels(Path(f"{path}:{wrong}"))
        assert "mine.npz:4,4,2" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("values", "black", "white", "said"),
    [
        (np.array([[0, 4095]], np.uint16), 0, 4095, "12 bits"),
        (np.array([[0, 60000]], np.uint16), 0, 65535, "16 bits"),
        (np.array([[0.0, 1.0]], np.float32), 0, 1, "0 (black) to 1 (white)"),
        (np.array([[-1.0, 1.0]], np.float64), -1, 1, "-1 (black) to 1 (white)"),
        (np.array([[False, True]]), 0, 1, "black and white"),
    ],
)
def test_depth_is_kept_up_to_eight_bits(tmp_path, values, black, white, said):
    picture = np.repeat(np.repeat(values, 4, 0), 2, 1)
    path = save(tmp_path / "a.npz", images=picture[None])
    warnings = Warnings()
    source = open_images(str(path), 4, reporter=warnings)
    expected = np.rint((picture.astype(float) - black) / (white - black) * 255)
    assert np.array_equal(source.load(0)[..., 0], expected)
    assert said in " ".join(warnings.lines)


def test_channels_may_come_first(tmp_path):
    path = save(tmp_path / "a.npz", images=np.moveaxis(FACES, -1, 1))
    assert np.array_equal(loaded(path), FACES)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": FACES}, "No array .* is called images"),
        ({"images": FACES, "labels": np.zeros(5)}, "shape \\[5\\] for 12 pictures"),
        ({"images": np.zeros((2, 28, 28, 28), np.uint8)}, "Volumes are not read"),
        ({"images": np.array(["a", "b"])}, "<U1"),
        ({"images": np.full((2, 4, 4), 900.0)}, "between 900 and 900"),
        ({"images": FACES.astype(object)}, "arrays of Python objects are never loaded"),
        ({"features": np.zeros((2, 3)), "files": np.array(["a", "b"])}, "features"),
    ],
)
def test_other_archives_are_refused_in_words(tmp_path, arrays, message):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_images(str(path), 16)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": FACES}, "No array .* is called images"),
        ({"images": FACES, "labels": np.zeros(5)}, "shape \\[5\\] for 12 pictures"),
        ({"images": np.zeros((2, 28, 28, 28), np.uint8)}, "Volumes are not read"),
        ({"images": np.array([b"a", b"b"])}, "are \\|S1"),
        ({"images": np.full((2, 4, 4), 900.0)}, "between 900 and 900"),
        ({"images": np.zeros((2, 4, 4), np.complex64)}, "complex64"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "shape \\[0, 4, 4\\]"),
    ],
)
def test_other_hdf5_files_are_refused_in_words(tmp_path, arrays, message):
    path = write_h5(tmp_path / "a.h5", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_images(str(path), 16)
    assert caught.value.remedy


def test_hdf5_is_not_unpacked_beyond_bounds_nor_read_from_elsewhere(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    from diticli.data import array_files

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=np.zeros((64, 16, 16), np.uint8), chunks=(64, 16, 16), compression="gzip")
    open_images(str(tmp_path / "a.h5"), 16)
    monkeypatch.setattr(array_files, "MAX_CHUNK", 2**13)
    with pytest.raises(DataError, match="in pieces of 16,384 bytes"):
        open_images(str(tmp_path / "a.h5"), 16)
    (tmp_path / "secret.raw").write_bytes(bytes(512))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("images", (2, 16, 16), np.uint8, external=[(str(tmp_path / "secret.raw"), 0, 512)])
        file["image"] = h5py.ExternalLink(str(tmp_path / "a.h5"), "images")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        layout = h5py.VirtualLayout((64, 16, 16), np.uint8)
        layout[:] = h5py.VirtualSource(tmp_path / "a.h5", "images", (64, 16, 16))
        file.create_virtual_dataset("images", layout)
    for name in ("b.h5", "c.h5"):
        with pytest.raises(DataError, match=f"'images' of .*{name} lies in other files, which are not read"):
            open_images(str(tmp_path / name), 16)


def test_an_array_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch):
    from diticli.data import array_files

    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.zeros((100, 64, 64), np.uint8))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(array_files, "IN_MEMORY", 2**10)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(array_files.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="GiB in") as caught:
        open_images(str(path), 16)
    assert "XDG_CACHE_HOME" in str(caught.value.remedy)


def test_equal_pictures_of_a_parquet_file_are_unpacked_once(tmp_path):
    """A file of 20 kB that stands for 400 MB of pictures takes no more memory than one picture."""
    noise = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    pictures = np.broadcast_to(noise, (2000, 256, 256, 3))
    data = encoded(noise)
    for image in ([{"bytes": data, "path": None}] * len(pictures), [data] * len(pictures)):
        pq.write_table(pa.table({"image": image}), tmp_path / "a.parquet")
        assert (tmp_path / "a.parquet").stat().st_size < 2 * len(data)
        source = open_images(str(tmp_path / "a.parquet"), 256)
        before = pa.total_allocated_bytes()
        assert np.array_equal(source.load(1999), noise)
        assert pa.total_allocated_bytes() - before < 4 * len(data)


@pytest.mark.parametrize("column", [[1, 2], ["a", "b"], [[1], [2]]])
def test_a_parquet_column_of_another_type_is_no_picture(tmp_path, column):
    pq.write_table(pa.table({"image": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column of pictures") as caught:
        open_images(str(tmp_path / "a.parquet"), 16)
    assert caught.value.remedy


def test_a_row_group_of_too_many_bytes_is_refused(tmp_path, monkeypatch):
    from diticli.data import parquet_images

    path = write_parquet(tmp_path / "a.parquet", FACES)
    monkeypatch.setattr(parquet_images, "_MAX_GROUP", 100)
    with pytest.raises(DataError, match="row group 0 holds") as caught:
        open_images(str(path), 16)
    assert "smaller row groups" in str(caught.value.remedy)


def test_damaged_rows_of_a_parquet_file_are_skipped_and_named(tmp_path):
    pictures = [encoded(picture) for picture in FACES]
    broken = [None, {"bytes": b"no picture", "path": "x.png"}, {"bytes": pictures[2][:40], "path": None}]
    rows = [{"bytes": one, "path": None} for one in pictures * 6] + broken
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    loaded_ = load_images(open_images(str(tmp_path / "a.parquet"), 16))
    assert [item.file for item in loaded_.skipped] == ["000072", "000073", "000074"]
    assert "missing" in loaded_.skipped[0].reason
    path = write_parquet(tmp_path / "b.parquet", FACES)
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError):
        open_images(str(path), 16).load(0)


def test_a_header_that_declares_more_than_there_is(tmp_path):
    path = tmp_path / "a.npz"
    inside = io.BytesIO()
    np.lib.format.write_array_header_1_0(inside, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 64, 64)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", inside.getvalue() + bytes(100))
    with pytest.raises(DataError, match="declares 4,096,000,000 bytes of values, 100 are there"):
        open_images(str(path), 16)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".parquet"])
def test_a_damaged_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match="Cannot read") as caught:
        open_images(str(path), 16)
    assert caught.value.remedy
    with pytest.raises(LabelError):
        read_labels(path)


def test_a_picture_that_is_not_finite_is_skipped(tmp_path):
    images = np.random.default_rng(1).random((30, 8, 8))
    images[4, 0, 0] = np.nan
    source = open_images(str(save(tmp_path / "a.npz", images=images)), 8)
    with pytest.raises(UnreadableImageError, match="not finite"):
        source.load(4)
    assert len(load_images(source).skipped) == 1


def encoded(picture: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def write_parquet(path: Path, pictures: np.ndarray, *, plain: bool = False, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [encoded(picture) for picture in pictures]
    image = data if plain else [{"bytes": one, "path": f"{at}.png"} for at, one in enumerate(data)]
    table = pa.table({"image": image, **columns})
    if "label" in columns:
        features = {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=5)
    return path


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_with_pictures(tmp_path, plain):
    path = write_parquet(tmp_path / "a.parquet", FACES, plain=plain, label=[0, 1] * 6, size=list(range(12)))
    assert np.array_equal(loaded(path), FACES)
    assert names(path)[-1] == "000011"
    table = read_labels(path)
    assert table.columns["label"].values[:3].tolist() == ["cat", "dog", "cat"]
    assert table.columns["size"].values.tolist() == list(range(12))
    source = copy.deepcopy(open_images(str(path), 16))
    assert np.array_equal(source.load(11), FACES[11])


def test_a_folder_of_parquet_files_keeps_its_parts(tmp_path):
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", FACES[9:], label=[1, 1, 1])
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", FACES[:6], label=[0] * 6)
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", FACES[6:9], label=[0] * 3)
    assert np.array_equal(loaded(tmp_path), FACES)
    assert names(tmp_path)[8:10] == ["train/000008", "test/000000"]
    assert read_parts(tmp_path)["test/000002"] == "test"
    assert read_labels(tmp_path).columns["label"].values.tolist() == ["cat"] * 9 + ["dog"] * 3


def test_parquet_without_pixels_says_so(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "/there/1.png"}] * 2}), path)
    with pytest.raises(UnreadableImageError, match="only the path"):
        open_images(str(path), 16).load(0)
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="no column of pictures"):
        open_images(str(path), 16)


def test_one_kind_at_a_time(tmp_path):
    one, two = save(tmp_path / "a.npz", images=FACES), save(tmp_path / "b.npz", images=FACES)
    with pytest.raises(DataError, match="Cannot read these together"):
        open_images([str(one), str(two)], 16)
