"""Cars3D's and SmallNORB's `.mat` files, written here in the forms in which they are distributed."""

from __future__ import annotations

import copy
import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from diticli.data import matlab_files
from diticli.data.images import UnreadableImageError, load_images, open_images
from diticli.data.labels import read_labels, read_parts
from diticli.errors import DataError, LabelError

RNG = np.random.default_rng(0)
AZIMUTHS, ELEVATIONS, SIDE = 3, 2, 8
NORB = {"train": "smallnorb-5x46789x9x18x6x2x96x96-training", "test": "smallnorb-5x01235x9x18x6x2x96x96-testing"}


def write_cars(folder: Path, count: int = 3, *, packed: bool = True) -> np.ndarray:
    """[cars, azimuths, elevations, H, W, 3], written as MATLAB writes them: the places are the last axes."""
    folder.mkdir(exist_ok=True)
    cars = RNG.integers(0, 256, (count, AZIMUTHS, ELEVATIONS, SIDE, SIDE, 3), dtype=np.uint8)
    for at, car in enumerate(cars):
        image = np.transpose(car, (2, 3, 4, 0, 1))
        savemat(folder / f"car_{at + 1:03d}_mesh.mat", {"other": np.eye(2), "im": image}, do_compression=packed)
    return cars


def matrix(path: Path, magic: int, values: np.ndarray) -> Path:
    sizes = [*values.shape, 1, 1, 1][: max(3, values.ndim)]
    path.write_bytes(struct.pack(f"<{2 + len(sizes)}i", magic, values.ndim, *sizes) + values.tobytes())
    return path


def write_norb(folder: Path, count: int = 5) -> dict[str, np.ndarray]:
    folder.mkdir(exist_ok=True)
    pairs = {}
    for part, stem in NORB.items():
        pairs[part] = RNG.integers(0, 256, (count, 2, SIDE, SIDE), dtype=np.uint8)
        info = np.stack([np.arange(count) % 10, np.arange(count) % 9, 2 * np.arange(count), np.arange(count) % 6], 1)
        matrix(folder / f"{stem}-dat.mat", 0x1E3D4C55, pairs[part])
        matrix(folder / f"{stem}-cat.mat", 0x1E3D4C54, (np.arange(count) % 5).astype("<i4"))
        matrix(folder / f"{stem}-info.mat", 0x1E3D4C54, info.astype("<i4"))
    return pairs


@pytest.mark.parametrize("packed", [True, False])
def test_cars3d_is_read_with_its_factors(tmp_path, packed):
    cars = write_cars(tmp_path / "cars", packed=packed)
    (tmp_path / "cars" / "list.txt").write_text("car_001_mesh\n")
    source = open_images(str(tmp_path / "cars"), SIDE)
    assert np.array_equal(load_images(source, workers=2).images, cars.reshape(-1, SIDE, SIDE, 3))
    assert [source.file_name(at) for at in (0, 5, 6)] == ["car_001/000000", "car_001/000005", "car_002/000000"]
    assert np.array_equal(copy.deepcopy(source).load(7), cars[1, 0, 1])
    assert source.size(0) == (SIDE, SIDE)
    table = read_labels(tmp_path / "cars")
    assert list(table.columns) == ["elevation", "azimuth", "object_type"]
    assert table.columns["azimuth"].values[:7].tolist() == [0, 0, 1, 1, 2, 2, 0]
    assert table.columns["elevation"].values[:4].tolist() == [0, 1, 0, 1]
    assert table.columns["object_type"].values[[0, 17]].tolist() == ["car_001", "car_003"]
    rows, table_rows = table.match([source.file_name(at) for at in range(len(source))])
    assert rows.tolist() == table_rows.tolist() == list(range(18))
    with pytest.raises(LabelError, match="not distributed in parts"):
        read_parts(tmp_path / "cars")


def test_one_car_is_a_set_and_files_are_unpacked_when_they_are_needed(tmp_path, monkeypatch):
    cars = write_cars(tmp_path, count=8)
    matlab_files._car.cache_clear()
    assert np.array_equal(open_images(str(tmp_path / "car_002_mesh.mat"), SIDE).load(0), cars[1, 0, 0])
    seen = []
    unpacked = matlab_files._unpacked
    monkeypatch.setattr(matlab_files, "_unpacked", lambda path: (seen.append(path.name), unpacked(path))[1])
    matlab_files._car.cache_clear()
    source = open_images(str(tmp_path), SIDE)
    source.fingerprint()
    assert len(source) == 48
    assert set(seen) == {"car_001_mesh.mat", "car_002_mesh.mat", "car_003_mesh.mat"}


def test_a_damaged_car_is_skipped_and_named(tmp_path):
    write_cars(tmp_path)
    path = tmp_path / "car_002_mesh.mat"
    path.write_bytes(path.read_bytes()[:200])
    matlab_files._car.cache_clear()
    source = open_images(str(tmp_path), SIDE)
    source.load(0)
    with pytest.raises(UnreadableImageError, match="car_002/000001"):
        source.load(7)


def bomb() -> bytes:
    head = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"
    body = zlib.compress(bytes(4096 * 300), 9)
    return head + struct.pack("<II", 15, len(body)) + body


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no MATLAB file"),
        (b"PK\x03\x04" + bytes(200), "no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(512), "MATLAB 7.3"),
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 14, 5000), "cut off"),
        (bomb(), "unpacks to over"),
        ({"images": np.zeros((2, 2))}, "no variable `im`; it has: images"),
        ({"im": np.zeros((8, 8, 3, 2, 2))}, "is double of shape"),
        ({"im": np.zeros((8, 8, 3), np.uint8)}, "is uint8 of shape"),
        ({"im": np.array([{"a": 1}], dtype=object)}, "is cell of shape"),
    ],
)
def test_what_is_no_file_of_cars3d_is_refused_in_words(tmp_path, monkeypatch, content, reason):
    monkeypatch.setattr(matlab_files, "MAX_UNPACKED", 2**20)
    path = tmp_path / "car_001_mesh.mat"
    if isinstance(content, dict):
        savemat(path, content)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        open_images(str(path), SIDE)


def test_a_header_that_promises_too_much_is_refused(tmp_path):
    data = io.BytesIO()
    savemat(data, {"im": np.zeros((8, 8, 3, 2, 2), np.uint8)})
    raw = data.getvalue()
    at = raw.index(struct.pack("<5i", 8, 8, 3, 2, 2))
    path = tmp_path / "car_001_mesh.mat"
    path.write_bytes(raw[:at] + struct.pack("<5i", 8, 8, 3, 2**30, 2**30) + raw[at + 20 :])
    with pytest.raises(DataError, match="Cannot read"):
        open_images(str(path), SIDE)


def test_a_folder_of_pictures_with_a_mat_file_stays_one(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    savemat(tmp_path / "cars_train_annos.mat", {"annotations": np.eye(2)})
    assert open_images(str(tmp_path), SIDE).file_name(0) == "a.png"


def test_smallnorb_is_read_with_parts_and_factors(tmp_path):
    pairs = write_norb(tmp_path / "norb")
    source = open_images(str(tmp_path / "norb"), SIDE)
    both = np.concatenate([pairs["train"][:, 0], pairs["test"][:, 0]])
    assert np.array_equal(load_images(source, workers=0).images[..., 0], both)
    assert [source.file_name(at) for at in (0, 5)] == ["train/000000", "test/000000"]
    table = read_labels(tmp_path / "norb")
    assert list(table.columns) == ["category", "instance", "elevation", "azimuth", "lighting"]
    assert table.columns["category"].values[:5].tolist() == ["animal", "human", "airplane", "truck", "car"]
    assert table.columns["azimuth"].values[:3].tolist() == [0, 2, 4]
    assert read_parts(tmp_path / "norb")["test/000001"] == "test"
    one = open_images(str(tmp_path / "norb" / f"{NORB['test']}-dat.mat"), SIDE)
    assert np.array_equal(one.load(2)[..., 1], pairs["test"][2, 0])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / f"{NORB['train']}-cat.mat").unlink(), "is not there"),
        (lambda f: (f / f"{NORB['train']}-dat.mat").write_bytes(b"\x55\x4c"), "cut off"),
        (lambda f: matrix(f / f"{NORB['train']}-dat.mat", 0x1E3D4C54, np.zeros((5, 2, 8, 8), "<i4")), "values <i4"),
        (lambda f: matrix(f / f"{NORB['train']}-dat.mat", 0x1E3D4C55, np.zeros((5, 2, 8), np.uint8)), "3 axes"),
        (lambda f: matrix(f / f"{NORB['train']}-cat.mat", 0x1E3D4C54, np.zeros(4, "<i4")), "5 pairs"),
        (lambda f: matrix(f / f"{NORB['train']}-dat.mat", 0x1E3D4C55, np.zeros((5, 3, 8, 8), np.uint8)), "declares"),
        (
            lambda f: (f / f"{NORB['train']}-dat.mat").write_bytes(
                struct.pack("<6i", 0x1E3D4C55, 4, 2**31 - 1, 2, 2**31 - 1, 96)
            ),
            "declares",
        ),
    ],
)
def test_a_damaged_smallnorb_is_refused_in_words(tmp_path, spoil, reason):
    write_norb(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=reason):
        open_images(str(tmp_path), SIDE)


def test_packed_files_of_smallnorb_say_how_to_unpack_them(tmp_path):
    (tmp_path / f"{NORB['train']}-dat.mat.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError) as caught:
        open_images(str(tmp_path), SIDE)
    assert "gunzip" in str(caught.value.remedy)
