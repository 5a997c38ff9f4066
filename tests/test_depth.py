"""Pictures of more than 8 bits: their window, found or given, and grey pictures in one channel."""

from __future__ import annotations

import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diticli.config_groups import DataConfig, parse_value_range
from diticli.data.images import UnreadableImageError, load_images, open_images
from diticli.errors import ConfigError, DataError
from diticli.progress import SilentReporter
from diticli.training.images import looks_grey

SIDE = 16
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE))  # 0 to 30


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


def save(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_twelve_bits_in_a_file_of_sixteen_are_no_longer_dark(tmp_path):
    save(tmp_path / "a.tiff", (RAMP * 136).astype(np.uint16))  # up to 4,080
    warnings = Warnings()
    source = open_images(str(tmp_path), SIDE, reporter=warnings)
    assert source.value_range == (0, 4095)
    assert "12 bits" in warnings.lines[0]
    expected = np.rint(RAMP * 136 * 255 / 4095).astype(np.uint8)
    assert np.array_equal(source.load(0)[..., 0], expected)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_are_used_whole(tmp_path, suffix):
    save(tmp_path / f"a{suffix}", (RAMP * 2000).astype(np.uint16))
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range == (0, 65535)
    assert np.array_equal(source.load(0)[..., 1], np.rint(RAMP * 2000 / 257).astype(np.uint8))


def test_a_window_is_cut_before_it_becomes_8_bits_and_levels_stay_fractions_until_resized(tmp_path):
    values = np.zeros((2, 2), np.uint16)
    values[0] = 1001, 1002  # 1 of 256 levels of the window apart: by the whole range both are the same black
    values[1] = 0, 60000
    save(tmp_path / "a.png", values)
    source = open_images(str(tmp_path), 2, value_range=(1000, 1255))
    assert source.load(0)[..., 0].tolist() == [[1, 2], [0, 255]]
    save(tmp_path / "a.png", np.array([[1000, 1001], [1001, 1001]], np.uint16))
    assert open_images(str(tmp_path), 1, value_range=(1000, 1001)).load(0)[0, 0, 0] == 191  # 255 * 3 / 4


def test_values_outside_the_window_are_said(tmp_path):
    save(tmp_path / "a.png", (RAMP * 2000).astype(np.uint16))
    warnings = Warnings()
    open_images(str(tmp_path), SIDE, value_range=(0, 4095), reporter=warnings)
    assert "between 0 and 60000" in warnings.lines[0]


def test_float_pictures_have_a_window(tmp_path):
    save(tmp_path / "a.tiff", (RAMP / 30).astype(np.float32))
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range == (0, 1)
    assert np.array_equal(source.load(0)[..., 2], np.rint(RAMP * 8.5).astype(np.uint8))
    save(tmp_path / "a.tiff", (RAMP * 40 - 500).astype(np.float32))
    with pytest.raises(DataError, match="what is black"):
        open_images(str(tmp_path), SIDE)
    assert open_images(str(tmp_path), SIDE, value_range=(-500, 700)).load(0)[0, 0, 0] == 0
    save(tmp_path / "a.tiff", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(UnreadableImageError, match="not finite"):
        open_images(str(tmp_path), SIDE, value_range=(0, 1)).load(0)


def test_a_window_leaves_pictures_of_8_bits_alone(tmp_path):
    save(tmp_path / "a.png", RAMP.astype(np.uint8) * 8)
    assert np.array_equal(open_images(str(tmp_path), SIDE, value_range=(0, 4095)).load(0)[..., 0], RAMP * 8)


def test_arrays_take_the_window_that_is_given(tmp_path):
    np.savez(tmp_path / "a.npz", images=(RAMP[None] * 100).astype(np.uint16))
    path = str(tmp_path / "a.npz")
    assert open_images(path, SIDE).value_range == (0, 4095)
    source = open_images(path, SIDE, value_range=(1000, 2000))
    assert source.value_range == (1000, 2000)
    assert np.array_equal(source.load(0)[..., 0], np.rint(np.clip(RAMP * 100 - 1000, 0, 1000) * 0.255))
    assert source.fingerprint() != open_images(path, SIDE).fingerprint()


def test_grey_pictures_in_one_channel(tmp_path):
    save(tmp_path / "a.png", RAMP.astype(np.uint8))
    colour = np.zeros((SIDE, SIDE, 3), np.uint8)
    colour[..., 1] = 200
    save(tmp_path / "b.png", colour)
    images = load_images(open_images(str(tmp_path), SIDE, channels=1), workers=0, max_unreadable=0).images
    assert images.shape == (2, SIDE, SIDE, 1)
    assert np.array_equal(images[0, ..., 0], RAMP)
    assert (images[1] == round(0.587 * 200)).all()


def test_arrays_of_colours_become_grey_alike(tmp_path):
    colour = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    colour[..., 0], colour[..., 2] = 90, 33
    np.savez(tmp_path / "a.npz", images=colour)
    np.savez(tmp_path / "b.npz", images=(colour / 255).astype(np.float32))
    bytes_, fractions = (open_images(str(tmp_path / name), SIDE, channels=1).load(0) for name in ("a.npz", "b.npz"))
    assert bytes_.shape == (SIDE, SIDE, 1)
    assert abs(int(bytes_[0, 0, 0]) - int(fractions[0, 0, 0])) <= 1


def test_faces_in_one_channel():
    assert open_images("faces:2", SIDE, channels=1).load(1).shape == (SIDE, SIDE, 1)


def sixteen_bit_png(value: int) -> bytes:
    """A 4 x 4 PNG of colours of 16 bits, all of one value."""
    rows = b"".join(b"\0" + np.full((4, 3), value, ">u2").tobytes() for _ in range(4))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_of_16_bits_have_no_other_window_than_all_of_them(tmp_path):
    (tmp_path / "a.png").write_bytes(sixteen_bit_png(40_000))
    warnings = Warnings()
    assert open_images(str(tmp_path), 4, reporter=warnings).load(0)[0, 0, 0] == 40_000 >> 8
    assert "16 bits" in warnings.lines[0]
    with pytest.raises(UnreadableImageError, match="no other range than 0,65535"):
        open_images(str(tmp_path), 4, value_range=(0, 4095)).load(0)
    (tmp_path / "a.png").write_bytes(sixteen_bit_png(3000))
    with pytest.raises(UnreadableImageError, match="no other range than 0,65535"):
        open_images(str(tmp_path), 4).load(0)  # 12 bits: they would be almost black
    assert open_images(str(tmp_path), 4, value_range=(0, 65535)).load(0)[0, 0, 0] == 3000 >> 8


def test_tiffs_of_a_kind_that_is_not_read_are_named(tmp_path):
    (tmp_path / "a.tiff").write_bytes(b"II*\0" + bytes(20))
    (tmp_path / "b.png").write_bytes(b"nothing")
    source = open_images(str(tmp_path), 4)
    with pytest.raises(UnreadableImageError, match="TIFF"):
        source.load(0)
    with pytest.raises(UnreadableImageError, match="not an image"):
        source.load(1)


def test_a_value_range_is_two_numbers_in_order():
    assert parse_value_range("-1000,400.5") == (-1000, 400.5)
    for text in ("1", "1,2,3", "a,b", "5,5", "7,1", "nan,1", "0,inf"):
        with pytest.raises(ConfigError):
            parse_value_range(text)
    with pytest.raises(ConfigError):
        DataConfig(value_range=(4095.0, 0.0))


def test_grey_sets_are_recognised(tmp_path):
    save(tmp_path / "a.png", RAMP.astype(np.uint8))
    (tmp_path / "b.png").write_bytes(b"nothing")
    assert looks_grey(open_images(str(tmp_path), SIDE))
    save(tmp_path / "c.png", np.full((SIDE, SIDE, 3), (1, 2, 3), np.uint8))
    assert not looks_grey(open_images(str(tmp_path), SIDE))


def test_pictures_in_tars_and_parquet_files_have_a_window(tmp_path):
    picture = save(tmp_path / "a.tiff", (RAMP * 136).astype(np.uint16))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(picture, "a.tiff")
    rows = pa.array([{"bytes": picture.read_bytes(), "path": "a.tiff"}])
    pq.write_table(pa.table({"image": rows}), tmp_path / "a.parquet")
    for name in ("a.tar", "a.parquet"):
        source = open_images(str(tmp_path / name), SIDE)
        assert source.value_range == (0, 4095)
        assert source.load(0).max() == 254
        assert open_images(str(tmp_path / name), SIDE, value_range=(0, 1000)).load(0).max() == 255


def test_one_stranger_stops_no_set(tmp_path):
    for at in range(30):
        save(tmp_path / f"{at}.png", RAMP.astype(np.uint8))
    save(tmp_path / "z.tiff", (RAMP * 40 - 500).astype(np.float32))
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range is None
    with pytest.raises(UnreadableImageError, match="--value-range"):
        source.load(30)
