"""Counts of a stranger's config are bounded before anything is built from them."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hostile_files import edit_json

from diticli.errors import ConfigError, ModelError
from diticli.models.base_files import load_base
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import check_base_config, check_scheduler
from diticli.models.model_files import read_model
from diticli.models.pipeline import DiTiPipeline
from diticli.models.shift_decoder import ShiftDecoder

HUGE = 10**9
UNET = {
    "sample_size": HUGE,
    "block_out_channels": [HUGE, HUGE],
    "layers_per_block": HUGE,
    "norm_num_groups": HUGE,
    "attn_norm_num_groups": -1,
    "attention_head_dim": True,
    "time_embedding_dim": HUGE,
    "num_train_timesteps": HUGE,
    "mid_block_scale_factor": float("nan"),
    "freq_shift": "much",
    "dropout": -1.0,
}
LEVELS = {
    "block_out_channels": [32] * 10_000,
    "down_block_types": ["DownBlock2D"] * 10_000,
    "up_block_types": ["UpBlock2D"] * 10_000,
}
ENCODER = {
    "sample_size": 131_072,
    "in_channels": HUGE,
    "widths": [32] * 10_000,
    "latent_dim": HUGE,
    "attention_size": HUGE,
    "attention_heads": 0,
    "norm_num_groups": 2.5,
}
SCHEDULER = {
    "num_train_timesteps": HUGE,
    "beta_start": "0.1",
    "beta_end": float("inf"),
    "trained_betas": 3,
}
GOOD_ENCODER = {
    "sample_size": 16,
    "in_channels": 3,
    "widths": (32, 32),
    "latent_dim": 8,
    "attention_size": 8,
    "attention_heads": 4,
    "norm_num_groups": 32,
}


@pytest.fixture(scope="module")
def saved(make_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path, no_network):
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.mark.parametrize("changes", [*({k: v} for k, v in UNET.items()), LEVELS], ids=[*UNET, "levels"])
def test_counts_of_a_base_are_bounded(changes):
    with pytest.raises(ModelError, match=next(iter(changes))) as caught:
        check_base_config(changes)
    assert len(str(caught.value)) < 500
    with torch.device("meta"), pytest.raises(ModelError, match=next(iter(changes))):
        ShiftDecoder(changes, 8)


@pytest.mark.parametrize("key", ENCODER)
def test_counts_of_an_encoder_are_bounded(key):
    with torch.device("meta"):
        assert SemanticEncoder(**GOOD_ENCODER)
        with pytest.raises(ConfigError, match=f"cannot be built: {key}") as caught:
            SemanticEncoder(**GOOD_ENCODER | {key: ENCODER[key]})
    assert caught.value.remedy
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("key", SCHEDULER)
def test_numbers_of_a_schedule_are_bounded(key):
    config = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    check_scheduler(config, "here")
    with pytest.raises(ModelError, match=key):
        check_scheduler(config | {key: SCHEDULER[key]}, "here")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet/config.json", {"layers_per_block": HUGE}, "layers_per_block"),
        ("encoder/config.json", {"sample_size": 131_072}, "sample_size"),
        ("shift_decoder/config.json", {"latent_dim": HUGE}, "latent_dim"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": HUGE}, "num_train_timesteps"),
        ("model_index.json", {"chunk_layout": {"timestep_ends": [HUGE], "ends": [8]}}, "at most 100,000"),
    ],
)
def test_every_way_in_asks_for_the_bounds(model, part, changes, message):
    edit_json(model / part, **changes)
    for load in (read_model, DiTiPipeline.from_pretrained):
        with pytest.raises((ModelError, ConfigError), match=message):
            load(str(model))
    if part.startswith(("unet", "scheduler")):
        with pytest.raises(ModelError, match=message):
            load_base(str(model))


@pytest.mark.parametrize("part", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"])
def test_a_model_of_named_pipes_is_refused(model, part):
    (model / part).unlink()
    os.mkfifo(model / part)
    for load in (read_model, DiTiPipeline.from_pretrained, load_base):
        with pytest.raises(ModelError, match="not a regular file"):
            load(str(model))


def test_a_config_of_other_weights_costs_nothing(model):
    """The largest network within the bounds has more weights than any memory: its file tells before they are made."""
    edit_json(model / "encoder/config.json", widths=[16_384] * 4, latent_dim=1_000_000, attention_heads=1)
    with pytest.raises(ModelError):
        DiTiPipeline.from_pretrained(str(model))
    index = json.loads((model / "model_index.json").read_text())
    assert index["encoder"] == ["diticli", "SemanticEncoder"]
