"""LMDBs as Diff-AE writes them: what is read, how rows are named, and what is said of damaged ones."""

from __future__ import annotations

import copy
import gc
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from diticli.data.images import LmdbImages, UnreadableImageError, load_images, open_images
from diticli.data.lmdb_reader import lmdb_reader
from diticli.data.sources import typical_side
from diticli.errors import DataError


def picture(index: int, size: tuple[int, int] = (32, 32), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (index % 256, 100, 200)).save(buffer, kind)
    return buffer.getvalue()


def write(path: Path, values: dict[str, bytes], *, subdir: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(path), map_size=2**26, subdir=subdir) as environment, environment.begin(write=True) as t:
        for key, value in values.items():
            t.put(key.encode(), value)
    return path


def ffhq(path: Path, count: int = 12, side: int = 256, digits: int = 5, **others: bytes) -> Path:
    values = {f"{side}-{i:0{digits}d}": picture(i) for i in range(count)}
    return write(path, values | {"length": str(count).encode()} | others)


def celeba_picture(size: tuple[int, int] = (178, 218)) -> Image.Image:
    """Red where the official crop lies, green elsewhere."""
    image = Image.new("RGB", size, (0, 255, 0))
    scale = size[0] / 178
    left, top, side = int(25 * scale), int(57 * scale), round(128 * scale)
    image.paste((255, 0, 0), (left, top, left + side, top + side))
    return image


def celeba(path: Path, count: int = 3) -> Path:
    buffer = io.BytesIO()
    celeba_picture().save(buffer, "WEBP", lossless=True)
    values = {f"None-{i:07d}": buffer.getvalue() for i in range(count)}
    return write(path, values | {"length": str(count).encode()})


@pytest.mark.parametrize("digits", [5, 7])
def test_images_in_order_under_padded_indices(tmp_path: Path, digits: int) -> None:
    source = open_images(str(ffhq(tmp_path / "x.lmdb", digits=digits)), 16)
    assert isinstance(source, LmdbImages)
    assert len(source) == 12
    assert [source.file_name(i) for i in (0, 11)] == [f"{0:0{digits}d}.png", f"{11:0{digits}d}.png"]
    assert [int(source.load(i)[8, 8, 0]) for i in range(12)] == list(range(12))
    assert source.load(0).shape == (16, 16, 3)
    assert (source.crop, source.stored, typical_side(source)) == ("center", "256", 32)


def test_every_way_to_name_one(tmp_path: Path) -> None:
    folder = ffhq(tmp_path / "plain")
    write(tmp_path / "single.lmdb", {"64-00000": picture(0), "length": b"1"}, subdir=False)
    nested = tmp_path / "nested"
    ffhq(nested / "ffhq.lmdb", count=2)
    spaced = ffhq(tmp_path / "with spaced name", count=3)
    named = {str(folder): 12, str(folder / "data.mdb"): 12, str(nested): 2, str(spaced): 3}
    named |= {str(tmp_path / "single.lmdb"): 1, str(tmp_path / "sin*.lmdb"): 1}
    assert {name: len(open_images(name, 8)) for name in named} == named


def test_celeba_is_named_and_cropped_as_its_users_do(tmp_path: Path) -> None:
    source = open_images(str(celeba(tmp_path / "celeba")), 64)
    assert [source.file_name(i) for i in range(3)] == ["000001.jpg", "000002.jpg", "000003.jpg"]
    assert source.crop == "celeba"
    assert source.fingerprint()["crop"] == "celeba"
    np.testing.assert_array_equal(source.load(1), np.full((64, 64, 3), (255, 0, 0), np.uint8))
    centred = open_images(str(tmp_path / "celeba"), 64, crop="center")
    assert (centred.load(0)[0] == (0, 255, 0)).all()
    assert centred.fingerprint()["crop"] == "center"
    assert centred.file_name(0) == "000001.jpg"


def test_originals_of_another_shape_are_not_celeba(tmp_path: Path) -> None:
    source = open_images(str(write(tmp_path / "x", {"None-0000000": picture(3), "length": b"1"})), 8)
    assert (source.file_name(0), source.crop) == ("0000000.png", "center")


@pytest.mark.parametrize(("wanted", "stored"), [(32, "64"), (64, "64"), (65, "128"), (128, "128"), (512, "128")])
def test_the_stored_size_nearest_above_is_taken(tmp_path: Path, wanted: int, stored: str) -> None:
    values = {f"{side}-{i:05d}": picture(side, (side, side)) for side in (64, 128) for i in range(4)}
    source = open_images(str(write(tmp_path / "x", values | {"length": b"4"})), wanted)
    assert isinstance(source, LmdbImages)
    assert (source.stored, len(source)) == (stored, 4)
    assert int(source.load(3)[0, 0, 0]) == int(stored)


def test_threads_and_several_sources_share_one_environment(tmp_path: Path) -> None:
    path = ffhq(tmp_path / "x")
    (tmp_path / "link").symlink_to(path)
    sources = [open_images(str(path), 8), open_images(str(tmp_path / "link"), 16)]
    sources.append(copy.deepcopy(sources[0]))  # as a worker process gets it
    with ThreadPoolExecutor(4) as pool:
        for source in sources:
            reds = list(pool.map(lambda i, s=source: int(s.load(i)[0, 0, 0]), list(range(12)) * 20))
            assert reds == list(range(12)) * 20
    assert len({id(source._reader) for source in sources}) == 1


def test_a_file_that_was_written_anew_is_opened_anew(tmp_path: Path) -> None:
    first = open_images(str(ffhq(tmp_path / "x", count=3)), 8)
    shutil.rmtree(tmp_path / "x")
    second = open_images(str(ffhq(tmp_path / "x", count=5)), 8)
    assert (len(first), len(second)) == (3, 5)
    assert first.fingerprint() != second.fingerprint()
    del first, second
    gc.collect()
    with lmdb.open(str(tmp_path / "x")) as environment:  # nothing keeps it open
        assert environment.stat()["entries"] == 6


def test_forked_process_leaves_the_parents_environment_alone(tmp_path: Path) -> None:
    source = open_images(str(ffhq(tmp_path / "x")), 8)
    source.load(0)
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=source.load, args=(1,))
        process.start()
        process.join(30)
        assert process.exitcode == 0
        assert int(source.load(7)[0, 0, 0]) == 7


def test_unreadable_values_are_named_by_key_and_skipped(tmp_path: Path) -> None:
    path = ffhq(tmp_path / "x", count=60)
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as t:
        t.put(b"256-00007", b"no image at all")
        t.delete(b"256-00009")
        t.put(b"more", b"so that the count still fits")
    source = open_images(str(path), 8)
    with pytest.raises(UnreadableImageError, match=r"256-00007 of .*x: not an image"):
        source.load(7)
    with pytest.raises(UnreadableImageError, match=r"256-00009 of .*x: no such key"):
        source.load(9)
    assert source.size(9) is None
    loaded = load_images(source)
    assert [item.file for item in loaded.skipped] == ["00007.png", "00009.png"]
    assert len(loaded.images) == 58


def damaged(path: Path, data: bytes) -> Path:
    path.mkdir()
    (path / "data.mdb").write_bytes(data)
    return path


CUT_OFF = """
import sys
from diticli.data.images import open_images
from diticli.errors import DataError
for path in sys.argv[1:]:
    try:
        open_images(path, 8).load(0)
        print("read", path)
    except DataError as error:
        print(error)
"""


def test_files_that_are_cut_off_are_named_and_kill_nothing(tmp_path: Path) -> None:
    """A page behind the end of a mapped file is a bus error, so this runs in a process of its own."""
    data = (ffhq(tmp_path / "x", count=300) / "data.mdb").read_bytes()
    sizes = (0, 100, 4096, 3 * 4096, len(data) // 2, len(data) - 4096)
    bad = [str(damaged(tmp_path / f"bad{size}", data[:size])) for size in sizes]
    done = subprocess.run([sys.executable, "-c", CUT_OFF, *bad], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(bad)
    assert all(f"LMDB {path}/data.mdb" in line for path, line in zip(bad, said, strict=True))
    assert "is cut off: 12,288 of" in said[3]


def test_garbage_and_wiped_pages_are_named(tmp_path: Path) -> None:
    data = (ffhq(tmp_path / "x", count=300) / "data.mdb").read_bytes()
    for name, content in {"garbage": b"\x17" * 20_000, "wiped": data[:8192] + bytes(len(data) - 8192)}.items():
        with pytest.raises(DataError, match=f"{name}/data.mdb") as caught:
            open_images(str(damaged(tmp_path / name, content)), 8)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "holds no images under keys like 256-00000"),
        ({"image_0": b"x", "length": b"1"}, "holds no images"),
        ({"256-00000": b"x"}, "does not say how many images"),
        ({"256-00000": b"x", "length": b"many"}, "does not say how many images"),
        ({"256-00000": b"x", "length": b"0"}, "announces 0 images"),
        ({"256-00000": b"x", "length": b"70000"}, "announces 70,000 images of resolution 256, but holds 2 entries"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, values: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_images(str(write(tmp_path / "x", values)), 8)
    assert caught.value.remedy


def test_what_is_missing_several_or_mixed_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.lmdb").mkdir()
    ffhq(tmp_path / "two" / "a.lmdb")
    ffhq(tmp_path / "two" / "b.lmdb")
    os.mkfifo(tmp_path / "pipe.mdb")
    for spec, message in {
        "absent.lmdb": "does not exist",
        "empty.lmdb": "empty.lmdb/data.mdb: No such file",
        "two": r"holds 2 LMDBs, e.g. a.lmdb and b.lmdb",
        "pipe.mdb": "not a regular file",
        "two/*.lmdb": "Cannot read these together",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            open_images(str(tmp_path / spec), 8)
        assert caught.value.remedy


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ffhq(tmp_path / "x")
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(DataError, match="needs the package lmdb") as caught:
        open_images(str(path), 8)
    assert 'pip install "diticli[lmdb]"' in caught.value.remedy


def test_the_reader_is_dropped_with_its_last_user(tmp_path: Path) -> None:
    path = ffhq(tmp_path / "x") / "data.mdb"
    reader = lmdb_reader(path)
    assert lmdb_reader(path) is reader
    assert reader.first_key(b"256-00003\0") == b"256-00004"
    assert reader.first_key(b"z") is None
    assert reader.get(b"absent") is None
