import pytest
import torch
from tiny_models import UNET_SHAPES, tiny_unet_config

from diticli.errors import ConfigError, DeviceError, ModelError
from diticli.models.attention import check_attention
from diticli.models.build import build_encoder, build_unet, new_scheduler
from diticli.models.gate import check_base_config
from diticli.models.modules import ResnetBlock
from diticli.models.pipeline import unet_to_diffusers
from diticli.models.unet_forward import predict_noise, run_down_path
from diticli.settings import build_config, preset_names


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_both_halves_are_the_whole(make_unet, shape):
    unet = make_unet(shape)
    x = torch.randn(3, 3, unet.config.sample_size, unet.config.sample_size)
    t = torch.tensor([0, 417, 999])
    with torch.no_grad():
        expected = unet_to_diffusers(unet)(x, t).sample
        down = run_down_path(unet, x, t)
        torch.testing.assert_close(predict_noise(unet, down), expected)
    assert len(down.skips) == sum(len(block.resnets) for block in unet.up_blocks)
    assert expected.abs().max() > 0.01


def test_halves_take_half_precision(make_unet):
    unet, x, t = make_unet(), torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        exact = unet_to_diffusers(unet)(x, t).sample
        unet.to(torch.bfloat16)
        half = x.to(torch.bfloat16)
        ours, theirs = predict_noise(unet, run_down_path(unet, half, t)), unet_to_diffusers(unet)(half, t).sample
        unet.to(torch.float32)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - exact).norm() < 2 * (theirs.float() - exact).norm()


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_every_shape_of_base_is_accepted_at_its_resolution_only(make_unet, shape):
    unet = make_unet(shape)
    size = unet.config.sample_size
    check_base_config(unet.config)
    check_base_config(unet.config, resolution=size)
    with pytest.raises(ModelError, match=f"trained at {size} px, the run wants 64 px") as error:
        check_base_config(unet.config, resolution=64)
    assert f"--resolution {size}" in error.value.remedy


def test_sizes_may_be_written_as_pairs_or_left_out():
    check_base_config(tiny_unet_config(size=(16, 16)), resolution=16)
    check_base_config(tiny_unet_config(size=None), resolution=16)


@pytest.mark.parametrize("preset", preset_names())
def test_presets_build_networks_that_pass_for_a_base(preset):
    config = build_config(preset)
    with torch.device("meta"):
        unet = build_unet(config.unet, config.data.resolution)
        encoder = build_encoder(config)
    check_base_config(unet.config, resolution=config.data.resolution)
    assert len(encoder.convs) == len(config.encoder.widths)
    names = [*unet.config.down_block_types, *unet.config.up_block_types]
    sizes = [config.data.resolution // 2**i for i in range(len(config.unet.channels))]
    with_attention = [size in config.unet.attention_sizes for size in sizes]
    assert [name.startswith("Attn") for name in names] == with_attention + with_attention[::-1]
    resnet = config.unet.resampling == "resnet"
    samplers = [block.downsamplers[0] for block in unet.down_blocks if block.downsamplers]
    assert all(isinstance(s, ResnetBlock) == resnet for s in samplers)
    groups = {m.num_groups for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {config.unet.norm_groups}


def test_the_schedule_of_new_bases_is_the_ddpm_papers():
    config = new_scheduler().config
    assert (config.num_train_timesteps, config.beta_start, config.beta_end) == (1000, 1e-4, 0.02)
    assert (config.beta_schedule, config.prediction_type) == ("linear", "epsilon")


def test_attention_that_cannot_be_had_is_refused(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setenv("DITI_ATTENTION", "xformers")
    with pytest.raises(DeviceError, match="cannot be used: xformers has no operator for this device"):
        check_attention(cpu)
    monkeypatch.setenv("DITI_ATTENTION", "flash")
    with pytest.raises(ConfigError, match="DITI_ATTENTION='flash' is unknown") as error:
        check_attention(cpu)
    assert "auto, xformers, sdpa" in error.value.remedy
