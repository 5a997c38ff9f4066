"""Tars as a source: random access without extracting, names that are never paths, damage that is named."""

from __future__ import annotations

import contextlib
import copy
import gc
import gzip
import io
import os
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diticli.data import tar_images
from diticli.data.images import TarImages, UnreadableImageError, load_images, open_images
from diticli.data.names import unique_names
from diticli.data.packed_names import PackedNames, last_of_equals, prefixes_that_tell_apart
from diticli.data.sources import typical_side
from diticli.data.tar_index import index_tar
from diticli.errors import DataError


def picture(index: int, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (index % 256, 60, 30)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes] | None = None, *, count: int = 5, kind: int | None = None) -> Path:
    """`count` images, WebDataset style, or the given members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if members is None:
        members = {}
        for i in range(count):
            members |= {f"{i:04d}.png": picture(i), f"{i:04d}.cls": b"3", f"{i:04d}.json": b"{}"}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT if kind is None else kind) as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def reds(source: TarImages) -> list[int]:
    return [int(source.load(i)[0, 0, 0]) for i in range(len(source))]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_images_in_the_tars_order_labels_left_aside(tmp_path: Path, kind: int) -> None:
    source = open_images(str(write_tar(tmp_path / "a.tar", kind=kind)), 8)
    assert isinstance(source, TarImages)
    assert [source.file_name(i) for i in range(5)] == [f"{i:04d}.png" for i in range(5)]
    assert reds(source) == [0, 1, 2, 3, 4]
    assert source.load(2).shape == (8, 8, 3)
    assert typical_side(source) == 16
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.tar"], "nothing is extracted"


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names_and_folders(tmp_path: Path, kind: int) -> None:
    long = "class ä/" + "x" * 300 + ".png"
    path = write_tar(tmp_path / "a.tar", {"./b/2.jpg": picture(120, kind="JPEG"), long: picture(1)}, kind=kind)
    source = open_images(str(path), 8)
    assert [source.file_name(i) for i in range(2)] == ["b/2.jpg", long]
    assert reds(source) == [pytest.approx(120, abs=3), 1]


def test_every_way_to_name_them(tmp_path: Path) -> None:
    for shard in range(12):
        write_tar(
            tmp_path / "shards" / f"s-{shard:03d}.tar", {f"{shard:02d}-{i}.png": picture(shard) for i in range(2)}
        )
    (tmp_path / "shards" / "notes.txt").write_text("x")
    folder = str(tmp_path / "shards")
    named = {
        folder: 24,
        f"{folder}/s-004.tar": 2,
        f"{folder}/s-{{000..011}}.tar": 24,
        f"{folder}/s-{{9..11}}.tar": None,
        f"{folder}/s-{{009..011}}.tar": 6,
        f"{folder}/s-{{001,004}}.tar": 4,
        f"{folder}/s-00?.tar": 20,
        f"{tmp_path}/**/s-01*.tar": 4,
    }
    for spec, count in named.items():
        if count is not None:
            assert len(open_images(spec, 8)) == count, spec
    source = open_images([f"{folder}/s-{{010..011}}.tar", f"{folder}/s-000.tar", f"{folder}/s-011.tar"], 8)
    assert [source.file_name(i) for i in range(6)] == [
        "10-0.png",
        "10-1.png",
        "11-0.png",
        "11-1.png",
        "00-0.png",
        "00-1.png",
    ]
    with pytest.raises(DataError, match=r"s-9\.tar: No such file"):
        open_images(f"{folder}/s-{{9..11}}.tar", 8)


def test_equal_names_get_their_tars_name_in_front(tmp_path: Path) -> None:
    for folder, name in (("x", "train"), ("x", "val"), ("y", "train")):
        write_tar(tmp_path / folder / f"{name}.tar", {"7.png": picture(1)})
    source = open_images(str(tmp_path / "x"), 8)
    assert [source.file_name(i) for i in range(2)] == ["train/7.png", "val/7.png"]
    source = open_images(f"{tmp_path}/{{x,y}}/train.tar", 8)
    assert [source.file_name(i) for i in range(2)] == ["x/train/7.png", "y/train/7.png"]


def test_a_folder_of_images_that_also_holds_a_tar_is_a_folder_of_images(tmp_path: Path) -> None:
    write_tar(tmp_path / "backup.tar")
    (tmp_path / "one.png").write_bytes(picture(9))
    assert open_images(str(tmp_path), 8).file_name(0) == "one.png"


def test_hostile_names_are_labels_and_nothing_else(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(picture(99))
    members = {
        str(outside): picture(1),
        "../outside2.png": picture(2),
        "a/../../../etc/passwd.png": picture(3),
        "..\\windows.png": picture(4),
        "._resource.png": picture(5),
        "__MACOSX/.hidden/x.png": picture(6),
    }
    path = write_tar(tmp_path / "in" / "a.tar", members)
    source = open_images(str(path), 8)
    names = [source.file_name(i) for i in range(len(source))]
    assert names == [str(outside)[1:], "outside2.png", "a/etc/passwd.png", "windows.png"]
    assert reds(source) == [1, 2, 3, 4]
    assert sorted(entry.name for entry in (tmp_path / "in").iterdir()) == ["a.tar"]
    assert outside.read_bytes() == picture(99)


def test_links_devices_and_folders_are_left_out_and_the_last_of_equal_names_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "x.png", picture(1))
        add(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "hard.png", type=tarfile.LNKTYPE, linkname="x.png")
        add(tar, "pipe.png", type=tarfile.FIFOTYPE)
        add(tar, "folder.png", type=tarfile.DIRTYPE)
        add(tar, "y.png", picture(2))
        add(tar, "./x.png", picture(3))
    source = open_images(str(path), 8)
    assert [source.file_name(i) for i in range(len(source))] == ["y.png", "x.png"]
    assert reds(source) == [2, 3]


def test_unreadable_members_are_named_and_skipped(tmp_path: Path) -> None:
    members = {f"{i:03d}.png": picture(i) for i in range(60)} | {"004.png": b"no image", "005.png": b""}
    source = open_images(str(write_tar(tmp_path / "a.tar", members)), 8)
    with pytest.raises(UnreadableImageError, match=r"004\.png: not an image"):
        source.load(4)
    loaded = load_images(source)
    assert [(item.file, item.reason) for item in loaded.skipped] == [
        ("004.png", "not an image"),
        ("005.png", "empty (0 bytes)"),
    ]
    assert source.size(4) is None


def test_members_too_large_for_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_images(str(write_tar(tmp_path / "a.tar")), 8)
    monkeypatch.setattr(tar_images, "MAX_BYTES", 10)
    with pytest.raises(UnreadableImageError, match="bytes are more than 10"):
        source.load(0)


def test_truncation_anywhere_is_named(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "whole.tar", {f"{i}.png": picture(i) for i in range(3)}).read_bytes()
    index = index_tar(tmp_path / "whole.tar")
    last = index[-1].offset + index[-1].size
    cuts = {0, 100, 512, 700, index[1].offset - 512, index[1].offset - 100, index[1].offset, index[2].offset + 9, last}
    end = -(-last // 512) * 512
    for cut in sorted(cuts | {end}):
        path = tmp_path / f"cut{cut}.tar"
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match=rf"cut{cut}\.tar is damaged or cut off") as caught:
            open_images(str(path), 8)
        assert caught.value.remedy
    (tmp_path / "end.tar").write_bytes(data[: end + 512])
    assert len(open_images(str(tmp_path / "end.tar"), 8)) == 3


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{i}.png": picture(i) for i in range(3)})
    data = bytearray(path.read_bytes())
    data[index_tar(path)[1].offset - 512 + 150] ^= 1  # its checksum
    path.write_bytes(data)
    with pytest.raises(DataError, match="no header and no end mark at byte"):
        open_images(str(path), 8)


def test_tars_joined_into_one_file_are_all_read(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", {f"a{i}.png": picture(i) for i in range(3)})
    two = write_tar(tmp_path / "2.tar", {f"b{i}.png": picture(3 + i) for i in range(2)} | {"a0.png": picture(9)})
    joined = tmp_path / "joined.tar"
    joined.write_bytes(one.read_bytes() + two.read_bytes() + bytes(5000))
    source = TarImages([joined], 8)
    assert [source.file_name(i) for i in range(len(source))] == ["a1.png", "a2.png", "b0.png", "b1.png", "a0.png"]
    np.testing.assert_array_equal(source.load(4), TarImages([two], 8).load(2))


@pytest.mark.parametrize("tail", [b"notes", b"x" * 700, picture(1) * 9])
def test_what_follows_the_end_and_is_no_tar_is_refused(tmp_path: Path, tail: bytes) -> None:
    tar = write_tar(tmp_path / "1.tar", count=2)
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes() + tail)
    with pytest.raises(DataError, match=f"follows the end mark at byte {size:,}"):
        open_images(str(tar), 8)


def test_random_damage_never_hangs_or_escapes(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "a.tar", count=4).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "b.tar"
    for _ in range(100):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(len(broken), size=20)] = rng.integers(256, size=20)
        path.write_bytes(broken.tobytes())
        try:
            source = open_images(str(path), 8)
        except DataError:
            continue
        for index in range(len(source)):
            with contextlib.suppress(UnreadableImageError):
                assert source.load(index).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"hello" * 300), "damaged or cut off"),
        (lambda p: p.write_bytes(gzip.compress(bytes(2000))), "is compressed"),
        (lambda p: write_tar(p, {"a.txt": b"x"}), "No images in"),
        (lambda p: os.mkfifo(p), "not a regular file"),
        (lambda p: p, "does not exist|No such file"),
    ],
)
def test_what_is_no_tar_of_images(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "a.tar")
    with pytest.raises(DataError, match=message) as caught:
        open_images(str(tmp_path / "a.tar"), 8)
    assert caught.value.remedy
    assert "a.tar" in caught.value.message


def test_compressed_tars_say_how_to_decompress(tmp_path: Path) -> None:
    for suffix, mode, program in (("tar.gz", "w:gz", "gunzip"), ("tgz", "w:gz", "gunzip"), ("tar.xz", "w:xz", "unxz")):
        path = tmp_path / suffix / f"a.{suffix}"
        path.parent.mkdir()
        with tarfile.open(path, mode) as tar:
            add(tar, "x.png", picture(1))
        for spec in (path, path.parent):
            with pytest.raises(DataError, match="is compressed") as caught:
                open_images(str(spec), 8)
            assert f"{program} a.{suffix}" in caught.value.remedy


def test_kinds_cannot_be_mixed(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar")
    (tmp_path / "one.png").write_bytes(picture(9))
    with pytest.raises(DataError, match="Cannot read these together") as caught:
        open_images([str(tar), str(tmp_path / "one.png")], 8)
    assert caught.value.remedy


def test_threads_copies_and_more_tars_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for shard in range(5):
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}.png": picture(shard)})
    monkeypatch.setattr(tar_images, "_KEPT_OPEN", 2)
    gc.collect()  # what earlier tests left open is closed now, not in between
    before = len(os.listdir("/proc/self/fd"))
    source = open_images(str(tmp_path), 8)
    assert isinstance(source, TarImages)
    for one in (source, copy.deepcopy(source)):  # as a worker process gets it
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i, s=one: int(s.load(i)[0, 0, 0]), list(range(5)) * 40))
        assert found == list(range(5)) * 40
        assert len(one._files._open) == 2
    del source, one
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_tar_that_shrinks_or_vanishes_later(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar")
    source = open_images(str(path), 8)
    os.truncate(path, 3000)
    with pytest.raises(UnreadableImageError, match="cut off since it was opened"):
        source.load(4)
    path.unlink()
    elsewhere = copy.deepcopy(source)  # as another process gets it: without descriptors
    with pytest.raises(UnreadableImageError, match="cannot read its tar: no such file"):
        elsewhere.load(0)


def test_fingerprints_notice_changes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar")
    before = open_images(str(path), 8).fingerprint()
    assert open_images(str(path), 8).fingerprint() == before
    assert before["count"] == 5
    write_tar(path, {f"{i:04d}.jpg": picture(i) for i in range(5)})
    assert open_images(str(path), 8).fingerprint()["sha256"] != before["sha256"]
    assert open_images(str(path), 8, crop="celeba").fingerprint()["crop"] == "celeba"


def test_an_index_takes_little_memory_and_no_more_while_it_is_made(tmp_path: Path) -> None:
    """24 bytes an image and its name; what lists of `Member` took was 330."""
    data, count = picture(1), 500
    for tar in range(2):
        write_tar(tmp_path / f"{tar}.tar", {f"{i:09d}.png": data for i in range(count)}, kind=tarfile.USTAR_FORMAT)
    open_images(str(tmp_path), 8)
    tracemalloc.start()
    try:
        source = open_images(str(tmp_path), 8)
        kept, peak = (size / len(source) for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert source.file_name(count) == "1/000000000.png"
    assert kept < 24 + 13 + 16
    assert peak < 160


def test_packed_names_are_names() -> None:
    names = ["", "a", "ä/b", "x" * 300, os.fsdecode(b"\xff.png")]
    packed = PackedNames(names)
    assert list(packed) == names
    assert (packed[-1], packed[1:3], len(packed)) == (names[-1], names[1:3], 5)
    assert list(copy.deepcopy(packed)) == names
    assert list(packed.keep(np.array([2, 0]))) == ["ä/b", ""]
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            packed[wrong]
    assert last_of_equals(PackedNames(["a", "b", "a", "c", "b", "a"])).tolist() == [3, 4, 5]
    assert last_of_equals(PackedNames()).tolist() == []


def test_prefixes_follow_the_rule_for_names() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        roots = list({Path("/", *rng.choice(["a", "b", "c"], 3).tolist()) for _ in range(rng.integers(1, 4))})
        names = [sorted(set(rng.choice(["1", "2", "b/1", "c/b/1", "a/2"], 3).tolist())) for _ in roots]
        flat = [(root, name) for root, own in zip(roots, names, strict=True) for name in own]
        prefixes = prefixes_that_tell_apart(roots, list(map(PackedNames, names)))
        found = [prefix + name for prefix, own in zip(prefixes, names, strict=True) for name in own]
        assert found == unique_names([root for root, _ in flat], [name for _, name in flat])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_streams_from_a_list_of_tars(tmp_path: Path, workers: int) -> None:
    """What `diti train --data @tars.txt` sees: the images of each step, for each of two processes."""
    from diticli.distributed import Rank
    from diticli.training.batches import DataOrder, StreamFeed

    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", {f"{shard}-{i}.png": picture(10 * shard + i) for i in range(4)})
    (tmp_path / "tars.txt").write_text(f"{tmp_path}/2.tar\n{tmp_path}/{{0,1}}.tar\n")
    source = open_images(f"@{tmp_path}/tars.txt", 8)
    order = DataOrder(len(source), 4, seed=0)
    feed = StreamFeed(source, workers, tmp_path / "skipped.txt")
    found = [
        [
            batch[:, 0, 0, 0].tolist()
            for batch in feed.batches(order, 0, 3, Rank(index=rank, count=2), torch.device("cpu"))
        ]
        for rank in (0, 1)
    ]
    reds_of = [20, 21, 22, 23, 0, 1, 2, 3, 10, 11, 12, 13]
    for step in range(3):
        wanted = [reds_of[index] for index in order.batch(step).tolist()]
        assert found[0][step] + found[1][step] == wanted
