"""Official weights in every layout: loaded tensor by tensor, and computing what the official blocks compute."""

import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from official_layout import (
    ENCODER_WIDTHS,
    UNETS,
    encoder_forward,
    encoder_state,
    unet_forward,
    unet_settings,
    unet_state,
)

from diticli.chunks import ChunkLayout
from diticli.errors import ModelError
from diticli.models.base_files import load_base
from diticli.models.pipeline import DiTiPipeline
from diticli.models.unet import UNet
from diticli.models.unet_forward import estimate_noise
from diticli.official.config import encoder_config, official_scheduler, unet_config
from diticli.official.weights import base_from_official, encoder_from_official, from_official

LATENT_DIM = 16
TABLES = json.loads((Path(__file__).parent / "data" / "tables.json").read_text())


def convert(settings, decoder, encoder=None, model="CELEBA64Encoder"):
    encoder = encoder_state(latent_dim=LATENT_DIM) if encoder is None else encoder
    return from_official(encoder, decoder, settings, encoder_model=model, latent_dim=LATENT_DIM)


def distance(got, expected):
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


# numbers


@pytest.mark.parametrize("name", UNETS)
@torch.no_grad()
def test_every_layout_computes_the_official_noise_and_shift(name):
    settings = unet_settings(name)
    decoder = unet_state(settings, LATENT_DIM)
    unet, encoder, shift_decoder = convert(settings, decoder)
    x, t, z = torch.randn(2, 3, 16, 16), torch.tensor([3, 870]), torch.randn(2, LATENT_DIM)
    noise, shift = unet_forward(decoder, settings, x, t, z)
    pipeline = DiTiPipeline(
        unet,
        encoder,
        shift_decoder,
        DDIMScheduler(),
        ChunkLayout.uniform(chunks=1, latent_dim=LATENT_DIM).to_dict(),
    )
    got = pipeline.predict(x, t, z)
    assert distance(got.noise, noise) < 1e-5
    assert distance(got.shift, shift) < 1e-5
    assert distance(estimate_noise(unet, x, t), noise) < 1e-5


@pytest.mark.parametrize("name", ["heads-legacy", "heads-new"])
@torch.no_grad()
def test_the_other_qkv_order_would_be_noticed(name):
    settings = unet_settings(name)
    state = unet_state(settings)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([500])
    other = settings | {"use_new_attention_order": not settings["use_new_attention_order"]}
    noise = unet_forward(state, settings, x, t)[0]
    assert distance(estimate_noise(base_from_official(state, settings, 8), x, t), noise) < 1e-5
    assert distance(estimate_noise(base_from_official(state, other, 8), x, t), noise) > 1e-3


@pytest.mark.parametrize(
    ("model", "size"), [("CELEBA64Encoder", 64), *((f"{d}Encoder", 128) for d in ("FFHQ", "BEDROOM"))]
)
@torch.no_grad()
def test_encoders(model, size):
    state = encoder_state(size, LATENT_DIM)
    encoder = encoder_from_official(state, model, latent_dim=LATENT_DIM)
    x = torch.randn(1, 3, size, size)
    assert distance(encoder(x), encoder_forward(state, x, size)) < 1e-5
    assert encoder.config.sample_size == size
    assert tuple(encoder.config.widths) == ENCODER_WIDTHS[size]
    assert not encoder.training


def test_all_official_encoder_classes_are_known():
    for name in ("CELEBAHQ", "HORSE"):
        assert encoder_config(f"{name}Encoder", 8) == encoder_config("FFHQEncoder", 8)
    with pytest.raises(ModelError, match=r"'CELEBA64ResNet10' \(a ResNet"):
        encoder_config("CELEBA64ResNet10", 8)
    with pytest.raises(ModelError, match="Known encoders: CELEBA64Encoder, FFHQEncoder"):
        encoder_config("MyEncoder", 8)


# heads by number at several widths


@torch.no_grad()
def test_heads_by_number_survive_our_formats(tmp_path, caplog):
    settings = unet_settings("heads-at-several-widths")
    decoder = unet_state(settings, LATENT_DIM)
    parts = convert(settings, decoder)
    layout = ChunkLayout.uniform(chunks=2, latent_dim=LATENT_DIM)
    pipeline = DiTiPipeline(*parts, DDIMScheduler(), layout.to_dict())
    pipeline.save_pretrained(tmp_path / "model")
    parts[0].save_pretrained(tmp_path / "base" / "unet")
    DDPMScheduler().save_pretrained(tmp_path / "base" / "scheduler")
    with caplog.at_level(logging.WARNING):
        logging.getLogger("diffusers").propagate = True
        loaded = DiTiPipeline.from_pretrained(tmp_path / "model")
        base, _ = load_base(str(tmp_path / "base"))
    logging.getLogger("diffusers").propagate = False
    assert "attention_heads" not in caplog.text
    assert base.config.attention_heads == 4
    x, t, z = torch.randn(1, 3, 16, 16), torch.tensor([300]), torch.randn(1, LATENT_DIM)
    noise, shift = unet_forward(decoder, settings, x, t, z)
    got = loaded.predict(x, t, z, masked=False)
    assert distance(got.noise, noise) < 1e-5
    assert distance(got.shift, shift) < 1e-5
    assert distance(estimate_noise(base, x, t), noise) < 1e-5


def test_heads_are_fixed_by_width_where_that_can_be_said():
    def heads(name, **changes):
        config = unet_config(unet_settings(name, **changes), 16)
        return config["attention_head_dim"], config.get("attention_heads")

    assert heads("two-levels") == (None, None)
    assert heads("heads-new") == (8, None)
    assert heads("head-width") == (16, None)
    assert heads("heads-at-several-widths") == (None, 4)
    with pytest.raises(ModelError, match=r"\[32, 64\] channels do not divide into 3 heads"):
        heads("heads-at-several-widths", num_heads=3)
    with pytest.raises(ModelError, match=r"\[32\] channels do not divide into heads of 64"):
        heads("head-width", head_channel=64)
    with pytest.raises(ModelError, match="3 attention heads do not divide a block of"):
        UNet(**unet_config(unet_settings(), 16), attention_heads=3)


# every tensor once


@pytest.fixture(scope="module")
def settings():
    return unet_settings()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"middle_block.1.qkv.bias": None}, "missing: middle_block.1.qkv.bias"),
        ({"shift_output_blocks.1.0.emb_z_layers.1.weight": None}, "missing: shift_output_blocks.1.0.emb_z_layers.1.w"),
        ({"label_emb.weight": None, "out.2.bias": None}, "missing: label_emb.weight, out.2.bias"),
        ({"output_blocks.9.0.in_layers.0.weight": torch.ones(32)}, "left over: output_blocks.9.0.in_layers.0.weight"),
        ({"input_blocks.1.0.dropout": torch.ones(1)}, "left over: input_blocks.1.0.dropout"),
        (
            {"middle_block.1.qkv.weight": torch.ones(192, 64)},
            r"middle_block.1.qkv.weight is \[192, 64\] where \[192, 64, 1\] belongs",
        ),
        (
            {"shift_out.2.weight": torch.ones(6, 32, 3, 3)},
            r"shift_out.2.weight is \[6, 32, 3, 3\] where \[3, 32, 3, 3\]",
        ),
    ],
)
def test_decoder_tensors_that_do_not_fit_are_named(settings, change, says):
    state = unet_state(settings, LATENT_DIM) | change
    with pytest.raises(ModelError, match=f"official decoder are not those of its config; .*{says}"):
        convert(settings, {name: tensor for name, tensor in state.items() if tensor is not None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder.4.qkv.weight": None}, "missing: encoder.4.qkv.weight"),
        ({"encoder.3.weight": None, "encoder.3.bias": None}, "missing: encoder.3.bias, encoder.3.weight"),
        ({"encoder.15.weight": torch.ones(4)}, "left over: encoder.15.weight"),
        ({"encoder.0.weight": torch.ones(64, 1, 3, 3)}, r"encoder.0.weight is \[64, 1, 3, 3\] where \[64, 3, 3, 3\]"),
    ],
)
def test_encoder_tensors_that_do_not_fit_are_named(change, says):
    state = encoder_state(64, LATENT_DIM) | change
    with pytest.raises(ModelError, match=says):
        encoder_from_official(
            {name: tensor for name, tensor in state.items() if tensor is not None},
            "CELEBA64Encoder",
            latent_dim=LATENT_DIM,
        )


def test_a_config_of_another_size_is_noticed(settings):
    with pytest.raises(ModelError, match=r"left over: input_blocks.* and \d+ more"):
        base_from_official(unet_state(unet_settings("four-levels")), settings, 16)
    with pytest.raises(ModelError, match=r"missing: encoder.13.bias.*left over: encoder.4.*--ddpm-config"):
        encoder_from_official(encoder_state(64, LATENT_DIM), "FFHQEncoder", latent_dim=LATENT_DIM)


def test_a_base_has_no_shift_branch(settings):
    with pytest.raises(ModelError, match=r"left over: label_emb.bias"):
        base_from_official(unet_state(settings, LATENT_DIM), settings, 16)


def test_what_is_saved_shares_no_memory_and_half_precision_becomes_float(settings, tmp_path):
    """Safetensors refuses tensors that share memory; the new qkv order splits into views."""
    state = {name: tensor.half() for name, tensor in unet_state(unet_settings("heads-new")).items()}
    unet = base_from_official(state, unet_settings("heads-new"), 16)
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in unet.parameters())
    unet.save_pretrained(tmp_path)


# configs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learn_sigma": True}, "learn_sigma"),
        ({"num_class": 10}, "class-conditional"),
        ({"dims": 3}, "data of 3 dimensions"),
        ({"channel_multiplier": [2, 4]}, r"\[64, 128\] channels wide \(base_channel 32\)"),
        ({"base_channel": 40}, "multiples of 32"),
        ({"base_channel": None}, "base_channel as a whole number, got None"),
        ({"num_residual_blocks_of_a_block": 0}, "num_residual_blocks_of_a_block must be above zero"),
        ({"channel_multiplier": "1,2"}, "channel_multiplier as a list"),
        ({"attention_resolutions": ["a"]}, "attention_resolutions as a list of numbers"),
        ({"num_heads": "many"}, "num_heads as a whole number"),
    ],
)
def test_unets_that_cannot_be_expressed(change, says):
    with pytest.raises(ModelError, match=says):
        unet_config(unet_settings() | change, 16)


def test_schedule():
    config = {"timesteps": 200, "betas_type": "linear", "linear_beta_start": "1e-4", "linear_beta_end": 0.02}
    betas = official_scheduler(config).betas
    assert torch.equal(betas, torch.linspace(1e-4, 0.02, 200))
    with pytest.raises(ModelError, match="'cosine'"):
        official_scheduler(config | {"betas_type": "cosine"})
    with pytest.raises(ModelError, match="linear_beta_end"):
        official_scheduler(config | {"linear_beta_end": None})
