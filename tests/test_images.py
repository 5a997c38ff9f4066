"""Where images come from, and reading many of them: in order, bounded, without hanging."""

import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from diticli.data.images import (
    FaceImages,
    FolderImages,
    UnreadableImageError,
    iter_decoded,
    load_images,
    open_images,
)
from diticli.errors import DataError


def save(path, size=(48, 48), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (220, 30, 30)).save(path, **options)
    return path


class Recorder:
    """A reporter that remembers its calls."""

    def __init__(self) -> None:
        self.total, self.done, self.finished, self.warnings = 0, 0, False, []

    def start(self, title, total, unit="images"):
        self.total = total

    def advance(self, amount=1, **fields):
        self.done += amount

    def finish(self):
        self.finished = True

    def note(self, message):
        pass

    def warn(self, message):
        self.warnings.append(message)


def test_a_folder_is_named_relative_to_its_root(tmp_path):
    save(tmp_path / "b" / "2.png")
    save(tmp_path / "1.jpg")
    source = open_images(str(tmp_path), 16)
    assert [source.file_name(i) for i in range(len(source))] == ["1.jpg", "b/2.png"]
    assert source.resolution == 16
    assert source.load(1).shape == (16, 16, 3)


def test_several_roots_and_files_are_concatenated(tmp_path):
    one, two = save(tmp_path / "x" / "1.png"), save(tmp_path / "y" / "2.png")
    source = open_images([str(tmp_path / "x"), str(two), str(one)], 8)
    assert [source.file_name(i) for i in range(len(source))] == ["1.png", "2.png"]


def test_equal_names_of_several_roots_get_their_folder_in_front(tmp_path):
    for root in ("x", "y"):
        save(tmp_path / root / "1.png")
    source = open_images([str(tmp_path / "x"), str(tmp_path / "y" / "1.png")], 8)
    assert [source.file_name(i) for i in range(2)] == ["x/1.png", "y/1.png"]
    for root in ("p", "q"):
        save(tmp_path / root / "train" / "1.png")
    source = open_images([str(tmp_path / "p" / "train"), str(tmp_path / "q" / "train")], 8)
    assert [source.file_name(i) for i in range(2)] == ["p/train/1.png", "q/train/1.png"]


def test_an_image_without_suffix_may_be_named(tmp_path):
    path = save(tmp_path / "picture", format="PNG")
    assert len(open_images(str(path), 8)) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "absent", "does not exist"),
        (lambda p: (p / "empty").mkdir() or p / "empty", "No images in"),
        (lambda p: (p / "notes.txt").write_text("hello") and p / "notes.txt", "is not an image"),
    ],
)
def test_sources_that_are_none(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as caught:
        open_images([str(make(tmp_path))], 8)
    assert caught.value.remedy


def test_faces_by_name():
    source = open_images("faces", 16, faces_count=12, faces_seed=5)
    assert len(source) == 12
    assert source.file_name(3) == "000003.png"
    np.testing.assert_array_equal(source.load(3), FaceImages(12, 5, 16).load(3))
    assert len(open_images(["faces:7"], 16)) == 7
    np.testing.assert_array_equal(open_images("faces:4:5", 16).load(3), source.load(3))
    assert FaceImages(12, 5, 16).factors().shape == (12, 13)


@pytest.mark.parametrize(
    "sources", ["faces:", "faces:x", "faces:0", "faces:1:2:3", ["faces", "faces"], [], ["faces", "."]]
)
def test_faces_misspelt_or_mixed(sources):
    with pytest.raises(DataError) as caught:
        open_images(sources, 16)
    assert caught.value.remedy


def test_fingerprints_notice_changes(tmp_path):
    path = save(tmp_path / "a.png")
    before = open_images(str(tmp_path), 8).fingerprint()
    assert open_images(str(tmp_path), 8).fingerprint() == before
    os.utime(path, ns=(1, 1))
    touched = open_images(str(tmp_path), 8).fingerprint()
    assert touched["sha256"] != before["sha256"]
    path.rename(tmp_path / "b.png")
    assert open_images(str(tmp_path), 8).fingerprint()["sha256"] != touched["sha256"]
    faces = FaceImages(3, 0, 16).fingerprint()
    assert faces == FaceImages(3, 0, 16).fingerprint()
    assert faces != FaceImages(3, 1, 16).fingerprint()


class Numbers:
    """A source whose image i is filled with i; says how many loads are under way."""

    name, resolution, threads = "numbers", 2, True
    channels, value_range = 3, None

    def __init__(self, count=200, fail_at=None, delay=0.0):
        self.count, self.fail_at, self.delay = count, fail_at, delay
        self.begun = 0
        self.lock = threading.Lock()

    def __len__(self):
        return self.count

    def file_name(self, index):
        return f"{index}.png"

    def fingerprint(self):
        return {}

    def load(self, index):
        with self.lock:
            self.begun += 1
        time.sleep(self.delay * (index % 3))
        if index == self.fail_at:
            raise RuntimeError("a bug")
        if index % 10 == 7:
            raise UnreadableImageError(f"{index}.png", "sevens")
        return np.full((2, 2, 3), index, np.uint8)


@pytest.mark.parametrize("workers", [None, 0, 1, 2, 5])
def test_decoding_keeps_the_order(workers):
    order = np.random.default_rng(0).permutation(100)
    seen = list(iter_decoded(Numbers(delay=0.0005), order, workers=workers))
    assert [index for index, _ in seen] == order.tolist()
    for index, decoded in seen:
        if index % 10 == 7:
            assert isinstance(decoded, UnreadableImageError)
        else:
            assert (decoded == index).all()


def test_decoding_stays_close_ahead_of_its_consumer():
    source = Numbers(count=1000)
    decoded = iter_decoded(source, range(1000), workers=2)
    for _ in range(10):
        next(decoded)
    time.sleep(0.05)
    assert source.begun <= 10 + 8
    decoded.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bug_in_a_worker_surfaces(workers):
    with pytest.raises(RuntimeError, match="a bug"):
        list(iter_decoded(Numbers(fail_at=20), range(100), workers=workers))


def test_interrupting_the_consumer_drops_what_has_not_begun():
    source = Numbers(count=1000, delay=0.01)

    def interrupted():
        for index, _ in iter_decoded(source, range(1000), workers=2):
            if index == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert source.begun < 20


def test_load_images_skips_counts_and_lists(tmp_path):
    recorder = Recorder()
    loaded = load_images(
        Numbers(count=50),
        reporter=recorder,
        workers=2,
        max_unreadable=0.1,
        skipped_list=tmp_path / "s" / "skipped.txt",
    )
    assert loaded.images.shape == (45, 2, 2, 3)
    assert loaded.images.dtype == np.uint8
    assert loaded.indices.tolist() == [i for i in range(50) if i % 10 != 7]
    np.testing.assert_array_equal(loaded.images[:, 0, 0, 0], loaded.indices)
    assert [item.file for item in loaded.skipped] == ["7.png", "17.png", "27.png", "37.png", "47.png"]
    assert (tmp_path / "s" / "skipped.txt").read_text().splitlines()[1] == "17.png\tsevens"
    assert (recorder.total, recorder.done, recorder.finished) == (50, 50, True)
    assert "5 of 50" in recorder.warnings[0]


def test_too_many_unreadable_images_stop_with_the_list(tmp_path):
    with pytest.raises(DataError, match=r"5 of 50 images cannot be read, more than 5% \(see .*skipped\.txt"):
        load_images(Numbers(count=50), skipped_list=tmp_path / "skipped.txt")
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 5
    with pytest.raises(DataError, match=r"7\.png: sevens; 17\.png"):
        load_images(Numbers(count=50))


def test_nothing_readable_is_an_error_whatever_is_tolerated(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 1 images"):
        load_images(open_images(str(tmp_path), 8), max_unreadable=1.0)
    with pytest.raises(DataError, match="no images"):
        load_images(Numbers(count=0))


def test_names_with_line_breaks_stay_on_one_line(tmp_path):
    for i in range(30):
        save(tmp_path / "d" / f"{i}.png")
    (tmp_path / "d" / "new\nline\t.png").write_bytes(b"")
    load_images(open_images(str(tmp_path / "d"), 8), skipped_list=tmp_path / "skipped.txt")
    assert (tmp_path / "skipped.txt").read_text() == "new\\nline\\t.png\tempty file (0 bytes)\n"


def test_a_real_folder_end_to_end(tmp_path):
    for i in range(25):
        save(tmp_path / f"{i:02d}.jpg", (40 + i, 50))
    (tmp_path / "05.jpg").write_bytes((tmp_path / "05.jpg").read_bytes()[:200])
    loaded = load_images(FolderImages([tmp_path], 16), workers=3)
    assert loaded.images.shape == (24, 16, 16, 3)
    assert 5 not in loaded.indices
    assert "truncated" in loaded.skipped[0].reason.lower()
