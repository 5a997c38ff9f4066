import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch.nn import functional as F

from diticli.errors import ConfigError
from diticli.models.blocks import run_attention
from diticli.models.build import build_encoder
from diticli.models.encoder import SemanticEncoder
from diticli.settings import build_config


def stock_attention(encoder):
    """The encoder's attention as diffusers computes it."""
    options = {"heads": 2, "dim_head": 4, "norm_num_groups": 4, "eps": 1e-5, "bias": True}
    block = Attention(8, **options, residual_connection=True, _from_deprecated_attn_block=True)
    block.load_state_dict(encoder.attention.state_dict())
    return block


def tiny(**changes):
    sizes = {"sample_size": 16, "widths": (8, 12), "latent_dim": 6, "attention_size": 8}
    return SemanticEncoder(**sizes | {"attention_heads": 2, "norm_num_groups": 4} | changes)


@pytest.mark.parametrize(
    ("preset", "map_size", "attention_after"), [("faces32", 4, -1), ("celeba64", 4, 1), ("ffhq128", 4, 2)]
)
def test_presets(preset, map_size, attention_after):
    config = build_config(preset)
    with torch.device("meta"):
        encoder = build_encoder(config)
    size = config.data.resolution
    with torch.no_grad():
        features = encoder.to_empty(device="cpu")(torch.zeros(2, 3, size, size))
    assert features.shape == (2, config.chunks.latent_dim)
    assert encoder.attention_after == attention_after  # where the map has the preset's attention size
    assert encoder.attention is None or encoder.attention.heads == 4
    assert encoder.head.in_features == config.encoder.widths[-1] * map_size**2


def test_size_of_the_official_celeba64_encoder():
    with torch.device("meta"):
        encoder = build_encoder(build_config("celeba64"))
    assert sum(p.numel() for p in encoder.parameters()) == 1_487_104


def test_forward_is_conv_attention_norm_silu():
    encoder = tiny()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 16, 16)
    h = stock_attention(encoder)(encoder.convs[0](x))
    h = F.silu(F.group_norm(h, 4, encoder.norms[0].weight, encoder.norms[0].bias))
    h = encoder.convs[1](h)
    h = F.silu(F.group_norm(h, 4, encoder.norms[1].weight, encoder.norms[1].bias))
    expected = h.flatten(1) @ encoder.head.weight.T + encoder.head.bias
    torch.testing.assert_close(encoder(x), expected)


def test_attention_is_the_identity_at_first_and_attends_afterwards():
    encoder = tiny()
    h = torch.randn(1, 8, 8, 8)
    assert torch.equal(run_attention(encoder.attention, h), h)
    torch.nn.init.normal_(encoder.attention.to_out[0].weight)
    other = h.clone()
    other[..., 0, 0] += 1  # a far pixel is seen
    attended, changed = (run_attention(encoder.attention, x)[..., 7, 7] for x in (h, other))
    assert not torch.equal(attended, changed)


def test_attention_is_left_out_where_no_map_has_its_size():
    encoder = tiny(attention_size=16)
    assert encoder.attention is None
    assert encoder(torch.randn(1, 3, 16, 16)).shape == (1, 6)


def test_every_parameter_gets_gradient_once_attention_has_left_zero():
    encoder = tiny()
    torch.nn.init.normal_(encoder.attention.to_out[0].weight)
    encoder(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    # A bias on the keys shifts all scores alike: its gradient is zero by nature.
    silent = {n for n, p in encoder.named_parameters() if not p.grad.abs().max() > 1e-7}
    assert silent <= {"attention.to_k.bias"}


def test_features_do_not_depend_on_the_rest_of_the_batch():
    encoder, x = tiny().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3]))


def test_save_and_load(tmp_path):
    encoder = tiny()
    encoder.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    loaded = SemanticEncoder.from_pretrained(tmp_path)
    assert (loaded.config.latent_dim, tuple(loaded.config.widths)) == (6, (8, 12))
    x = torch.randn(1, 3, 16, 16)
    assert torch.equal(encoder(x), loaded(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_size": 18}, "2 stride-2 convolutions needs a resolution divisible by 4, got 18"),
        ({"widths": (8, 10)}, r"widths \[10\] are not divisible by 4 groups and 2 heads"),
        ({"attention_heads": 3}, r"widths \[8\] are not divisible by 4 groups and 3 heads"),
    ],
)
def test_sizes_that_do_not_divide(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
