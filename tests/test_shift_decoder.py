from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diti_kernels.masked_linear import masked_linear
from tiny_models import CHUNKS, LATENT_DIM, UNET_SHAPES, perturb
from torch.nn import functional as F

from diticli.models.blocks import run_resnet
from diticli.models.encoder import SemanticEncoder
from diticli.models.modulation import gather_weights, modulate, project_features
from diticli.models.modules import ResnetBlock
from diticli.models.noise_prediction import predict
from diticli.models.pipeline import unet_to_diffusers
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder, ShiftResnetBlock2D
from diticli.models.unet_forward import run_down_path
from diticli.schedule import NoiseSchedule
from diticli.training.objectives import FeatureObjective

# One timestep in each chunk of the four-chunk layout, from the finest on.
T = torch.tensor([10, 300, 600, 990])


@pytest.fixture
def parts(make_unet, layout):
    """(unet, perturbed shift decoder, x_t [4], z [4, D], windows)."""
    unet = make_unet()
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM))
    return unet, decoder, torch.randn(4, 3, 16, 16), torch.randn(4, LATENT_DIM), ChunkWindows(layout)


def shift_of(unet, decoder, x, t, z, windows, detach_others=False):
    return predict(unet, decoder, x, t, decoder.project(z, t, windows, detach_others))[0].shift


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_a_fresh_branch_shifts_nothing(make_unet, shape):
    unet = make_unet(shape)
    decoder = ShiftDecoder.for_unet(unet, LATENT_DIM).eval()
    size = unet.config.sample_size
    x, z = torch.randn(2, 3, size, size), torch.randn(2, LATENT_DIM)
    shift = decoder(run_down_path(unet, x, T[:2]), decoder.project(z, T[:2], None))
    assert shift.shape == x.shape
    assert torch.equal(shift, torch.zeros_like(x))


@pytest.mark.parametrize("shape", UNET_SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_shape_learns(make_unet, layout, shape, memory_format):
    """In both memory formats, with features that are frozen: the norm is our own operation, with its own backward."""
    unet = make_unet(shape).to(memory_format=memory_format)
    decoder = perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)).to(memory_format=memory_format)
    size = unet.config.sample_size
    x = torch.randn(2, 3, size, size).to(memory_format=memory_format)
    z = torch.randn(2, LATENT_DIM, requires_grad=True)
    shift_of(unet, decoder, x, T[2:], z, ChunkWindows(layout)).square().mean().backward()
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
    x, z = torch.randn(2, 3, size, size), torch.randn(2, LATENT_DIM)
    with torch.no_grad():
        plain = shift_of(unet, decoder, x, T[:2], z, None)
        unet.to(memory_format=torch.channels_last)
        last = shift_of(unet, decoder, x.to(memory_format=torch.channels_last), T[:2], z, None)
    torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


@pytest.mark.parametrize("visible", ["prefix", "all"])
def test_the_branch_sees_exactly_the_visible_dims(parts, layout, visible):
    unet, decoder, x, z, _ = parts
    layout = replace(layout, visible=visible)
    windows = ChunkWindows(layout)
    with torch.no_grad():
        base = shift_of(unet, decoder, x, T, z, windows)
        for dim in range(LATENT_DIM):
            other = z.clone()
            other[:, dim] += 1
            changed = shift_of(unet, decoder, x, T, other, windows)
            for sample, t in enumerate(T):
                hidden = dim not in range(*layout.visible_dims()[t])
                assert torch.equal(changed[sample], base[sample]) == hidden


def test_hidden_dims_may_hold_nan(parts):
    unet, decoder, x, z, windows = parts
    poisoned = z.clone()
    poisoned[0, 4:] = torch.nan
    with torch.no_grad():
        shift = shift_of(unet, decoder, x, T, poisoned, windows)
        expected = shift_of(unet, decoder, x, T, z, windows)
    assert torch.equal(shift, expected)


def test_without_a_mask_everything_is_seen(parts):
    unet, decoder, x, z, windows = parts
    last = torch.full_like(T, 999)
    with torch.no_grad():
        at_the_end = [shift_of(unet, decoder, x, last, z, mask) for mask in (windows, None)]
        early = [shift_of(unet, decoder, x, T, z, mask) for mask in (windows, None)]
    assert torch.equal(*at_the_end)
    assert not torch.equal(early[0][0], early[1][0])


@pytest.mark.parametrize("detach_others", [False, True])
@pytest.mark.parametrize("visible", ["prefix", "all"])
def test_gradient_reaches_what_is_seen_or_the_own_slice(parts, layout, detach_others, visible):
    unet, decoder, x, z, _ = parts
    layout = replace(layout, visible=visible)
    windows = ChunkWindows(layout)
    z.requires_grad_()
    shift = shift_of(unet, decoder, x, T, z, windows, detach_others)
    shift.square().sum().backward()
    for sample, t in enumerate(T):
        window = layout.own_dims()[t] if detach_others else layout.visible_dims()[t]
        reached = (z.grad[sample] != 0).nonzero().flatten().tolist()
        assert reached == list(range(*window))


def test_both_gradient_modes_have_the_same_value_and_weight_gradients(parts):
    unet, decoder, x, z, windows = parts
    runs = []
    for detach in (False, True):
        decoder.zero_grad()
        shift = shift_of(unet, decoder, x, T, z, windows, detach)
        shift.square().sum().backward()
        runs.append((shift, [p.grad for p in decoder.parameters()]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))


def run_block(block, x, temb, zemb):
    """The shift branch's block under both embeddings."""
    z_mod = project_features([block.z_emb_proj], zemb)
    return run_resnet(block, x, next(modulate([block], gather_weights([block]), temb, z_mod)))


@pytest.mark.parametrize("norm", ["default", "scale_shift"])
def test_block_formula(norm):
    block = ShiftResnetBlock2D(in_channels=8, out_channels=4, temb_channels=6, groups=4, time_embedding_norm=norm)
    perturb(block).double().eval()
    x, temb, zemb = (torch.randn(*s, dtype=torch.float64) for s in ((2, 8, 4, 4), (2, 6), (2, 6)))
    h = block.conv1(F.silu(block.norm1(x)))
    time = block.time_emb_proj(F.silu(temb))[:, :, None, None]
    if norm == "scale_shift":
        s_t, b_t = time.chunk(2, dim=1)
        h = block.norm2(h) * (1 + s_t) + b_t
    else:
        h = block.norm2(h + time)
    s_z, b_z = block.z_emb_proj(F.silu(zemb))[:, :, None, None].chunk(2, dim=1)
    expected = block.conv_shortcut(x) + block.conv2(F.silu(h * (1 + s_z) + b_z))
    ours = run_block(block, x, temb, zemb)
    torch.testing.assert_close(ours, expected)
    weight = torch.randn_like(expected)
    found = [torch.autograd.grad((y * weight).sum(), list(block.parameters())) for y in (ours, expected)]
    torch.testing.assert_close(*found)


def test_without_features_the_block_is_the_stock_one():
    """s_z = b_z = 0 leaves diffusers' own block, whatever its kind."""
    for norm in ("default", "scale_shift"):
        for sampler in ({}, {"up": True}, {"down": True}):
            stock = perturb(
                ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, time_embedding_norm=norm, **sampler)
            ).eval()
            block = ResnetBlock(in_channels=8, temb_channels=6, groups=4, time_embedding_norm=norm, **sampler)
            twin = ShiftResnetBlock2D.like(block).eval()
            assert not twin.conv2.weight.any()
            twin.load_state_dict(stock.state_dict(), strict=False)
            torch.nn.init.zeros_(twin.z_emb_proj.weight)
            torch.nn.init.zeros_(twin.z_emb_proj.bias)
            x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 6)
            torch.testing.assert_close(run_block(twin, x, temb, torch.randn(2, 6)), stock(x, temb))


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_the_branch_has_the_bases_middle_and_up_path(make_unet, shape):
    unet = make_unet(shape)
    decoder = ShiftDecoder.for_unet(unet, LATENT_DIM)
    blocks = [m for m in decoder.modules() if isinstance(m, ResnetBlock)]
    assert blocks
    assert all(isinstance(block, ShiftResnetBlock2D) for block in blocks)
    of_features = ("z_emb_proj", "z_embedding")
    own = {k: v.shape for k, v in decoder.state_dict().items() if not any(f in k for f in of_features)}
    twin = {k: v.shape for k, v in unet.state_dict().items() if k.startswith(("mid_block", "up_blocks", "conv_"))}
    assert own == {k: v for k, v in twin.items() if not k.startswith("conv_in")}


def test_z_is_projected_by_the_masked_linear_operator_and_all_blocks_at_once(parts):
    _, decoder, _, z, windows = parts
    zemb = masked_linear(z, T, windows.visible_T2, decoder.z_embedding.weight, decoder.z_embedding.bias)
    blocks = [m for m in decoder.modules() if isinstance(m, ShiftResnetBlock2D)]
    each = [block.z_emb_proj(F.silu(zemb)).chunk(2, dim=1) for block in blocks]
    expected = torch.cat([scale for scale, _ in each] + [shift for _, shift in each], dim=1)
    torch.testing.assert_close(decoder.project(z, T, windows), expected)


def test_projected_features_are_constant_within_a_chunk(parts, layout):
    _, decoder, _, z, windows = parts
    by_chunk = {}
    for t in range(0, layout.timesteps, 50):
        by_chunk.setdefault(layout.chunk_of(t), []).append(decoder.project(z, torch.tensor([t]), windows))
    assert len(by_chunk) == CHUNKS
    assert all(torch.equal(first, other) for first, *others in by_chunk.values() for other in others)
    firsts = [found[0] for found in by_chunk.values()]
    assert not any(torch.equal(a, b) for a, b in pairwise(firsts))
    assert torch.equal(firsts[0], decoder.project(z, torch.zeros(4, dtype=torch.long), windows))


def test_one_timestep_serves_all_samples(parts):
    unet, decoder, x, z, windows = parts
    with torch.no_grad():
        shared = shift_of(unet, decoder, x, T[1:2], z, windows)
        each = shift_of(unet, decoder, x, T[1:2].expand(4), z, windows)
    torch.testing.assert_close(shared, each)


def test_the_base_runs_once_for_all_sets_of_features(parts):
    unet, decoder, x, z, windows = parts
    runs = []
    unet.conv_in.register_forward_hook(lambda *_: runs.append(1))
    modes = [decoder.project(z, T, windows, detach) for detach in (False, True)]
    first, second = predict(unet, decoder, x, T, *modes)
    assert len(runs) == 1
    assert torch.equal(first.shift, second.shift)


def test_save_and_load(parts, tmp_path):
    unet, decoder, x, z, windows = parts
    decoder.save_pretrained(tmp_path)
    loaded = ShiftDecoder.from_pretrained(tmp_path)
    assert loaded.config.latent_dim == LATENT_DIM
    with torch.no_grad():
        shifts = [shift_of(unet, d.eval(), x, T, z, windows) for d in (decoder, loaded)]
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
            z_mod = made.shift_decoder.project(made.encoder(x0), T, made.windows)
            base, shift = predict(made.unet, made.shift_decoder, x_t, T, z_mod)[0]
            torch.testing.assert_close(base, unet_to_diffusers(made.unet)(x_t, T).sample)
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
        """At a timestep of chunk 1: rows of chunks 0 and 1 (cumulative), of chunk 1 alone (detached)."""
        for mode, rows in (("cumulative", range(8)), ("detached", range(4, 8))):
            made = objective(mode).eval()
            made.zero_grad()
            made(torch.randn(1, 3, 16, 16), T[1:2], torch.randn(1, 3, 16, 16)).sum().backward()
            reached = made.encoder.head.weight.grad.abs().sum(1).nonzero().flatten().tolist()
            assert reached == list(rows)
        assert CHUNKS * 4 == LATENT_DIM
