"""The gate of bases: every config that passes computes what diffusers' own forward computes, the others are refused."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel, UNet2DModel
from tiny_models import LATENT_DIM, SIZE, UNET_SHAPES, perturb, tiny_unet_config

from diticli.errors import ConfigError, ModelError
from diticli.models.gate import DEFAULTS, check_base_config, check_finite
from diticli.models.load import load_model
from diticli.models.model_files import read_model
from diticli.models.pipeline import DiTiPipeline, unet_from_diffusers
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.models.unet_forward import estimate_noise

SKIP_BLOCKS = {
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "block_out_channels": (32, 32),
}
# One setting at a time, on a level with attention and one without; with both ways of resampling and both of time.
ACCEPTED = {
    **UNET_SHAPES,
    "activation swish": {"act_fn": "swish"},
    "norm eps": {"norm_eps": 1e-2},
    "norm groups 1": {"norm_num_groups": 1},
    "norm groups 8": {"norm_num_groups": 8},
    "attention groups of the norm": {"attn_norm_num_groups": None},
    "attention groups of the norm, scale_shift": {"attn_norm_num_groups": None, "shift": "scale_shift"},
    "attention groups 2": {"attn_norm_num_groups": 2},
    "one head": {"attention_head_dim": None},
    "head as wide as a block": {"kinds": "AA", "attention_head_dim": 8},
    "heads that do not fill the block": {"attention_head_dim": 6},
    "cosine before sine": {"flip_sin_to_cos": True},
    "sine before cosine": {"flip_sin_to_cos": False},
    "frequency shift": {"freq_shift": 1},
    "time embedding width": {"time_embedding_dim": 24},
    "odd width": {"kinds": "DD", "channels": (9, 18), "norm_num_groups": 3, "add_attention": False},
    "padding 0": {"downsample_padding": 0},
    "mid-block scale": {"mid_block_scale_factor": 1.7},
    "no attention in the middle": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "centred input": {"center_input_sample": True},
    "two layers": {"layers_per_block": 2},
    "dropout": {"dropout": 0.5},
    "three levels": {"kinds": "DAR", "channels": (8, 16, 16)},
    "attention everywhere": {"kinds": "AA", "resampling": "resnet"},
    "resampling left out": {"kinds": "AA", "downsample_type": None, "upsample_type": None},
    "resampling conv down, resnet up": {"kinds": "AD", "downsample_type": "conv", "upsample_type": "resnet"},
    "resampling resnet down, conv up": {"kinds": "AD", "downsample_type": "resnet", "upsample_type": "conv"},
    "other blocks up than down": {"kinds": "DD", "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D")},
    "other blocks down than up": {"kinds": "DD", "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D")},
    "size as a pair": {"size": (SIZE, SIZE)},
    "no size": {"size": None},
    "number of timesteps": {"num_train_timesteps": 500},
    "all at once": {
        "kinds": "AR",
        "resampling": "resnet",
        "shift": "scale_shift",
        "norm_eps": 1e-3,
        "attn_norm_num_groups": 2,
        "mid_block_scale_factor": 2**0.5,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "center_input_sample": True,
        "time_embedding_dim": 12,
    },
}
REFUSED = {
    "fourier": ({"time_embedding_type": "fourier"}, "it uses a fourier time embedding"),
    "learned": ({"time_embedding_type": "learned", "num_train_timesteps": 1000}, "it uses a learned time embedding"),
    "classes": ({"num_class_embeds": 10}, "it is class-conditional"),
    "class timestep": ({"class_embed_type": "timestep"}, "it is class-conditional"),
    "class identity": ({"class_embed_type": "identity"}, "it is class-conditional"),
    "mish": ({"act_fn": "mish"}, "its activation is mish"),
    "gelu": ({"act_fn": "gelu"}, "its activation is gelu"),
    "relu": ({"act_fn": "relu"}, "its activation is relu"),
    "variance": ({"out_channels": 6}, r"it predicts a variance \(6 outputs for 3 inputs\)"),
    "two channels": ({"in_channels": 2, "out_channels": 2}, "it has 2 input and 2 output channels, images have 1 or 3"),
    "four channels": ({"in_channels": 4, "out_channels": 4}, "it has 4 input and 4 output channels"),
    "condition by channels": ({"in_channels": 6}, "it has 6 input and 3 output channels"),
    "skip blocks": (
        SKIP_BLOCKS,
        "its blocks are AttnSkipDownBlock2D, AttnSkipUpBlock2D, SkipDownBlock2D, SkipUpBlock2D",
    ),
    "resampling": ({"kinds": "AA", "downsample_type": "avg"}, "it resamples by 'avg' and 'conv'"),
    "not square": ({"size": (SIZE, 2 * SIZE)}, "its images are not square"),
}
# Diffusers builds none of these; a file can name them.
REFUSED_FILES = {
    "ada_group": ({"resnet_time_scale_shift": "ada_group"}, "take the time embedding by 'ada_group'"),
    "spatial": ({"resnet_time_scale_shift": "spatial"}, "take the time embedding by 'spatial'"),
    "padding 2": ({"downsample_padding": 2}, "its downsampling pads by 2"),
    "wide heads": ({"attention_head_dim": 64}, "its attention heads of 64 channels are wider than a block of 8"),
    "lengths": ({"down_block_types": ["DownBlock2D"]}, "it has 1 down blocks, 2 widths and 2 up blocks"),
    "wrong path": ({"down_block_types": ["UpBlock2D", "DownBlock2D"]}, "blocks UpBlock2D are on the wrong path"),
    "unknown setting": ({"sharpness": 2.0}, r"settings that are unknown here \(sharpness\)"),
    "another network": ({"_class_name": "UNet2DConditionModel"}, "it is a UNet2DConditionModel"),
    "wrong type": ({"block_out_channels": 8}, "block_out_channels is no list"),
}


def base(**arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return perturb(UNet2DModel(**tiny_unet_config(**arguments)), 0.05).requires_grad_(False).eval()


@pytest.mark.parametrize("variant", ACCEPTED)
def test_accepted_bases_predict_what_diffusers_predicts(variant):
    unet = base(**ACCEPTED[variant])
    check_base_config(unet.config)
    size = ACCEPTED[variant].get("size") if isinstance(ACCEPTED[variant].get("size"), int) else SIZE
    x, t = torch.randn(3, 3, size, size), torch.tensor([0, 417, 999])
    with torch.no_grad():
        truth = unet(x, t).sample
        torch.testing.assert_close(estimate_noise(unet_from_diffusers(unet), x, t), truth, rtol=1e-4, atol=1e-5)
    assert truth.abs().max() > 0.01


def test_every_setting_of_a_base_is_tried():
    tried = {key for config in ACCEPTED.values() for key in tiny_unet_config(**config)}
    refused = {key for config, _ in REFUSED.values() for key in config}
    assert {*DEFAULTS} <= tried | refused


@pytest.mark.parametrize("variant", REFUSED)
def test_refused_bases_are_refused_by_every_way_in(variant, make_pipeline, tmp_path, no_network):
    config, message = REFUSED[variant]
    unet = UNet2DModel(**tiny_unet_config(**config))
    refused = pytest.raises(ModelError, match=message)
    with refused as error:
        check_base_config(unet.config)
    assert "unconditional UNet2DModel" in error.value.remedy
    with refused:
        make_pipeline(unet=unet)
    with refused:
        UNet(**unet.config)
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path)
    unet.save_pretrained(tmp_path / "unet")
    for load in (read_model, DiTiPipeline.from_pretrained, lambda name: load_model(name, "cpu")):
        with refused:
            load(str(tmp_path))


@pytest.mark.parametrize("variant", REFUSED_FILES)
def test_refused_configs_are_refused_from_files(variant, make_pipeline, tmp_path, no_network):
    changes, message = REFUSED_FILES[variant]
    make_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for load in (check_config_of, read_model, DiTiPipeline.from_pretrained, lambda name: load_model(name, "cpu")):
        with pytest.raises(ModelError, match=message):
            load(str(tmp_path))


def check_config_of(folder):
    with open(f"{folder}/unet/config.json") as file:
        check_base_config(json.load(file))


def test_a_network_for_something_else_is_no_base(make_pipeline):
    unet = UNet2DConditionModel.__new__(UNet2DConditionModel)
    with pytest.raises(ModelError, match="it is a UNet2DConditionModel"):
        make_pipeline(unet=unet)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "v_prediction"}, "predicts v_prediction, the method needs noise"),
        ({"prediction_type": "sample"}, "predicts sample, the method needs noise"),
        ({"prediction_type": None, "predict_epsilon": False}, "predicts sample, the method needs noise"),
    ],
)
def test_a_model_that_predicts_no_noise_is_refused(changes, message, make_pipeline, tmp_path, no_network):
    make_pipeline().save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    config = {key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(config))
    for load in (read_model, DiTiPipeline.from_pretrained):
        with pytest.raises(ModelError, match=message):
            load(str(tmp_path))
    if "predict_epsilon" not in changes:
        with pytest.raises(ModelError, match=message):
            make_pipeline(scheduler=DDIMScheduler(**changes))


@pytest.mark.parametrize("part", ["unet", "encoder", "shift_decoder"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_as_such(part, value, make_pipeline, tmp_path, no_network):
    pipeline = make_pipeline()
    name, weight = next(iter(pipeline.networks[part].named_parameters()))
    weight.data.view(-1)[-1] = value
    pipeline.save_pretrained(tmp_path)
    parts = {**pipeline.networks, "scheduler": pipeline.scheduler}
    for load in (read_model, DiTiPipeline.from_pretrained, lambda _: make_pipeline(**parts)):
        with pytest.raises(ModelError, match=f"weights that are not finite .*: {part}.{name}") as error:
            load(str(tmp_path))
        assert "earlier checkpoint" in error.value.remedy


def test_large_finite_weights_are_fine():
    """Their sum overflows float32."""
    layer = torch.nn.Linear(2, 2)
    layer.weight.data.fill_(3e38)
    check_finite({"layer": layer}, "It")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("named", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_type_may_be_named(key, named, make_pipeline, tmp_path, no_network):
    make_pipeline().save_pretrained(tmp_path)
    loaded = DiTiPipeline.from_pretrained(tmp_path, **{key: named})
    assert {net.dtype for net in loaded.networks.values()} == {torch.bfloat16}


@pytest.mark.parametrize("named", ["bf16", "int8", "auto", "nn", "float8_e4m3fn", 16, torch.int32])
def test_what_names_no_type_is_refused(named, make_pipeline, tmp_path, no_network):
    make_pipeline().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="dtype is a floating-point type"):
        DiTiPipeline.from_pretrained(tmp_path, dtype=named)


def test_the_shift_decoder_takes_every_accepted_base():
    for config in ACCEPTED.values():
        unet = base(**config)
        assert len(ShiftDecoder.for_unet(unet, LATENT_DIM).up_blocks) == len(unet.up_blocks)
