"""Feature files, folders and interrupted encodes as version 0.1 left them, before one driver wrote them all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from test_encode import FakeImages, channel_means
from test_feature_shards import BAD, check

from diticli.encoding.encode import encode_images
from diticli.features.manifest import FeatureMeta
from diticli.features.read import read_features

STORED = Path(__file__).parent / "data" / "encode_0.1"
META = FeatureMeta(
    files=(),
    chunk_ends=(1, 3),
    timestep_ends=(5, 9),
    model="m",
    model_hash="h",
    preprocessing={"resolution": 4, "crop": "center", "precision": "fp32"},
)


@pytest.mark.parametrize("name", ["whole.npy", "whole.parquet", "whole"])
def test_what_was_finished_reads(name: str) -> None:
    check(STORED / name)
    meta = read_features(STORED / name).meta
    assert meta is not None
    assert (meta.model_hash, meta.chunk_ends, meta.timestep_ends) == ("h", (1, 3), (5, 9))
    assert meta.preprocessing == META.preprocessing


@pytest.mark.parametrize(("name", "done"), [("half.npy", 8), ("half.parquet", 8), ("half", 16)])
def test_what_was_interrupted_goes_on(tmp_path: Path, name: str, done: int) -> None:
    shutil.copytree(STORED, tmp_path, dirs_exist_ok=True)
    source = FakeImages(23, BAD)
    shard_size = None if "." in name else 10
    result = encode_images(
        channel_means, source, tmp_path / name, meta=META, shard_size=shard_size, batch_size=2, workers=0
    )
    assert (result.resumed, result.own, result.rows, result.complete) == (done, 23, 17, True)
    assert source.loaded == list(range(done, 23))
    check(tmp_path / name)
    whole = STORED / name.replace("half", "whole")
    np.testing.assert_array_equal(np.asarray(read_features(tmp_path / name).values), read_features(whole).values)
    if shard_size is None:
        assert not list(tmp_path.glob(f"{name}.partial*"))
    else:
        for shard in whole.glob("*.npy"):
            assert (tmp_path / name / shard.name).read_bytes() == shard.read_bytes()


def test_a_finished_folder_is_not_encoded_again(tmp_path: Path) -> None:
    """Its records hold times of another machine, so that checksums decide."""
    shutil.copytree(STORED / "whole", tmp_path / "whole", copy_function=shutil.copyfile)
    source = FakeImages(23, BAD)
    result = encode_images(channel_means, source, tmp_path / "whole", meta=META, shard_size=10)
    assert (result.resumed, source.loaded) == (23, [])
