"""The partition that follows what the base loses."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch

from diticli.chunks import ChunkLayout
from diticli.config import RunConfig
from diticli.config_groups import ChunksConfig
from diticli.errors import CheckpointError, ChunkError, DataError
from diticli.models.base_files import load_base
from diticli.settings import build_config
from diticli.training.base_gap import read_gap
from diticli.training.run import train

TINY = (
    "data.source=faces:40",
    "data.resolution=16",
    "unet.channels=8,16",
    "unet.norm_groups=4",
    "encoder.widths=32,32",
    "chunks.count=4",
    "chunks.latent_dim=24",
    "chunks.partition=auto",
    "base.images=16",
    "base.batch_size=8",
    "features.images=16",
    "features.batch_size=8",
    "device=cpu",
    "precision=fp32",
    "sample_every=0",
)


class _Curve:
    """Everything is lost between t = 500 and t = 750, evenly."""

    def lost_between(self, t0, t1):
        return float(np.interp(t1, [500, 750], [0, 1]) - np.interp(t0, [500, 750], [0, 1]))


def test_dims_go_where_the_base_loses():
    chunks = ChunksConfig(count=8, latent_dim=28, partition="auto")
    assert np.diff((0, *chunks.layout(1000, _Curve()).ends)).tolist() == [1, 1, 1, 1, 11, 11, 1, 1]


def test_the_partition_is_unknown_before_the_base_is_measured():
    config = RunConfig(chunks=ChunksConfig(count=8, latent_dim=28, partition="auto"))
    assert config.measures_base
    with pytest.raises(ChunkError, match="measured"):
        config.layout()
    provisional = config.provisional_layout()
    assert (provisional.chunks, provisional.latent_dim) == (8, 28)
    with pytest.raises(ChunkError, match="9 chunks do not fit 8"):
        RunConfig(chunks=ChunksConfig(count=9, latent_dim=8, partition="auto"))


def test_a_run_measures_its_base_once_and_keeps_to_it(tmp_path):
    config = build_config("faces32", assignments=TINY)
    model = train(config, tmp_path / "run")
    gap = read_gap(tmp_path / "run" / "gap.json", 1000)
    saved = json.loads((model / "model_index.json").read_text())["chunk_layout"]
    assert ChunkLayout.from_dict(saved) == config.chunks.layout(1000, gap)
    assert gap.total_timesteps == 1000
    assert 0 < gap.lost_between(0, 1000) < 4
    torch.manual_seed(1)
    again = train(config, tmp_path / "again")
    assert (tmp_path / "again" / "gap.json").read_text() == (tmp_path / "run" / "gap.json").read_text()
    assert json.loads((again / "model_index.json").read_text())["chunk_layout"] == saved


CURVE = {
    "timesteps": [10, 500],
    "error": [0.1, 0.9],
    "stderr": [0.01, math.nan],
    "clamped": [0.1, 0.8],
    "clamped_stderr": [0.01, math.nan],
    "images": 1,
    "total_timesteps": 1000,
    "mean_image": None,
}


@pytest.mark.parametrize(
    "facts",
    [
        {"timesteps": 3},
        {"timesteps": [10, 10]},
        {"timesteps": [500, 10]},
        {"timesteps": [-1, 10]},
        {"timesteps": [10, 1000]},
        {"timesteps": [10, 10**40]},
        {"timesteps": [10, 500.5]},
        {"timesteps": []},
        {"error": [0.1]},
        {"error": [0.1, -0.9]},
        {"error": [0.1, math.nan]},
        {"error": [0.1, math.inf]},
        {"error": [0.1, "x" * 10**6]},
        {"clamped": [0.1, None]},
        {"stderr": 0.1},
        {"images": 0},
        {"images": True},
        {"total_timesteps": 500},
        {"total_timesteps": "1000"},
        {"mean_image": math.nan},
        {"mean_image": -1.0},
        {"another": 1},
    ],
    ids=repr,
)
def test_a_curve_that_cannot_be_is_named(tmp_path, facts):
    path = tmp_path / "gap.json"
    path.write_text(json.dumps(CURVE))
    assert read_gap(path, 1000).timesteps == (10, 500), "standard errors of one image are not known"
    path.write_text(json.dumps(CURVE | facts))
    with pytest.raises(CheckpointError, match=r"gap\.json is missing or damaged") as caught:
        read_gap(path, 1000)
    assert caught.value.remedy
    assert len(str(caught.value)) < 800


def test_a_named_pipe_is_no_curve(tmp_path):
    os.mkfifo(tmp_path / "gap.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_gap(tmp_path / "gap.json", 1000)


def test_a_run_does_not_go_on_with_another_base(tmp_path):
    config = build_config("faces32", assignments=TINY)
    train(config, tmp_path / "first")
    base = tmp_path / "first" / "base"
    given = build_config("faces32", assignments=(*TINY, f"base_model={base}"))
    train(given, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)  # without a step nothing would be held
    unet, _ = load_base(str(base))
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.5)
    unet.save_pretrained(base / "unet")
    with pytest.raises(DataError, match=r"The base changed since .*run was started"):
        train(given, tmp_path / "run")
