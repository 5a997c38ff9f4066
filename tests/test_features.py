"""Feature files: every format there and back, damage of every kind, kills at every stage."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from diticli.data.feature_formats import READERS, sidecar_path
from diticli.data.feature_writer import FeatureWriter
from diticli.data.features import FeatureMeta, read_features
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError

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


@pytest.mark.parametrize("suffix", READERS)
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "deep" / f"feats{suffix}"
    meta = write(path)
    features = read_features(path)
    np.testing.assert_array_equal(features.values, VALUES)
    assert features.values.dtype == np.float32
    assert features.meta == meta
    assert meta.files == tuple(FILES)
    assert meta.skipped == (Skipped("bad.png", "truncated"),)
    assert meta.created
    assert meta.version
    assert FeatureMeta.from_json(sidecar_path(path).read_text()) == meta
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, "feats.json"])


def test_npy_is_plain_and_mapped(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    plain = np.load(path, mmap_mode="r", allow_pickle=False)
    assert isinstance(plain, np.memmap)
    np.testing.assert_array_equal(plain, VALUES)
    assert isinstance(read_features(path).values, np.memmap)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_embedded_metadata_needs_no_sidecar(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"feats{suffix}"
    meta = write(path)
    sidecar_path(path).unlink()
    assert read_features(path).meta == meta


def test_other_formats_leave_the_sidecar_of_an_npy_alone(tmp_path: Path) -> None:
    npy = write(tmp_path / "feats.npy")
    write(tmp_path / "feats.npz", VALUES[:, :3] * 2, [f"b/{i}.png" for i in range(7)])
    assert read_features(tmp_path / "feats.npy").meta == npy


def test_npy_without_sidecar_is_foreign_but_fine(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", VALUES)
    features = read_features(tmp_path / "x.npy")
    assert features.meta is None
    np.testing.assert_array_equal(features.values, VALUES)


def test_parquet_layout_and_foreign_columns(tmp_path: Path) -> None:
    write(tmp_path / "feats.parquet")
    table = pq.read_table(tmp_path / "feats.parquet")
    assert table.column_names == ["file", "features"]
    assert table["file"].to_pylist() == FILES
    columns = {"file": FILES} | {f"z{i}": VALUES[:, i] for i in range(5)}
    import pyarrow as pa

    pq.write_table(pa.table(columns), tmp_path / "foreign.parquet")
    features = read_features(tmp_path / "foreign.parquet")
    np.testing.assert_array_equal(features.values, VALUES)


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    files = [os.fsdecode(b"\xff.png"), *FILES[1:]]
    for suffix in READERS:
        write(tmp_path / f"f{suffix}", files=files)
        meta = read_features(tmp_path / f"f{suffix}").meta
        assert meta is not None
        assert meta.files[0] == files[0]


@pytest.mark.parametrize("name", ["feats", "feats.csv", "feats.pt"])
def test_unknown_suffix_names_the_four(tmp_path: Path, name: str) -> None:
    for call in (lambda p: read_features(p), lambda p: FeatureWriter(p, identity="x")):
        with pytest.raises(FeatureFileError) as caught:
            call(tmp_path / name)
        assert all(suffix in caught.value.remedy for suffix in READERS)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FeatureFileError, match="no feature file") as caught:
        read_features(tmp_path / "no.npy")
    assert "diti encode" in caught.value.remedy


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "header"])
def test_damaged_files(tmp_path: Path, suffix: str, damage: str) -> None:
    path = tmp_path / f"feats{suffix}"
    write(path)
    good = path.read_bytes()
    noise = np.random.default_rng(1).bytes(300)
    path.write_bytes({"empty": b"", "noise": noise, "cut": good[:-9], "header": good[:20]}[damage])
    with pytest.raises(FeatureFileError) as caught:
        read_features(path)
    assert path.name in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize("suffix", READERS)
def test_cut_anywhere_is_an_error_never_a_crash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"feats{suffix}"
    write(path)
    good = path.read_bytes()
    for size in range(0, len(good), max(1, len(good) // 25)):
        path.write_bytes(good[:size])
        with pytest.raises(FeatureFileError):
            read_features(path)


@pytest.mark.parametrize(
    "values",
    [
        VALUES.astype(np.float64),
        VALUES[0],
        VALUES[:0],
        VALUES.astype(">f4"),
        np.zeros((3, 2), dtype="U3"),
        VALUES[None],
    ],
)
def test_wrong_dtype_or_shape(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(FeatureFileError):
        read_features(tmp_path / "x.npy")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(FeatureFileError):
        read_features(tmp_path / "x.npy")


def test_non_finite_rows_are_counted(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[1, 2], values[4, 0], values[4, 1] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(FeatureFileError, match="2 of 7 rows"):
        read_features(tmp_path / "x.npy")


def test_metadata_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    np.save(path, VALUES[:4])
    with pytest.raises(FeatureFileError, match="4 rows, but its metadata names 7"):
        read_features(path)
    np.save(path, VALUES[:, :4])
    with pytest.raises(FeatureFileError, match="4 columns, but its chunks end at 5"):
        read_features(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": "abc"}', '{"files": [1]}', "[" * 100_000])
def test_damaged_sidecar(tmp_path: Path, text: str) -> None:
    path = tmp_path / "feats.npy"
    write(path)
    sidecar_path(path).write_text(text)
    with pytest.raises(FeatureFileError, match=r"feats\.json"):
        read_features(path)


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
from diticli.data.feature_writer import FeatureWriter
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


def test_sidecar_is_readable_json(tmp_path: Path) -> None:
    write(tmp_path / "feats.npy")
    data = json.loads((tmp_path / "feats.json").read_text())
    assert data["files"] == FILES
    assert data["skipped"] == [{"file": "bad.png", "reason": "truncated"}]
    assert data["chunk_ends"] == [2, 5]
