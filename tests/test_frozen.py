"""The base's inference copy against the base."""

from __future__ import annotations

import copy

import pytest
import torch
from diti_kernels.winograd import op as winograd
from tiny_models import LATENT_DIM, UNET_SHAPES, perturb
from torch.nn import functional as F

from diticli.models.frozen import FrozenBase, merge_upsampling
from diticli.models.noise_prediction import predict
from diticli.models.pipeline import unet_to_diffusers
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet_forward import run_down_path

T = torch.tensor([0, 417, 999])


@pytest.mark.parametrize("merge_up_to", [0, 256])
@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_in_float32_it_is_the_base(make_unet, shape, merge_up_to):
    unet = make_unet(shape)
    x = torch.randn(3, 3, unet.config.sample_size, unet.config.sample_size)
    noise, down = FrozenBase(unet, torch.float32, merge_up_to=merge_up_to)(x, T)
    with torch.no_grad():
        expected, features = unet_to_diffusers(unet)(x, T).sample, run_down_path(unet, x, T)
    assert (noise - expected).abs().max() < 3e-6 * expected.abs().max()
    torch.testing.assert_close(down, features)


@pytest.mark.parametrize("kind", ["conv", "resnet"])
def test_upsampling_is_merged_up_to_a_width(make_unet, kind, monkeypatch):
    unet = (
        make_unet("RRR", channels=(8, 16, 32), resampling=kind)
        if kind == "resnet"
        else make_unet("DDD", channels=(8, 16, 32))
    )

    def merged(**options):
        modules = FrozenBase(unet, torch.float32, **options).modules()
        return sorted(m.in_channels for m in modules if isinstance(m, torch.nn.ConvTranspose2d))

    monkeypatch.setenv("DITI_KERNELS", "reference")
    assert (merged(), merged(merge_up_to=16), merged(merge_up_to=0)) == ([16, 32], [16], [])
    monkeypatch.setenv("DITI_KERNELS", "auto")
    if winograd.why().functions is not None:
        monkeypatch.setattr(winograd, "measured", lambda threads: winograd.Measured(dict.fromkeys(winograd.NAMES, 1.0)))
        assert merged() == [16, 32], "Winograd's algorithm is no faster here"
        times = {name: 2.0 if name.startswith("pytorch") else 1.0 for name in winograd.NAMES}
        monkeypatch.setattr(winograd, "measured", lambda threads: winograd.Measured(times))
        assert merged() == [16], "faster from 32 channels on"


def test_the_merged_convolution_is_exactly_the_two():
    conv = torch.nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(2, 3, 4, 7, dtype=torch.float64)
    merged = merge_upsampling(conv)
    torch.testing.assert_close(merged(x), conv(F.interpolate(x, scale_factor=2.0)), rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift", "ddpm-cifar10-32"])
def test_in_bf16_it_is_as_close_as_autocast(make_unet, shape):
    unet, x, t = make_unet(shape), torch.randn(8, 3, 16, 16), torch.arange(8) * 120
    noise, down = FrozenBase(unet)(x, t)
    with torch.no_grad():
        exact = unet_to_diffusers(unet)(x, t).sample
        with torch.autocast("cpu", torch.bfloat16):
            theirs = unet_to_diffusers(unet)(x, t).sample.float() - exact
    assert {noise.dtype, down.hidden.dtype, *(s.dtype for s in down.skips)} == {torch.bfloat16}
    assert (noise.float() - exact).square().mean().sqrt() < 2 * theirs.square().mean().sqrt()


def test_nothing_around_it_matters(make_unet):
    """Neither autocast, nor train(), nor a request for gradients; and the base stays as it was."""
    unet = make_unet("DA", dropout=0.5)
    unet.requires_grad_(True).train()
    state = copy.deepcopy(unet.state_dict())
    base = FrozenBase(unet, torch.float32)
    x = torch.randn(3, 3, 16, 16, requires_grad=True)
    expected = base(x, T)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(base.train()(x, T)[0], expected)
    assert not expected.requires_grad
    assert not any(p.requires_grad for p in base.parameters())
    assert not any(m.training for m in base.modules())
    assert all(p.requires_grad for p in unet.parameters())
    assert all(m.training for m in unet.modules())
    assert all(torch.equal(state[name], value) for name, value in unet.state_dict().items())


def test_one_timestep_serves_all_samples(make_unet):
    base, x = FrozenBase(make_unet("resnet-scale_shift"), torch.float32), torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(base(x, T[1:2])[0], base(x, torch.full((3,), 417))[0])


def test_heads_of_the_config(make_unet):
    unet = make_unet("DA", attention_heads=2)
    base = FrozenBase(unet, torch.float32)
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(base(x, T)[0], unet_to_diffusers(unet)(x, T).sample)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_branch_trains_on_its_features(make_unet, layout, autocast):
    """In float32 without autocast, on half-precision features."""
    unet = make_unet("resnet-scale_shift")
    decoder, windows = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)), ChunkWindows(layout)
    x, z = torch.randn(3, 3, 16, 16), torch.randn(3, LATENT_DIM)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        z_mod = decoder.project(z, T, windows)
        exact = predict(FrozenBase(unet, torch.float32), decoder, x, T, z_mod)[0]
        noise, shift = predict(FrozenBase(unet), decoder, x, T, z_mod)[0]
    shift.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())
    assert shift.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert noise.dtype == torch.bfloat16
    assert (shift - exact.shift).float().norm() < 0.1 * exact.shift.float().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moved_it_takes_the_layout_of_the_device(make_unet, monkeypatch, dtype):
    """Built on the CPU and moved, as a training does: no weight is laid anew in every step."""
    layouts = {"cpu": torch.contiguous_format, "meta": torch.channels_last}
    monkeypatch.setattr("diticli.models.frozen.layout_for", lambda device, _: layouts[device.type])
    moved = FrozenBase(make_unet(), dtype).to("meta")
    weights = [m.weight for m in moved.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert weights
    assert all(w.is_contiguous(memory_format=torch.channels_last) and w.dtype == dtype for w in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_on_a_gpu(make_unet, shape):
    unet = make_unet(shape)
    x = torch.randn(3, 3, unet.config.sample_size, unet.config.sample_size)
    with torch.no_grad():
        expected = unet_to_diffusers(unet)(x, T).sample
    base = FrozenBase(unet, torch.float32).cuda()
    got = base(x.cuda(), T.cuda())[0]
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.cpu(), expected, rtol=5e-3, atol=5e-3)
