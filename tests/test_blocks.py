"""Blocks as they are run here against diffusers' own, on the same parameters: values and all gradients."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from diti_kernels.adaptive_group_norm import adaptive_group_norm
from tiny_models import LATENT_DIM, UNET_SHAPES, perturb, tiny_unet_config
from torch.nn import functional as F

from diticli.models import norms
from diticli.models.blocks import _add_products, run_attention, run_downsample, run_resnet, run_upsample
from diticli.models.frozen import FrozenBase
from diticli.models.layout import layout_for
from diticli.models.modulation import gather_weights, modulate
from diticli.models.modules import Downsample, ResnetBlock, SelfAttention, Upsample
from diticli.models.noise_prediction import predict
from diticli.models.norms import modulated_norm, norm_silu
from diticli.models.pipeline import unet_from_diffusers, unet_to_diffusers
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.models.unet_forward import estimate_noise, run_down_path

T = torch.tensor([0, 417, 999])


def gradients(module, output, *inputs):
    """Gradients of a fixed scalar of `output`, by name; None where nothing flows."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    named = dict(module.named_parameters()) | {f"input{i}": x for i, x in enumerate(inputs)}
    found = torch.autograd.grad((output * weight).sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def assert_same(module, ours, theirs, *inputs, rtol=1e-9, atol=1e-11):
    """Both outputs and all their gradients agree."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)
    of_ours, of_theirs = gradients(module, ours, *inputs), gradients(module, theirs, *inputs)
    assert [k for k, g in of_ours.items() if g is None] == [k for k, g in of_theirs.items() if g is None]
    for name, gradient in of_theirs.items():
        if gradient is not None:
            torch.testing.assert_close(of_ours[name], gradient, rtol=rtol, atol=atol, msg=name)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def maps(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def holding(theirs, ours):
    """Our block with the parameters of diffusers' one."""
    named = dict(theirs.named_parameters())
    assert list(named) == [name for name, _ in ours.named_parameters()]
    for name, parameter in named.items():
        owner, _, leaf = name.rpartition(".")
        setattr(ours.get_submodule(owner), leaf, parameter)
    return ours.train(theirs.training)


RESNETS = {
    "plain": {},
    "wider": {"out_channels": 12},
    "scaled": {"out_channels": 12, "output_scale_factor": 2**0.5},
    "up": {"up": True},
    "down": {"down": True},
}


@pytest.mark.parametrize("shift", ["default", "scale_shift"])
@pytest.mark.parametrize("kind", RESNETS)
def test_resnet(kind, shift):
    options = {"in_channels": 8, "temb_channels": 6, "groups": 4, "time_embedding_norm": shift} | RESNETS[kind]
    block = perturb(ResnetBlock2D(**options)).double().eval()
    x, temb = maps(3, 8, 6, 6), torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    mine = holding(block, ResnetBlock(eps=1e-6, **options))
    ours = run_resnet(mine, channels_last(x), next(modulate([mine], gather_weights([mine]), temb)))
    assert_same(block, ours, block(x, temb), x, temb)


@pytest.mark.parametrize("out_channels", [8, 12])
def test_resnet_beside_a_skip(out_channels):
    """Also where the two together are as wide as the result, so that nothing projects them."""
    block = perturb(ResnetBlock2D(in_channels=12, out_channels=out_channels, temb_channels=6, groups=4)).double().eval()
    assert (block.conv_shortcut is None) == (out_channels == 12)
    x, skip, temb = maps(2, 8, 4, 4), maps(2, 4, 4, 4), torch.randn(2, 6, dtype=torch.float64)
    mine = holding(block, ResnetBlock(in_channels=12, out_channels=out_channels, temb_channels=6, groups=4))
    modulation = next(modulate([mine], gather_weights([mine]), temb))
    ours = run_resnet(mine, channels_last(x), modulation, channels_last(skip))
    assert_same(block, ours, block(torch.cat([x, skip], 1), temb), x, skip)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("options", [{}, {"norm_num_groups": None}, {"rescale_output_factor": 2.0}])
def test_attention(heads, options):
    options = {"norm_num_groups": 4, "bias": True, "residual_connection": True} | options
    block = Attention(8, heads=heads, dim_head=8 // heads, _from_deprecated_attn_block=True, **options)
    perturb(block).double().set_processor(AttnProcessor2_0())
    groups, factor = options["norm_num_groups"], options.get("rescale_output_factor", 1.0)
    mine = SelfAttention(8, heads=heads, dim_head=8 // heads, groups=groups, eps=1e-5, rescale_output_factor=factor)
    holding(block, mine)
    x = maps(3, 8, 4, 6)
    assert_same(block, run_attention(mine, channels_last(x)), block(x), x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("padding", [0, 1])
def test_downsample(padding):
    block = Downsample2D(8, use_conv=True, padding=padding, name="op").double()
    x = maps(2, 8, 6, 6)
    assert_same(block, run_downsample(holding(block, Downsample(8, padding)), channels_last(x)), block(x), x)


def test_upsample():
    block = Upsample2D(8, use_conv=True).double()
    x = maps(2, 8, 3, 5)
    assert_same(block, run_upsample(holding(block, Upsample(8)), channels_last(x)), block(x), x)


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_whole_unet(shape):
    """Values as the official numbers ask, 1e-6 relative, and every gradient."""
    unet = perturb(UNet2DModel(**tiny_unet_config(**UNET_SHAPES[shape])), 0.05)
    size = unet.config.sample_size
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        expected = unet.eval()(x, T).sample
        ours = unet_from_diffusers(unet)
        assert (estimate_noise(ours, x, T) - expected).abs().max() < 2e-6 * expected.abs().max()
    unet.double().train()
    ours.train()
    x = x.double().requires_grad_()
    assert_same(unet, estimate_noise(ours, x, T), unet(x, T).sample, x, rtol=1e-7, atol=1e-8)


def test_heads_of_the_config(make_unet):
    unet = make_unet("DA", attention_heads=2)
    assert {block.heads for block in unet.modules() if isinstance(block, SelfAttention)} == {2}
    theirs, x = unet_to_diffusers(unet), torch.randn(3, 3, 16, 16)
    for ours in (unet, unet_from_diffusers(theirs)):
        torch.testing.assert_close(estimate_noise(ours, x, T), theirs(x, T).sample)


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift"])
def test_one_timestep_serves_all_samples(make_unet, shape):
    unet, x = make_unet(shape), torch.randn(3, 3, 16, 16)
    each = run_down_path(unet, x, torch.full((3,), 417))
    shared = run_down_path(unet, x, torch.tensor([417]))
    assert (each.temb.shape[0], shared.temb.shape[0]) == (3, 1)
    torch.testing.assert_close(shared.hidden, each.hidden)
    torch.testing.assert_close(estimate_noise(unet, x, T[1:2]), estimate_noise(unet, x, torch.full((3,), 417)))


def test_dropout_is_active_in_training_only():
    unet = UNet(**tiny_unet_config(dropout=0.5)).eval()
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(estimate_noise(unet, x, T), estimate_noise(unet, x, T))
        quiet = estimate_noise(unet, x, T)
        unet.train()
        assert not torch.equal(estimate_noise(unet, x, T), quiet)


@pytest.mark.parametrize("shape", ["conv-default", "resnet-scale_shift", "ddpm-cifar10-32"])
def test_autocast_is_as_close_to_float32_as_diffusers(make_unet, shape):
    unet, x = make_unet(shape), torch.randn(8, 3, 16, 16)
    t = torch.arange(8) * 120
    with torch.no_grad():
        exact = (theirs := unet_to_diffusers(unet))(x, t).sample
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = (f.float() - exact for f in (estimate_noise(unet, x, t), theirs(x, t).sample))
    assert ours.square().mean().sqrt() < 2 * theirs.square().mean().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("record", [False, True])
def test_norm_on_a_cpu_whatever_route_it_takes(dtype, size, rows, record):
    norm, skip = torch.nn.GroupNorm(4, 12, eps=1e-3), torch.randn(3, 4, size, size)
    h = (5 + torch.randn(3, 8, size, size)).to(dtype)
    scale, shift = (torch.randn(12) if rows is None else torch.randn(rows, 12) for _ in range(2))
    x = torch.cat([h.double(), skip.to(dtype).double()], 1)
    exact = F.group_norm(x, 4, eps=1e-3) * scale.view(-1, 12, 1, 1) + shift.view(-1, 12, 1, 1)
    for activation, expected in (("none", exact), ("silu", F.silu(exact))):
        got = modulated_norm(
            norm, channels_last(h), scale.requires_grad_(record), shift, channels_last(skip), activation
        )
        assert got.dtype == dtype
        assert got.is_contiguous(memory_format=torch.channels_last)
        plain = modulated_norm(norm, h, scale, shift, skip, activation)
        assert plain.is_contiguous()
        torch.testing.assert_close(plain, got, rtol=0.02, atol=0.02)
        atol = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(got.detach().double(), expected, rtol=atol, atol=atol)


@pytest.mark.parametrize(("setting", "calls"), [("auto", 0), ("reference", 1)])
def test_a_named_implementation_is_the_one_that_runs(monkeypatch, setting, calls):
    ran = []
    monkeypatch.setenv("DITI_KERNELS", setting)
    monkeypatch.setattr(norms, "adaptive_group_norm", lambda *a, **k: ran.append(1) or adaptive_group_norm(*a, **k))
    h = channels_last(torch.randn(2, 64, 32, 32, dtype=torch.bfloat16))
    with torch.no_grad():
        norm_silu(torch.nn.GroupNorm(4, 64), h)
    assert len(ran) == calls


def test_trained_norms_take_frozen_features_in_channels_last():
    """Where PyTorch's own CPU group_norm reads invalid memory: no gradient of the input, but of the affine."""
    norm = torch.nn.GroupNorm(4, 8)
    h = channels_last(torch.randn(4, 8, 32, 32))
    y = norm_silu(norm, h)
    y.square().sum().backward()
    ours = norm.weight.grad.clone(), norm.bias.grad.clone()
    norm.zero_grad()
    F.silu(norm(h.contiguous().requires_grad_())).square().sum().backward()
    torch.testing.assert_close(ours, (norm.weight.grad, norm.bias.grad), rtol=1e-4, atol=1e-3)


def test_gradients_keep_the_layout_of_maps(monkeypatch):
    """Kernels that meet two layouts at once are many times slower: norms must hand back channels_last."""
    seen = []
    monkeypatch.setattr(norms, "serves", lambda *_: False)
    h = channels_last(torch.randn(2, 8, 4, 4)).requires_grad_()
    h.register_hook(lambda g: seen.append(g.is_contiguous(memory_format=torch.channels_last)))
    called = []
    inner = norms.adaptive_group_norm
    monkeypatch.setattr(norms, "adaptive_group_norm", lambda x, *a, **k: called.append(x.stride()) or inner(x, *a, **k))
    norm_silu(torch.nn.GroupNorm(4, 8), h).square().sum().backward()
    assert seen == [True]
    assert called == [(128, 16, 4, 1)]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_maps_keep_one_layout(make_unet, compute):
    unet, x = make_unet("resnet-scale_shift"), torch.randn(3, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=compute == torch.bfloat16):
        down = run_down_path(unet, x, T)
    layout = layout_for(x.device, compute)
    assert compute == torch.float32 or layout == torch.channels_last
    assert all(h.is_contiguous(memory_format=layout) for h in (down.hidden, *down.skips))


def test_prediction_in_bf16_is_one_graph(make_unet, layout):
    unet = make_unet("A", channels=(8,), shift="scale_shift")
    base, decoder = FrozenBase(unet), perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
    windows, x = ChunkWindows(layout), torch.randn(3, 3, 16, 16)
    z = torch.randn(3, LATENT_DIM, requires_grad=True)

    def shift_of(z):
        return predict(base, decoder, x, T, decoder.project(z, T, windows, detach_others=True))[0].shift

    with torch.autocast("cpu", torch.bfloat16):
        runs = [f(z) for f in (torch.compile(shift_of, backend="eager", fullgraph=True), shift_of)]
    grads = [torch.autograd.grad(shift.float().square().sum(), z)[0] for shift in runs]
    for ours, expected in (runs, grads):
        assert (ours - expected).float().norm() < 0.05 * expected.float().norm()


@pytest.mark.parametrize("frozen", ["", "h", "x", "weight"])
def test_products_are_added_in_the_memory_of_the_convolution(frozen):
    conv, x = torch.nn.Conv2d(4, 6, 3, padding=1), channels_last(torch.randn(2, 5, 3, 4))
    weight, maps = torch.randn(6, 5, 1, 1), channels_last(torch.randn(2, 4, 3, 4))
    inputs = {"h": maps, "x": x, "weight": weight}
    for name, tensor in inputs.items():
        tensor.requires_grad_(name != frozen)
    conv.requires_grad_(False)
    h = conv(maps)
    before = h.data_ptr()
    found = _add_products(h, x, weight)
    assert found.data_ptr() == before
    wanted = conv(maps) + F.conv2d(x, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    grad, asked = torch.randn_like(wanted), [tensor for name, tensor in inputs.items() if name != frozen]
    ours, theirs = (torch.autograd.grad(y, asked, grad) for y in (found, wanted))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
