"""TIFFs of microscopes and scanners: stacks are as many pictures, depths are kept, and what is not read is named."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_decode import planar_tiff
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.data import tiff
from diticli.data.decode import decode_bytes, decode_image, picture_size
from diticli.data.images import UnreadableImageError, load_images, open_images
from diticli.data.labels import folder_labels
from diticli.data.tiff import tiff_pages

SIDE = 16
RAMP = np.add.outer(np.arange(SIDE), np.arange(SIDE))  # 0 to 30


def stack(path: Path, pages: list[np.ndarray], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = map(Image.fromarray, pages)
    first.save(path, save_all=True, append_images=others, **options)
    return path


def raw_tiff(values: np.ndarray, *, order: str = "<", big: bool = False, packed: bool = False, **tags: int) -> bytes:
    """A TIFF of numbers [H, W] of any kind, as a single strip."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if packed else data
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    facts = {256: width, 257: height, 258: values.dtype.itemsize * 8, 259: 8 if packed else 1, 262: 1, 277: 1}
    facts |= {278: height, 279: len(data), 339: kind} | {int(tag.strip("t")): value for tag, value in tags.items()}
    entry, offset = struct.Struct(order + ("HHQQ" if big else "HHII")), struct.Struct(order + ("Q" if big else "I"))
    count = struct.pack(order + ("Q" if big else "H"), len(facts) + 1)
    start = 16 if big else 8
    facts[273] = start + len(count) + (len(facts) + 1) * entry.size + offset.size
    body = b"".join(entry.pack(tag, 16 if big else 4, 1, value) for tag, value in sorted(facts.items()))
    mark = b"II" if order == "<" else b"MM"
    head = mark + (struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8))
    return head + count + body + offset.pack(0) + data


# stacks


def test_the_pages_of_a_stack_are_pictures_of_their_own(tmp_path: Path) -> None:
    pages = [(RAMP * factor).astype(np.uint8) for factor in (1, 3, 8)]
    stack(tmp_path / "cat" / "a.tif", pages, compression="tiff_lzw")
    Image.fromarray(pages[1]).save(tmp_path / "cat" / "b.tif")
    source = open_images(str(tmp_path), SIDE)
    names = [source.file_name(at) for at in range(len(source))]
    assert names == ["cat/a.tif:000000", "cat/a.tif:000001", "cat/a.tif:000002", "cat/b.tif"]
    assert np.array_equal(load_images(source, workers=2).images[..., 0], [*pages, pages[1]])
    assert set(folder_labels(names).columns["folder"].values) == {"cat"}
    assert source.size(2) == (SIDE, SIDE)
    other = open_images(str(tmp_path / "cat" / "a.tif"), SIDE)
    assert other.file_name(2) == "a.tif:000002"
    assert np.array_equal(other.load(2)[..., 1], pages[2])
    stack(tmp_path / "cat" / "a.tif", pages[:2], compression="tiff_lzw")
    assert open_images(str(tmp_path), SIDE).fingerprint() != source.fingerprint()


def test_a_stack_has_one_window_for_all_its_pages(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.tiff", [(RAMP * factor).astype(np.uint16) for factor in (1, 136)])
    source = open_images(str(path), SIDE)
    assert source.value_range == (0, 4095)
    assert source.load(0).max() == 2
    assert source.load(1).max() == 254


def test_previews_and_masks_are_no_pages(tmp_path: Path) -> None:
    page = (RAMP * 8).astype(np.uint8)
    stack(tmp_path / "preview.tif", [page, page[:8, :8]])
    source = open_images(str(tmp_path), SIDE)
    assert [source.file_name(0), len(source)] == ["preview.tif", 1]
    data = bytearray(stack(tmp_path / "mask.tif", [page, page]).read_bytes())
    second = data.rfind(struct.pack("<HHII", 256, 4, 1, SIDE))
    assert second > 0
    data[second : second + 12] = struct.pack("<HHII", 254, 4, 1, 4)  # in place of its width
    (tmp_path / "mask.tif").write_bytes(data)
    assert len(tiff_pages(io.BytesIO(bytes(data)))) == 1


def test_where_no_page_can_be_named_a_stack_is_refused_in_words(tmp_path: Path) -> None:
    path = stack(tmp_path / "a.tif", [RAMP.astype(np.uint8)] * 3)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(path, "a.tif")
    with pytest.raises(UnreadableImageError, match="3 pages; save each page as a file"):
        open_images(str(tmp_path / "a.tar"), SIDE).load(0)
    with pytest.raises(UnreadableImageError, match="3 pages"):
        decode_image(path, SIDE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ImageJ=1.53t\nimages=7\nslices=7\n", "7 pages that it does not list"),
        (json.dumps({"shape": [7, 16, 16], "truncated": True}), "several pages that it does not list"),
        ("ImageJ=1.53t\nimages=1\n", None),
        ("images=7", None),
        ("ImageJ=\n" * 100_000, None),
    ],
)
def test_pages_that_the_file_does_not_list_are_noticed(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(np.uint8)).save(path, tiffinfo={270: text})
    source = open_images(str(path), SIDE)
    if message is None:
        assert np.array_equal(source.load(0)[..., 0], RAMP)
        return
    with pytest.raises(UnreadableImageError, match=message):
        source.load(0)


def test_a_volume_in_one_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(RAMP.astype(np.uint8)).save(path, tiffinfo={32997: 5})
    with pytest.raises(UnreadableImageError, match="a TIFF volume of 5 planes"):
        open_images(str(path), SIDE).load(0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_directories_of_every_kind(order: str, big: bool) -> None:
    data = raw_tiff(RAMP.astype(np.uint16), order=order, big=big)
    assert [page[1:] for page in tiff_pages(io.BytesIO(data))] == [(SIDE, SIDE)]
    if not (big and order == ">"):  # a BigTIFF of that order is none to Pillow
        assert np.array_equal(decode_bytes(data, "a", SIDE, value_range=(0, 255))[..., 0], RAMP)


def test_damaged_and_circular_directories_end(tmp_path: Path) -> None:
    data = stack(tmp_path / "a.tif", [RAMP.astype(np.uint8)] * 4).read_bytes()
    for end in range(0, len(data), 37):
        assert len(tiff_pages(io.BytesIO(data[:end]))) <= 4
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    circle = bytearray(data)
    struct.pack_into("<I", circle, start + 2 + 12 * count, start)
    assert len(tiff_pages(io.BytesIO(bytes(circle)))) == 1
    assert tiff_pages(io.BytesIO(b"II*\0" + bytes(40))) == ()
    assert tiff_pages(io.BytesIO(b"II*\0" + struct.pack("<IH", 8, 65535))) == ()
    assert tiff_pages(io.BytesIO(b"")) == ()


# kinds of numbers


def test_without_tifffile_what_it_would_read_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "half.tif").write_bytes(raw_tiff((RAMP / 30).astype(np.float16)))
    (tmp_path / "planes.tif").write_bytes(planar_tiff(np.zeros((3, 16, 16), "<u2")))
    source = open_images(str(tmp_path), SIDE, value_range=(0, 1))
    for at in range(2):
        with pytest.raises(UnreadableImageError, match=r'pip install "diticli\[tiff\]"\); or save it as 8 bits'):
            source.load(at)
    assert picture_size(tmp_path / "half.tif") == (SIDE, SIDE)


@pytest.mark.parametrize("kind", [np.float16, np.float64])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_floats_of_16_and_64_bits(tmp_path: Path, kind: Any, packed: bool, order: str) -> None:
    pytest.importorskip("tifffile")
    values = (RAMP / 32).astype(kind)
    (tmp_path / "a.tif").write_bytes(raw_tiff(values, packed=packed, order=order))
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range == (0, 1)
    assert np.array_equal(source.load(0)[..., 0], np.rint(values.astype(float) * 255))
    (tmp_path / "a.tif").write_bytes(raw_tiff((RAMP * 40 - 500).astype(kind)))
    assert (
        open_images(str(tmp_path), SIDE, value_range=(-500, 700)).load(0)[..., 0].tolist()
        == np.rint(RAMP * 40 * 255 / 1200).astype(int).tolist()
    )
    (tmp_path / "a.tif").write_bytes(raw_tiff(np.full((4, 4), np.nan, kind)))
    with pytest.raises(UnreadableImageError, match="not finite"):
        open_images(str(tmp_path), SIDE, value_range=(0, 1)).load(0)


def test_planes_of_16_bits_are_no_stripes(tmp_path: Path) -> None:
    pytest.importorskip("tifffile")
    values = np.stack([RAMP * 136, RAMP * 50, RAMP * 0]).astype("<u2")
    (tmp_path / "a.tif").write_bytes(planar_tiff(values))
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range == (0, 4095)
    assert np.array_equal(source.load(0), np.rint(np.moveaxis(values, 0, -1) * (255 / 4095)))
    assert open_images(str(tmp_path), SIDE, channels=1).load(0).shape == (SIDE, SIDE, 1)


def test_colours_of_16_bits_have_a_window(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.stack([RAMP * 136, RAMP * 50, RAMP * 0], axis=-1).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    source = open_images(str(tmp_path), SIDE)
    assert source.value_range == (0, 4095)
    assert np.array_equal(source.load(0), np.rint(values * (255 / 4095)))


def test_stacks_of_floats_and_those_of_imagej(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = np.stack([RAMP / 32, RAMP / 64, RAMP / 128]).astype(np.float16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", values.astype(np.float32), imagej=True)
    source = open_images(str(tmp_path), SIDE)
    assert len(source) == 6, "three pages are no three channels"
    for at in range(6):
        assert np.array_equal(source.load(at)[..., 0], np.rint(values[at % 3].astype(float) * 255))


@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_are_held_upright_as_pillow_holds_them(turn: int) -> None:
    pytest.importorskip("tifffile")
    values = np.arange(SIDE * 8).reshape(8, SIDE)
    theirs = decode_bytes(raw_tiff(values.astype(np.uint8), t274=turn), "a", 8)
    assert np.array_equal(
        decode_bytes(raw_tiff(values.astype(np.float64), t274=turn), "a", 8, value_range=(0, 255)), theirs
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (raw_tiff(RAMP.astype(np.float64))[:900], "cut off"),
        (raw_tiff(RAMP.astype(np.float64), t279=100), "part is missing"),
        (raw_tiff(RAMP.astype(np.float64), t256=60_000, t257=60_000), "pixels are more than"),
        (raw_tiff(RAMP.astype(np.float64), t256=12_000, t257=12_000, t278=12_000), "take more than 1,073,741,824"),
        (raw_tiff(np.zeros((2000, 2000)), packed=True, t256=16, t257=16, t278=16), "unpack to more than their 2,048"),
        (raw_tiff(RAMP.astype(np.float64), t259=5), "packed by LZW; save it without compression"),
        (raw_tiff(RAMP.astype(np.float64), packed=True, t279=30), "TIFF"),
        (raw_tiff(RAMP.astype(np.float64), t339=6), "save it as grey or RGB"),
        (raw_tiff(RAMP.astype(np.float64), t278=4), "parts are not those of its size"),
        (b"II*\0" + bytes(40), "TIFF"),
    ],
)
def test_hostile_and_damaged_files_are_refused_in_words(data: bytes, reason: str) -> None:
    pytest.importorskip("tifffile")
    with pytest.raises(UnreadableImageError, match=reason):
        decode_bytes(data, "a.tif", SIDE, value_range=(0, 1))


# the command


def test_encode_names_every_page(make_pipeline: Any, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(str(tmp_path / "model"))
    stack(tmp_path / "data" / "a.tif", [(RAMP * factor).astype(np.uint8) for factor in (1, 3, 8)])
    arguments = ["encode", str(tmp_path / "data"), "-o", str(tmp_path / "f.npy"), "--model", str(tmp_path / "model")]
    done = CliRunner().invoke(app, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    files = json.loads((tmp_path / "f.json").read_text())["files"]
    assert files == [f"a.tif:{at:06d}" for at in range(3)]
    assert len({row.tobytes() for row in np.load(tmp_path / "f.npy")}) == 3


def test_the_extra_is_the_one_that_is_named() -> None:
    assert "tiff = " in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert "diticli[tiff]" in tiff.EXTRA
