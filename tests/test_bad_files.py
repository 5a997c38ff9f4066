"""A folder of 1,000 files, most of them bad in one of a dozen ways: what can be read is right, the rest is listed."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from bad_folder import KINDS, plant
from hostile_files import png_bytes
from tiny_models import SIZE

from diticli.data.images import load_images, open_images
from diticli.distributed import Rank
from diticli.encoding.encode import encode_with
from diticli.errors import DataError
from diticli.features.read import read_features
from diticli.progress import SilentReporter
from diticli.training.batches import DataOrder, StreamFeed

COUNT = 1000
CPU = torch.device("cpu")
# Pillow warns of large pictures and damaged metadata; what matters is in the list.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The folder, and what shall become of each file, by name."""
    folder = tmp_path_factory.mktemp("photos with spaces and ünicode")
    items = plant(folder, COUNT, SIZE)
    assert {item.kind for item in items} == set(KINDS)
    return folder, {item.name: item for item in items}


@pytest.fixture(scope="module")
def source(planted):
    return open_images(str(planted[0]), SIZE)


class Warnings(SilentReporter):
    def __init__(self):
        self.seen = []

    def warn(self, message):
        self.seen.append(message)


def assert_listed(skipped, items):
    """Every unreadable file once, each with its own reason, and nothing else."""
    assert sorted(item.file for item in skipped) == [name for name, item in items.items() if item.pixels is None]
    for item in skipped:
        assert re.search(items[item.file].reason, item.reason), item
        assert "\n" not in item.reason


def peak_memory():
    """Megabytes, the most since the last call of `forget_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", text)[1]) / 1024


def forget_peak():
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this kernel does not reset the peak of a process's memory")
    return peak_memory()


def test_all_files_are_found_once_in_spite_of_the_loops(planted, source):
    assert [source.file_name(i) for i in range(len(source))] == list(planted[1])
    assert len(source) == COUNT


def test_what_can_be_read_has_the_right_pixels_and_the_rest_is_listed(planted, source, tmp_path):
    _, items = planted
    listed = tmp_path / "skipped.txt"
    loaded = load_images(source, workers=4, skipped_list=listed, max_unreadable=0.5)
    assert_listed(loaded.skipped, items)
    for pixels, index in zip(loaded.images, loaded.indices.tolist(), strict=True):
        item = items[source.file_name(index)]
        # To one step: turning a picture upright and making it small may be done in either order;
        # so may making it small and rounding 16 bits to 8.
        difference = np.abs(pixels.astype(int) - item.pixels)
        assert difference.max() <= (1 if item.kind in ("rotated", "sixteen bit") else 0), item.name
    lines = [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines()]
    assert [tuple(line) for line in lines] == [(item.file, item.reason) for item in loaded.skipped]
    read = Counter(items[source.file_name(index)].kind for index in loaded.indices.tolist())
    for kind in ("palette", "cmyk", "sixteen bit", "animated", "rotated", "huge", "broken metadata"):
        assert read[kind] == sum(item.kind == kind for item in items.values()), kind


def test_features_of_a_bad_folder(planted, source, make_pipeline, tmp_path):
    _, items = planted
    pipeline, reporter = make_pipeline(), Warnings()
    result = encode_with(pipeline, source, tmp_path / "feats.npy", batch_size=64, workers=4, reporter=reporter)
    features = read_features(tmp_path / "feats.npy")
    readable = {name: item for name, item in items.items() if item.pixels is not None}
    assert list(features.meta.files) == list(readable)
    assert_listed(features.meta.skipped, items)
    assert result.skipped == features.meta.skipped
    assert result.rows == len(readable) == COUNT - len(result.skipped)
    stated = json.loads((tmp_path / "feats.json").read_text())
    assert all(item["reason"] for item in stated["skipped"])
    assert any(f"{len(result.skipped)} of 1,000 images cannot be read" in text for text in reporter.seen)
    # What each row is of, by its pixels as Pillow alone reads them.
    exact = [row for row, item in enumerate(readable.values()) if item.kind != "rotated"]
    pixels_BHWC = np.stack([item.pixels for item in readable.values()])[exact]
    expected = pipeline.encode_uint8(torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).contiguous())
    # Batches may be encoded in half precision; other pictures differ by ten times as much.
    np.testing.assert_allclose(features.values[exact], expected.numpy(), atol=0.05 * float(expected.std()))


def test_memory_is_that_of_the_pictures_not_of_what_they_claim(source):
    """The bombs claim 3.6 gigapixels each; the largest legal picture, 4096 x 4096, needs 64 MB as RGB."""
    before = forget_peak()
    load_images(source, workers=4, max_unreadable=0.5)
    assert peak_memory() - before < 600


def test_too_many_unreadable_images_stop_the_reader_with_the_list(source, tmp_path):
    listed = tmp_path / "skipped.txt"
    with pytest.raises(DataError, match=r"of 1,000 images cannot be read, more than 5%") as caught:
        load_images(source, skipped_list=listed)
    assert str(listed) in caught.value.message
    assert caught.value.remedy
    assert len(listed.read_text(encoding="utf-8").splitlines()) > 300


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_a_bad_folder_stops_with_the_list(source, tmp_path, workers):
    """A stream learns of bad files as it goes: past 5 % of all images it stops."""
    feed = StreamFeed(source, workers, tmp_path / "skipped.txt")
    batches = feed.batches(DataOrder(len(source), 20, seed=0), 0, 50, Rank(), CPU)
    assert next(batches).shape == (20, 3, SIZE, SIZE)
    with pytest.raises(DataError, match=r"of 1,000 images cannot be read, more than 5%"):
        list(batches)
    lines = (tmp_path / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len({line.split("\t")[0] for line in lines})
    assert 50 < len(lines) < 80


def test_training_goes_on_past_a_few_bad_files(tmp_path):
    """Each is replaced by the next readable one and listed once, however often it comes up."""
    folder = tmp_path / "mild"
    folder.mkdir()
    for number in range(80):
        data = png_bytes((number, 7, 7), (SIZE, SIZE)) if number not in (10, 11, 79) else b"bad"
        (folder / f"{number:02d}.png").write_bytes(data)
    source = open_images(str(folder), SIZE)
    feed, order = StreamFeed(source, 0, tmp_path / "skipped.txt"), DataOrder(80, 20, seed=0)
    stand_in = {10: 12, 11: 12, 79: 0}
    for step, images in enumerate(feed.batches(order, 0, 12, Rank(), CPU)):
        wanted = [stand_in.get(index, index) for index in order.batch(step).tolist()]
        assert images[:, 0, 0, 0].tolist() == wanted
    lines = (tmp_path / "skipped.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == [f"{name}.png\tnot an image" for name in ("10", "11", "79")]
    assert feed.first(12)[-2:, 0, 0, 0].tolist() == [12, 12]
