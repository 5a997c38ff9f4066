"""The feature writer: resumed, killed, interrupted, out of space."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import pytest

import diticli.features.writer as writer_module
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.features.read import FeatureMeta, read_features
from diticli.features.writer import FeatureWriter

META = FeatureMeta(
    files=(),
    chunk_ends=(2, 5),
    timestep_ends=(500, 1000),
    model="runs/x",
    model_hash="abc",
    preprocessing={"resolution": 8},
)
VALUES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
FILES = [f"a/{i}.png" for i in range(7)]


def write(path: Path, values: np.ndarray = VALUES, files: list[str] = FILES) -> FeatureMeta:
    with FeatureWriter(path, identity="id") as writer:
        writer.append(values[:3], files[:3], [Skipped("bad.png", "truncated")])
        writer.append(values[3:], files[3:])
        return writer.finish(META)


def test_resume_cuts_off_what_the_journal_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    writer = FeatureWriter(path, identity="id")
    writer.append(VALUES[:2], FILES[:2], [Skipped("bad.png", "r")])
    writer.checkpoint()
    writer.append(VALUES[5:], FILES[5:])  # never counted
    writer.close()
    with FeatureWriter(path, identity="id") as writer:
        assert (writer.resumed, writer.dim, writer.files) == (3, 5, FILES[:2])
        writer.append(VALUES[2:], FILES[2:])
        meta = writer.finish(META)
    assert meta.skipped == (Skipped("bad.png", "r"),)
    np.testing.assert_array_equal(read_features(path).values, VALUES)


def test_resume_when_only_skipped_inputs_were_seen(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    with FeatureWriter(path, identity="id") as writer:
        writer.append(np.empty((0, 0), np.float32), [], [Skipped("bad.png", "r")])
    with FeatureWriter(path, identity="id") as writer:
        assert writer.resumed == 1
        writer.append(VALUES, FILES)
        writer.finish(META)
    np.testing.assert_array_equal(read_features(path).values, VALUES)


def test_another_identity_or_a_damaged_journal_starts_again(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    journal = tmp_path / "feats.npy.partial.json"
    with FeatureWriter(path, identity="one") as writer:
        assert not writer.discarded
        writer.append(VALUES, FILES)
    with FeatureWriter(path, identity="two") as writer:
        assert (writer.resumed, writer.discarded) == (0, True)
        writer.append(VALUES, FILES)
    journal.write_text(journal.read_text()[:-5])
    with FeatureWriter(path, identity="two") as writer:
        assert (writer.resumed, writer.discarded) == (0, True)
        writer.append(VALUES, FILES)
    (tmp_path / "feats.npy.partial").write_bytes(b"short")
    with FeatureWriter(path, identity="two") as writer:
        assert writer.resumed == 0
    with FeatureWriter(path, identity="two", resume=False) as writer:
        assert (writer.resumed, writer.discarded) == (0, False)


def test_existing_output_stays_until_finish(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    before = path.read_bytes()
    with FeatureWriter(path, identity="id") as writer:
        writer.append(VALUES * 2, FILES)
        writer.checkpoint()
        assert path.read_bytes() == before
        writer.finish(META)
    np.testing.assert_array_equal(read_features(path).values, VALUES * 2)


def test_no_moment_shows_rows_beside_names_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    real = os.replace

    def stop_after_rows(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target) == path:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop_after_rows)
    with pytest.raises(KeyboardInterrupt):
        write(path, VALUES + 1, [f"new{i}" for i in range(7)])
    features = read_features(path)
    np.testing.assert_array_equal(features.values, VALUES + 1)
    assert features.meta is None


def test_sigkill_at_any_moment_resumes(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    script = """
import os, signal, sys, numpy as np
from pathlib import Path
from diticli.features.writer import FeatureWriter
writer = FeatureWriter(Path(sys.argv[1]), identity="id")
for i in range(writer.consumed, 100):
    writer.append(np.full((1, 6), i, np.float32), [str(i)])
    if i == 40: writer.checkpoint()
    if i == 61: os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with FeatureWriter(path, identity="id") as writer:
        assert writer.consumed == 41
        for i in range(41, 100):
            writer.append(np.full((1, 6), i, np.float32), [str(i)])
        writer.finish(FeatureMeta(files=()))
    features = read_features(path)
    np.testing.assert_array_equal(features.values[:, 3], np.arange(100))
    assert features.meta is not None
    assert features.meta.files == tuple(str(i) for i in range(100))


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    with (
        FeatureWriter(path, identity="id"),
        pytest.raises(FeatureFileError, match="Another process is writing"),
    ):
        FeatureWriter(path, identity="id")


def test_a_writer_that_waited_for_the_lock_of_a_finished_file_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the partial file and locking it, the other process finishes: what was opened is its output."""
    path = tmp_path / "feats.npy"
    first = FeatureWriter(path, identity="id")
    first.append(VALUES, FILES)
    real, calls = writer_module.open_in_place, 0

    def finish_first(partial: Path) -> IO[bytes]:
        nonlocal calls
        calls += 1
        file = real(partial)
        if calls == 1:
            first.finish(META)
        return file

    monkeypatch.setattr(writer_module, "open_in_place", finish_first)
    with FeatureWriter(path, identity="other") as second:
        np.testing.assert_array_equal(read_features(path).values, VALUES)
        assert (calls, second.resumed, second.discarded) == (2, 0, False)
        second.append(VALUES + 1, FILES)
        second.finish(META)
    np.testing.assert_array_equal(read_features(path).values, VALUES + 1)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_writer_that_begins_while_another_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """The one that ends takes away only its own files."""
    path = (tmp_path / "feats").with_suffix(suffix)
    begun: list[FeatureWriter] = []
    real = writer_module.write_bytes

    def begin_another(target: Path, data: bytes) -> None:
        real(target, data)
        if target == path.with_suffix(".json") and not begun:  # the rows are in place
            with suppress(FeatureFileError):
                begun.append(FeatureWriter(path, identity="id"))

    monkeypatch.setattr(writer_module, "write_bytes", begin_another)
    write(path)
    for second in begun:
        assert not second.discarded
        second.append(VALUES + 1, FILES)
        second.finish(META)
    assert bool(begun) == (suffix == ".npy")  # other formats keep their partial file, and its lock, to the end
    np.testing.assert_array_equal(read_features(path).values, VALUES + len(begun))
    assert not list(tmp_path.glob("*.partial*"))


def test_full_disk_keeps_what_was_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "feats.npy"
    with FeatureWriter(path, identity="id") as writer:
        writer.append(VALUES[:3], FILES[:3])
        writer.checkpoint()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def go_on() -> None:
        with FeatureWriter(path, identity="id") as writer:
            writer.append(VALUES[3:], FILES[3:])
            writer.checkpoint()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FeatureFileError, match="No space left") as caught:
            go_on()
    assert "Free some space" in caught.value.remedy
    with FeatureWriter(path, identity="id") as writer:
        assert writer.resumed == 3


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npy").mkdir()
    for path in (tmp_path / "file" / "feats.npy", tmp_path / "folder.npy"):
        with pytest.raises(FeatureFileError) as caught:
            FeatureWriter(path, identity="id")
        assert caught.value.remedy


def test_finish_without_rows(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "x.npy", identity="id") as writer, pytest.raises(FeatureFileError):
        writer.finish(META)
    assert not (tmp_path / "x.npy").exists()


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "x.npy", identity="id") as writer:
        writer.append(VALUES, FILES)
        writer.checkpoint()
        writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_append_checks_its_arguments(tmp_path: Path) -> None:
    with FeatureWriter(tmp_path / "x.npy", identity="id") as writer:
        with pytest.raises(ValueError, match="names"):
            writer.append(VALUES, FILES[:-1])
        writer.append(VALUES, FILES)
        with pytest.raises(ValueError, match="width 5"):
            writer.append(VALUES[:, :2], FILES)
