import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diti_kernels.masked_linear import masked_linear
from tiny_models import CHUNKS, LATENT_DIM, UNET_SHAPES, perturb
from torch.nn import functional as F

from diticli.models.encoder import SemanticEncoder
from diticli.models.predictor import ChunkWindows, predict
from diticli.models.shift_decoder import (
    Conditioning,
    ShiftDecoder,
    ShiftResnetBlock2D,
    owned,
)
from diticli.models.unet import run_down_path
from diticli.schedule import NoiseSchedule
from diticli.training.objectives import FeatureObjective

# One time-step in each chunk of the four-chunk layout, from the finest on.
T = torch.tensor([10, 300, 600, 990])


@pytest.fixture
def parts(make_unet, layout):
    """(unet, perturbed shift decoder, x_t [4], z [4, D], windows)."""
    unet = make_unet()
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
    return unet, decoder, torch.randn(4, 3, 16, 16), torch.randn(4, LATENT_DIM), ChunkWindows(layout)


def shift_of(unet, decoder, x, t, seen):
    return predict(unet, decoder, x, t, seen)[0].shift


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_a_fresh_branch_shifts_nothing(make_unet, shape):
    unet = make_unet(shape)
    decoder = ShiftDecoder.for_unet(unet, LATENT_DIM).eval()
    size = unet.config.sample_size
    x, z = torch.randn(2, 3, size, size), torch.randn(2, LATENT_DIM)
    down = run_down_path(unet, x, T[:2])
    shift = decoder(down, z, torch.zeros(2, dtype=torch.long), torch.full((2,), LATENT_DIM))
    assert shift.shape == x.shape
    assert torch.equal(shift, torch.zeros_like(x))


@pytest.mark.parametrize("shape", UNET_SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_shape_learns(make_unet, layout, shape, memory_format):
    """Also where PyTorch's CPU group_norm would crash: channels_last features without gradient."""
    unet = make_unet(shape).to(memory_format=memory_format)
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)).to(memory_format=memory_format)
    size = unet.config.sample_size
    x = torch.randn(2, 3, size, size).to(memory_format=memory_format)
    z = torch.randn(2, LATENT_DIM, requires_grad=True)
    seen = ChunkWindows(layout).see(z, T[2:])
    shift_of(unet, decoder, x, T[2:], seen).square().mean().backward()
    gradients = {name: p.grad for name, p in decoder.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert z.grad.abs().sum() > 0
    dead = [name for name, g in gradients.items() if not g.abs().max() > 0]
    # A bias on the keys shifts all scores alike, and a single position attends to itself alone.
    assert all(".to_k." in name or ".to_q." in name for name in dead)
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_memory_format_does_not_change_the_shift(make_unet, layout, shape):
    unet = make_unet(shape)
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)).eval()
    size = unet.config.sample_size
    x, seen = torch.randn(2, 3, size, size), ChunkWindows(layout).see_all(torch.randn(2, LATENT_DIM))
    with torch.no_grad():
        plain = shift_of(unet, decoder, x, T[:2], seen)
        unet.to(memory_format=torch.channels_last)
        last = shift_of(unet, decoder, x.to(memory_format=torch.channels_last), T[:2], seen)
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


def test_owned_is_contiguous_on_the_cpu():
    h = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert owned(h).is_contiguous()
    assert torch.equal(owned(h), h)


def test_the_branch_sees_exactly_the_visible_dims(parts, layout):
    unet, decoder, x, z, windows = parts
    with torch.no_grad():
        base = shift_of(unet, decoder, x, T, windows.see(z, T))
        for dim in range(LATENT_DIM):
            other = z.clone()
            other[:, dim] += 1
            changed = shift_of(unet, decoder, x, T, windows.see(other, T))
            for sample, t in enumerate(T):
                hidden = dim >= layout.visible_dims()[t]
                assert torch.equal(changed[sample], base[sample]) == hidden


def test_hidden_dims_may_hold_nan(parts):
    unet, decoder, x, z, windows = parts
    poisoned = z.clone()
    poisoned[0, 4:] = torch.nan
    with torch.no_grad():
        shift = shift_of(unet, decoder, x, T, windows.see(poisoned, T))
        expected = shift_of(unet, decoder, x, T, windows.see(z, T))
    assert torch.equal(shift, expected)


def test_without_a_mask_everything_is_seen(parts):
    unet, decoder, x, z, windows = parts
    last = torch.full_like(T, 999)
    with torch.no_grad():
        at_the_end = [shift_of(unet, decoder, x, last, seen) for seen in (windows.see(z, last), windows.see_all(z))]
        early = [shift_of(unet, decoder, x, T, seen) for seen in (windows.see(z, T), windows.see_all(z))]
    assert torch.equal(*at_the_end)
    assert not torch.equal(early[0][0], early[1][0])


@pytest.mark.parametrize("detach_earlier", [False, True])
def test_gradient_reaches_the_prefix_or_the_own_slice(parts, layout, detach_earlier):
    unet, decoder, x, z, windows = parts
    z.requires_grad_()
    shift = shift_of(unet, decoder, x, T, windows.see(z, T, detach_earlier=detach_earlier))
    shift.square().sum().backward()
    for sample, t in enumerate(T):
        start = layout.own_start()[t] if detach_earlier else 0
        reached = (z.grad[sample] != 0).nonzero().flatten().tolist()
        assert reached == list(range(start, layout.visible_dims()[t]))


def test_both_gradient_modes_have_the_same_value_and_weight_gradients(parts):
    unet, decoder, x, z, windows = parts
    runs = []
    for detach in (False, True):
        decoder.zero_grad()
        shift = shift_of(unet, decoder, x, T, windows.see(z, T, detach_earlier=detach))
        shift.square().sum().backward()
        runs.append((shift, [p.grad for p in decoder.parameters()]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


@pytest.mark.parametrize("norm", ["default", "scale_shift"])
def test_block_formula(norm):
    block = ShiftResnetBlock2D(in_channels=8, out_channels=4, temb_channels=6, groups=4, time_embedding_norm=norm)
    perturb(block).eval()
    x, temb, zemb = torch.randn(2, 8, 4, 4), torch.randn(2, 6), torch.randn(2, 6)
    h = block.conv1(F.silu(block.norm1(x)))
    time = block.time_emb_proj(F.silu(temb))[:, :, None, None]
    if norm == "scale_shift":
        s_t, b_t = time.chunk(2, dim=1)
        h = block.norm2(h) * (1 + s_t) + b_t
    else:
        h = block.norm2(h + time)
    s_z, b_z = block.z_emb_proj(F.silu(zemb))[:, :, None, None].chunk(2, dim=1)
    expected = block.conv_shortcut(x) + block.conv2(F.silu(h * (1 + s_z) + b_z))
    torch.testing.assert_close(block(x, Conditioning(temb, zemb)), expected)


def test_without_features_the_block_is_the_stock_one():
    """s_z = b_z = 0 leaves diffusers' own block, whatever its kind."""
    for norm in ("default", "scale_shift"):
        for sampler in ({}, {"up": True}, {"down": True}):
            stock = perturb(
                ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, time_embedding_norm=norm, **sampler)
            ).eval()
            twin = ShiftResnetBlock2D.like(stock).eval()
            assert not twin.conv2.weight.any()
            twin.load_state_dict(stock.state_dict(), strict=False)
            torch.nn.init.zeros_(twin.z_emb_proj.weight)
            torch.nn.init.zeros_(twin.z_emb_proj.bias)
            x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
            assert torch.equal(twin(x, Conditioning(temb, torch.randn(2, 6))), stock(x, temb))


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_the_branch_has_the_bases_middle_and_up_path(make_unet, shape):
    unet = make_unet(shape)
    decoder = ShiftDecoder.for_unet(unet, LATENT_DIM)
    blocks = [m for m in decoder.modules() if isinstance(m, ResnetBlock2D)]
    assert blocks
    assert all(isinstance(block, ShiftResnetBlock2D) for block in blocks)
    of_features = ("z_emb_proj", "z_embedding")
    own = {k: v.shape for k, v in decoder.state_dict().items() if not any(f in k for f in of_features)}
    twin = {k: v.shape for k, v in unet.state_dict().items() if k.startswith(("mid_block", "up_blocks", "conv_"))}
    assert own == {k: v for k, v in twin.items() if not k.startswith("conv_in")}


def test_z_is_projected_by_the_masked_linear_operator(parts):
    unet, decoder, x, z, windows = parts
    caught = []
    decoder.mid_block.resnets[0].register_forward_hook(lambda module, inputs, output: caught.append(inputs))
    seen = windows.see(z, T)
    shift_of(unet, decoder, x, T, seen)
    temb, zemb = caught[0][1]
    expected = masked_linear(seen.z_BD, seen.start_B, seen.end_B, decoder.z_embedding.weight, decoder.z_embedding.bias)
    assert torch.equal(zemb, expected)
    assert torch.equal(temb, run_down_path(unet, x, T).temb)


def test_save_and_load(parts, tmp_path):
    unet, decoder, x, z, windows = parts
    decoder.save_pretrained(tmp_path)
    loaded = ShiftDecoder.from_pretrained(tmp_path)
    assert loaded.config.latent_dim == LATENT_DIM
    with torch.no_grad():
        shifts = [shift_of(unet, d.eval(), x, T, windows.see(z, T)) for d in (decoder, loaded)]
    assert torch.equal(*shifts)


class TestObjective:
    """The base stays frozen and in eval mode through training."""

    @pytest.fixture
    def objective(self, make_unet, layout):
        unet = make_unet(dropout=0.5).requires_grad_(True).train()
        decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
        encoder = perturb(SemanticEncoder(16, 3, (8, 8), LATENT_DIM, 8, 2, 4))
        schedule = NoiseSchedule(1 - torch.linspace(1e-4, 0.02, 1000))
        return lambda mode="cumulative": FeatureObjective(unet, encoder, decoder, schedule, layout, mode)

    def test_train_leaves_the_base_in_eval_mode(self, objective):
        made = objective()
        for returned in (made.train(), made.train(False), made.train()):
            assert returned is made
            assert not any(m.training for m in made.unet.modules())
        assert made.encoder.training
        assert made.shift_decoder.training
        made.eval()
        assert not made.shift_decoder.training

    def test_the_base_never_gets_gradient(self, objective):
        made = objective().train()
        before = {k: v.clone() for k, v in made.unet.state_dict().items()}
        made(torch.randn(4, 3, 16, 16), T, torch.randn(4, 3, 16, 16)).mean().backward()
        assert all(p.grad is None and not p.requires_grad for p in made.unet.parameters())
        for module in made.trained_modules().values():
            assert all(p.grad is not None for p in module.parameters())
        assert all(torch.equal(before[k], v) for k, v in made.unet.state_dict().items())

    def test_loss_is_the_weighted_error_of_the_shifted_noise(self, objective):
        made = objective().eval()
        x0, noise = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
        with torch.no_grad():
            loss = made(x0, T, noise)
            schedule = made.schedule
            x_t = schedule.add_noise(x0, noise, T)
            seen = made.windows.see(made.encoder(x0), T)
            base, shift = predict(made.unet, made.shift_decoder, x_t, T, seen)[0]
            assert torch.equal(base, made.unet(x_t, T).sample)
            estimate = base + schedule.shift_coef[T].view(4, 1, 1, 1) * shift
            expected = schedule.loss_weight[T] * (noise - estimate).square().flatten(1).mean(1)
        assert loss.shape == (4,)
        torch.testing.assert_close(loss, expected)

    def test_dual_is_the_sum_of_both_modes(self, objective):
        x0, noise = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
        losses, gradients = {}, {}
        for mode in ("cumulative", "detached", "dual"):
            made = objective(mode).eval()
            made.zero_grad()
            losses[mode] = made(x0, T, noise)
            losses[mode].sum().backward()
            gradients[mode] = made.encoder.head.weight.grad.clone()
        assert torch.equal(losses["cumulative"], losses["detached"])
        torch.testing.assert_close(losses["dual"], 2 * losses["cumulative"])
        torch.testing.assert_close(gradients["dual"], gradients["cumulative"] + gradients["detached"])
        assert not torch.equal(gradients["cumulative"], gradients["detached"])

    def test_the_head_gets_gradient_for_its_chunk_only(self, objective):
        """At a time-step of chunk 1: rows of chunks 0 and 1 (cumulative), of chunk 1 alone (detached)."""
        for mode, rows in (("cumulative", range(8)), ("detached", range(4, 8))):
            made = objective(mode).eval()
            made.zero_grad()
            made(torch.randn(1, 3, 16, 16), T[1:2], torch.randn(1, 3, 16, 16)).sum().backward()
            reached = made.encoder.head.weight.grad.abs().sum(1).nonzero().flatten().tolist()
            assert reached == list(rows)
        assert CHUNKS * 4 == LATENT_DIM
