"""A bad picture is skipped; a bad machine is tried again and then stops the run, and nothing is recorded."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from diticli.commands.failure import exit_status
from diticli.data import decode, machine
from diticli.data.images import UnreadableImageError, decode_image, load_images, open_images
from diticli.data.machine import is_of_machine, patiently
from diticli.distributed import Rank
from diticli.encoding.encode import encode_images
from diticli.errors import MachineError
from diticli.training.batches import DataOrder, StreamFeed

FAULTS = {
    "memory": MemoryError(),
    "descriptors": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    "disk": OSError(errno.EIO, os.strerror(errno.EIO)),
    "network": OSError(errno.ESTALE, os.strerror(errno.ESTALE)),
}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PAUSES", (0.0, 0.0))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(40):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"{index:02d}.png")
    return folder


def failing(monkeypatch: pytest.MonkeyPatch, fault: BaseException, *, name: str, times: int) -> None:
    """Let the first `times` reads of a file fail in the decoder."""
    real, left = ImageFile.ImageFile.load, [times]

    def load(image: ImageFile.ImageFile) -> Any:
        if left[0] and getattr(image.fp, "name", "").endswith(name):
            left[0] -= 1
            raise fault
        return real(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_machine_that_recovers_costs_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    failing(monkeypatch, FAULTS[fault], name="07.png", times=2)
    loaded = load_images(open_images(str(photos), 8), workers=0)
    assert loaded.skipped == ()
    assert loaded.images[:, 0, 0, 0].tolist() == list(range(40))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_machine_that_does_not_stops_loading(photos: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    failing(monkeypatch, FAULTS[fault], name="07.png", times=99)
    with pytest.raises(MachineError, match=r"07\.png.*none is skipped") as caught:
        load_images(open_images(str(photos), 8), workers=2, skipped_list=photos / "skipped.txt")
    assert "run the same command again" in caught.value.remedy
    assert exit_status(caught.value) == 74
    assert not (photos / "skipped.txt").exists()


@pytest.mark.parametrize("fault", FAULTS)
def test_encoding_stops_and_goes_on_without_a_hole(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def reds(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0].float()

    out, options = tmp_path / "feats.npy", {"batch_size": 4, "workers": 0}
    with monkeypatch.context() as patch:
        failing(patch, FAULTS[fault], name="17.png", times=99)
        with pytest.raises(MachineError):
            encode_images(reds, open_images(str(photos), 8), out, **options)
    assert not out.exists()
    result = encode_images(reds, open_images(str(photos), 8), out, **options)
    assert (result.rows, len(result.skipped)) == (40, 0)
    assert np.load(out)[:, 0].tolist() == list(range(40))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_training_stops_with_the_reason(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, workers: int
) -> None:
    failing(monkeypatch, FAULTS[fault], name="17.png", times=99)
    feed = StreamFeed(open_images(str(photos), 8), workers, tmp_path / "skipped.txt")
    batches = feed.batches(DataOrder(40, 8, 0), 0, 5, Rank(), torch.device("cpu"))
    with pytest.raises(MachineError, match=r"17\.png") as caught:
        list(batches)
    assert caught.value.remedy
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "skipped.txt").exists()


def test_opening_and_peeking_are_no_different(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photos / "00.png"

    def no_more(*_: Any) -> io.BytesIO:
        raise FAULTS["descriptors"]

    monkeypatch.setattr(decode, "open", no_more, raising=False)
    for read in (lambda: decode_image(path, 8), lambda: decode.is_image(path), lambda: decode.picture_size(path)):
        with pytest.raises(MachineError, match="too many open files"):
            read()


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_the_system_says_of_one_file_is_skipped(
    photos: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert not is_of_machine(OSError(number, "x"))
    failing(monkeypatch, OSError(number, os.strerror(number)), name="00.png", times=1)
    with pytest.raises(UnreadableImageError, match=os.strerror(number).lower()):
        decode_image(photos / "00.png", 8)


def test_attempts_are_counted() -> None:
    calls = []

    def read() -> None:
        calls.append(1)
        raise FAULTS["disk"]

    with pytest.raises(MachineError, match="Cannot read it: input/output error"):
        patiently(read, "it")
    assert len(calls) == 1 + len(machine.PAUSES)


def test_an_lmdb_that_cannot_be_opened_now_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "set.lmdb"
    path.write_bytes(b"x")

    def no_more(name: str, **_: Any) -> None:
        raise lmdb.Error(f"{name}: {os.strerror(errno.EMFILE)}")

    monkeypatch.setattr(lmdb, "open", no_more)
    with pytest.raises(MachineError, match="too many open files"):
        open_images(str(path), 8)
