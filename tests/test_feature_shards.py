"""Folders of feature shards: units that processes share, restarts, damage, and rows read where they are asked for."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_encode import FakeImages, Recorder, channel_means

from diticli.data.labels import LabelColumn
from diticli.distributed import Rank
from diticli.encoding.encode import EncodeResult, encode_images
from diticli.errors import ConfigError, DataError, FeatureFileError
from diticli.features.manifest import MANIFEST, read_manifest
from diticli.features.read import FeatureMeta, read_features
from diticli.features.rows import OPEN_SHARDS, ShardedItems, ShardedRows
from diticli.features.shard_writer import RECORDS
from diticli.probing.probe import probe_features

META = FeatureMeta(files=(), chunk_ends=(1, 3), timestep_ends=(5, 9), model="m", model_hash="h")
BAD = {0, 5, 9, 10, 11, 21}  # of which 9, 10, 11 are a unit of their own


def run(folder: Path, source: Any = None, **options: Any) -> EncodeResult:
    encode = options.pop("encode", channel_means)
    defaults = {"meta": META, "shard_size": 3, "batch_size": 2, "workers": 0}
    return encode_images(encode, FakeImages(23, BAD) if source is None else source, folder, **defaults | options)


def check(folder: Path, source: FakeImages | None = None) -> None:
    """All readable images, in order, with their names and the reasons for the others."""
    source = source or FakeImages(23, BAD)
    good = [i for i in range(source.count) if i not in source.bad]
    features = read_features(folder)
    np.testing.assert_array_equal(features.values, np.array(good)[:, None] + np.arange(3))
    assert features.meta is not None
    assert list(features.meta.files) == [f"{i:03d}.png" for i in good]
    assert [(s.file, s.reason) for s in features.meta.skipped] == [
        (f"{i:03d}.png", "truncated") for i in sorted(source.bad)
    ]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_shards_are_the_images_in_order(tmp_path: Path, suffix: str) -> None:
    folder, reporter = tmp_path / "a b/ä", Recorder()
    result = run(folder, suffix=suffix, reporter=reporter)
    check(folder)
    assert (result.complete, result.units, result.missing) == (True, 8, 0)
    assert (result.images, result.rows, len(result.skipped), result.dim) == (23, 17, 6, 3)
    assert (reporter.total, reporter.done) == (23, 23)
    assert "6 of 23" in reporter.warnings[0]
    assert len(reporter.warnings) == 1
    manifest = read_manifest(folder)
    assert [shard.images for shard in manifest.shards] == [3, 3, 3, 3, 3, 3, 3, 2]
    assert [shard.rows for shard in manifest.shards] == [2, 2, 3, 0, 3, 3, 3, 1]
    assert not list(folder.glob("*.partial*"))
    assert not (folder / f"000003{suffix}").exists()
    meta = read_features(folder).meta
    assert meta is not None
    assert (meta.model, meta.chunk_ends, meta.timestep_ends) == ("m", (1, 3), (5, 9))
    # Each shard is a feature file of its own.
    alone = read_features(folder / f"000001{suffix}")
    assert alone.meta is not None
    assert list(alone.meta.files) == ["003.png", "004.png"]
    assert "png" not in (folder / MANIFEST).read_text(), "names stay beside the shards"


def test_processes_share_the_units_and_the_last_one_merges(tmp_path: Path) -> None:
    results = {}
    for rank in (2, 0, 1):
        results[rank] = run(tmp_path, rank=Rank(index=rank, count=3))
        assert (tmp_path / MANIFEST).exists() == (rank == 1)
    assert [results[rank].complete for rank in (2, 0, 1)] == [False, False, True]
    assert [results[rank].missing for rank in (2, 0, 1)] == [6, 3, 0]
    assert sum(result.own for result in results.values()) == 23
    check(tmp_path)


def test_an_unfinished_folder_says_how_to_finish_it(tmp_path: Path) -> None:
    reporter = Recorder()
    run(tmp_path, rank=Rank(index=1, count=2), reporter=reporter)
    assert "4 of 8 units" in reporter.notes[0]
    with pytest.raises(FeatureFileError, match="is not finished") as caught:
        read_features(tmp_path)
    assert "diti encode" in caught.value.remedy
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureFileError, match="holds no features"):
        read_features(tmp_path / "empty")


def failing_after(calls: int) -> Any:
    def encode(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise OSError("unplugged")
        return channel_means(images)

    return encode


@pytest.mark.parametrize("world", [1, 2, 5, 20])
def test_a_restart_of_another_size_does_what_is_missing(tmp_path: Path, world: int) -> None:
    with pytest.raises(OSError, match="unplugged"):
        run(tmp_path, encode=failing_after(6), rank=Rank(index=0, count=2))
    run(tmp_path, rank=Rank(index=1, count=2))
    done = {int(path.stem) for path in (tmp_path / RECORDS).iterdir()}
    assert done == {0, 1, 2, 3, 4, 5, 7}
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    loaded, resumed = [], 0
    for rank in range(world):
        source = FakeImages(23, BAD)
        resumed += run(tmp_path, source, rank=Rank(index=rank, count=world)).resumed
        loaded += source.loaded
    # The unit that failed left its first batch behind.
    assert loaded == [20]
    assert resumed == 22
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    check(tmp_path)


def test_a_finished_folder_is_left_as_it_is(tmp_path: Path) -> None:
    run(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    source = FakeImages(23, BAD)
    result = run(tmp_path, source)
    assert (result.complete, result.resumed, source.loaded) == (True, 23, [])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("harm", [_flip, _cut, Path.unlink])
@pytest.mark.parametrize("name", ["000004.npy", "000004.json", "units/000004.json"])
def test_a_unit_that_was_harmed_is_refused_and_done_again(tmp_path: Path, harm: Any, name: str) -> None:
    run(tmp_path)
    harm(tmp_path / name)
    if not name.startswith("units"):
        with pytest.raises(FeatureFileError, match=f"{name}") as caught:
            check(tmp_path)
        assert caught.value.remedy
    source = FakeImages(23, BAD)
    run(tmp_path, source)
    assert source.loaded == [12, 13, 14]
    check(tmp_path)


def test_a_copied_folder_is_taken_by_its_checksums(tmp_path: Path) -> None:
    run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    source = FakeImages(23, BAD)
    assert run(tmp_path / "b", source).complete
    assert source.loaded == []
    check(tmp_path / "b")


@pytest.mark.parametrize(
    "change",
    [
        {"source": FakeImages(24, BAD)},
        {"shard_size": 4},
        {"suffix": ".parquet"},
        {"meta": FeatureMeta(files=(), model_hash="other")},
    ],
)
def test_units_of_something_else_are_never_overwritten_unasked(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(FeatureFileError, match="another model") as caught:
        run(tmp_path, **change)
    assert "--no-resume" in caught.value.remedy
    check(tmp_path)
    run(tmp_path, **change, resume=False)
    check(tmp_path, change.get("source"))
    known = {shard.file for shard in read_manifest(tmp_path).shards}
    assert {p.name for p in tmp_path.iterdir() if p.suffix in (".npy", ".parquet")} <= known


def test_what_cannot_be_encoded(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"x")
    with pytest.raises(FeatureFileError, match=r"holds 'photo\.png'"):
        run(tmp_path)
    with pytest.raises(DataError, match="no images"):
        run(tmp_path / "a", FakeImages(0))
    with pytest.raises(FeatureFileError, match="no rows"):
        run(tmp_path / "b", FakeImages(4, {0, 1, 2, 3}))
    with pytest.raises(FeatureFileError, match="no rows"):
        run(tmp_path / "b", FakeImages(4, {0, 1, 2, 3}))
    for wrong in ({"suffix": ".npz"}, {"shard_size": 0}):
        with pytest.raises(FeatureFileError):
            run(tmp_path / "c", **wrong)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FeatureFileError, match="Cannot write"):
        run(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(FeatureFileError, match="Cannot write"):
            run(tmp_path / "a")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": None},
        {"shards": []},
        {"rows": 3},
        {"format": "other"},
        {"meta": 5},
        {"dim": "x"},
        {"file": "../000001.npy"},
        {"file": "/etc/passwd"},
        {"file": "000001.npz"},
        {"rows_": -1},
        {"sha256": "x"},
        {"bytes": 1.5},
    ],
)
def test_a_damaged_or_hostile_manifest(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path)
    data = json.loads((tmp_path / MANIFEST).read_text())
    for key, value in change.items():
        if key in data:
            data[key] = value
        else:
            data["shards"][1][key.rstrip("_")] = value
    (tmp_path / MANIFEST).write_text(json.dumps(data))
    with pytest.raises(FeatureFileError, match="is damaged") as caught:
        read_features(tmp_path)
    assert caught.value.remedy
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(FeatureFileError, match="is damaged"):
        read_features(tmp_path)
    run(tmp_path)
    check(tmp_path)


def test_rows_are_indexed_as_those_of_an_array() -> None:
    values = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    parts, opened = np.split(values, [3, 3, 10, 19]), []

    def load(shard: int) -> np.ndarray:
        opened.append(shard)
        return parts[shard]

    rows = ShardedRows([len(part) for part in parts], 4, load)
    assert (rows.shape, len(rows), rows.dtype) == ((20, 4), 20, np.float32)
    rng = np.random.default_rng(1)
    several = [slice(None), slice(2, 15), slice(None, None, -3), slice(5, 5), [], [3, 3, 19, 0, -1]]
    for index in (0, -1, np.int64(9), *several, rng.integers(-20, 20, 50), values[:, 0] > 0):
        np.testing.assert_array_equal(rows[index], values[index])
    np.testing.assert_array_equal(np.asarray(rows), values)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    np.testing.assert_array_equal(np.stack(list(rows)), values)
    opened.clear()
    rows[np.arange(19)]
    assert opened == [0, 2, 3], "ascending rows open each shard once"
    for wrong in (20, -21, [20], (slice(None), 0), [0.5], [[1]], [True]):
        with pytest.raises(IndexError):
            rows[wrong]


def test_names_are_a_sequence_of_one_shard_at_a_time() -> None:
    parts, opened = [["a"], [], ["b", "c"]], []

    def load(shard: int) -> list[str]:
        opened.append(shard)
        return parts[shard]

    names = ShardedItems([1, 0, 2], load)
    assert list(names) == ["a", "b", "c"]
    assert opened == [0, 2]
    assert (len(names), names[-1], names[np.int64(1)], names[:2], "b" in names) == (3, "c", "b", ("a", "b"), True)
    with pytest.raises(IndexError):
        names[3]
    assert len(ShardedItems([], load)) == 0


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_probes_of_a_folder_are_those_of_a_file(tmp_path: Path, suffix: str) -> None:
    count = 240
    run(tmp_path, FakeImages(count), shard_size=50, suffix=suffix, batch_size=50, encode=_noisy)
    features = read_features(tmp_path)
    truth = np.asarray(features.values)
    columns = {"high": LabelColumn("binary", (truth[:, 0] + truth[:, 1] > 1).astype(np.float32))}
    rows = np.arange(3, count)
    columns["high"] = LabelColumn("binary", columns["high"].values[rows])
    sharded = probe_features(features.values, columns, rows=rows, meta=features.meta)
    whole = probe_features(truth, columns, rows=rows, meta=features.meta)
    assert sharded.attributes == whole.attributes
    np.testing.assert_array_equal(sharded.directions.full.weights, whole.directions.full.weights)


def _noisy(images: torch.Tensor) -> torch.Tensor:
    return torch.sin(images.float().mean(dim=(2, 3)) * torch.tensor([12.9, 78.2, 37.7])) ** 2


def test_shards_open_are_few(tmp_path: Path) -> None:
    run(tmp_path)
    values = read_features(tmp_path).values
    assert isinstance(values, ShardedRows)
    np.asarray(values)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert sum(str(tmp_path) in line for line in maps) <= OPEN_SHARDS


def test_teams() -> None:
    assert Rank.from_environment({}) == Rank()
    assert Rank.from_environment({"RANK": "3"}) == Rank(), "a rank of no world is somebody else's"
    found = Rank.from_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert found == Rank(index=3, count=4, local=1)
    assert found.device("cpu") == "cpu"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.device_count", lambda: 2)
        assert [found.device(name) for name in (None, "auto", "cuda", "cuda:0", "cpu")] == [
            *["cuda:1"] * 3,
            *["cuda:0", "cpu"],
        ]
        assert Rank().device(None) is None
    for wrong in ({"RANK": "4", "WORLD_SIZE": "4"}, {"WORLD_SIZE": "x"}, {"RANK": "-1", "WORLD_SIZE": "2"}):
        with pytest.raises(ConfigError) as caught:
            Rank.from_environment(wrong)
        assert caught.value.remedy
