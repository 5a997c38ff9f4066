"""The layout of official checkpoints, and what its blocks compute, written down a second time for the tests.

`walk` lists the blocks of an official UNet in the order in which they run; names, shapes and a functional forward
pass follow from that list alone, without our modules. Imports no diffusers, see conftest.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

State = dict[str, torch.Tensor]

UNETS: dict[str, dict[str, Any]] = {
    "two-levels": {"channel_multiplier": [1, 2], "attention_resolutions": [2]},
    "one-level": {"channel_multiplier": [1], "attention_resolutions": []},
    "four-levels": {
        "channel_multiplier": [1, 1, 2, 3],
        "num_residual_blocks_of_a_block": 2,
        "attention_resolutions": [2, 8],
    },
    "fractional": {"base_channel": 64, "channel_multiplier": [1, 1.5], "attention_resolutions": [1, 2]},
    "middle-attention-only": {"channel_multiplier": [1, 2, 2], "attention_resolutions": [16], "num_heads": 4},
    "heads-legacy": {"channel_multiplier": [1, 1], "attention_resolutions": [1, 2], "num_heads": 4},
    "heads-new": {
        "channel_multiplier": [1, 1],
        "attention_resolutions": [1, 2],
        "num_heads": 4,
        "use_new_attention_order": True,
    },
    "head-width": {"channel_multiplier": [1, 2], "attention_resolutions": [1, 2], "num_heads": 4, "head_channel": 16},
    "head-width-new": {
        "channel_multiplier": [1, 2, 4],
        "num_residual_blocks_of_a_block": 2,
        "attention_resolutions": [1, 4],
        "head_channel": 32,
        "use_new_attention_order": True,
    },
    "heads-at-several-widths": {"channel_multiplier": [1, 2], "attention_resolutions": [1, 2], "num_heads": 4},
    "heads-at-several-widths-new": {
        "channel_multiplier": [1, 2, 3],
        "attention_resolutions": [2],
        "num_heads": 2,
        "use_new_attention_order": True,
    },
}


def unet_settings(name: str = "two-levels", **changes: Any) -> dict[str, Any]:
    """A `denoise_fn_config`."""
    common = {
        "input_channel": 3,
        "base_channel": 32,
        "num_residual_blocks_of_a_block": 1,
        "num_heads": 1,
        "head_channel": -1,
        "use_new_attention_order": False,
        "dropout": 0.1,
    }
    return common | UNETS[name] | changes


class Block(NamedTuple):
    """A block's name, kind ("conv", "res", "down", "up", "attention"), channels, and whether it takes a skip."""

    name: str
    kind: str
    cin: int
    cout: int
    takes_skip: bool = False
    leaves_skip: bool = False


def walk(c: dict[str, Any], prefix: str = "") -> Iterator[Block]:
    """Every block of a UNet; with the prefix "shift_" only the shift branch's middle and up path."""
    base, layers, at = c["base_channel"], c["num_residual_blocks_of_a_block"], c["attention_resolutions"]
    widths = [int(m * base) for m in c["channel_multiplier"]]
    down = [Block("input_blocks.0.0", "conv", 3, widths[0], leaves_skip=True)]
    n, channels = 1, widths[0]
    for level, width in enumerate(widths):
        for _ in range(layers):
            attends = 2**level in at
            down.append(Block(f"input_blocks.{n}.0", "res", channels, width, leaves_skip=not attends))
            if attends:
                down.append(Block(f"input_blocks.{n}.1", "attention", width, width, leaves_skip=True))
            n, channels = n + 1, width
        if level + 1 < len(widths):
            down.append(Block(f"input_blocks.{n}.0", "down", width, width, leaves_skip=True))
            n += 1
    if not prefix:
        yield from down
    for i, kind in enumerate(("res", "attention", "res")):
        yield Block(f"{prefix}middle_block.{i}", kind, channels, channels)
    skips = [block.cout for block in down if block.leaves_skip]
    n = 0
    for level in reversed(range(len(widths))):
        for i in range(layers + 1):
            inner = [("res", channels + skips.pop(), widths[level])]
            channels = widths[level]
            inner += [("attention", channels, channels)] if 2**level in at else []
            inner += [("up", channels, channels)] if level and i == layers else []
            for j, (kind, cin, cout) in enumerate(inner):
                yield Block(f"{prefix}output_blocks.{n}.{j}", kind, cin, cout, takes_skip=j == 0)
            n += 1


def _block_shapes(block: Block, embed: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    cin, cout = block.cin, block.cout
    if block.kind == "conv":
        yield from _pair("", (cout, cin, 3, 3))
        return
    if block.kind == "attention":
        yield from _pair("norm.", (cout,))
        yield from _pair("qkv.", (3 * cout, cout, 1))
        yield from _pair("proj_out.", (cout, cout, 1))
        return
    yield from _pair("in_layers.0.", (cin,))
    yield from _pair("in_layers.2.", (cout, cin, 3, 3))
    yield from _pair("emb_layers.1.", (2 * cout, embed))
    if block.name.startswith("shift_"):
        yield from _pair("emb_z_layers.1.", (2 * cout, embed))
    yield from _pair("out_layers.0.", (cout,))
    yield from _pair("out_layers.3.", (cout, cout, 3, 3))
    if cin != cout:
        yield from _pair("skip_connection.", (cout, cin, 1, 1))


def _pair(prefix: str, weight: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}weight", weight
    yield f"{prefix}bias", weight[:1]


def unet_state(c: dict[str, Any], latent_dim: int | None = None) -> State:
    """Random `denoise_fn`, or with `latent_dim` a `decoder` (base and shift branch)."""
    base, first = c["base_channel"], int(c["channel_multiplier"][0] * c["base_channel"])
    embed, shapes = 4 * base, {}
    blocks = [*walk(c), *(walk(c, "shift_") if latent_dim else ())]
    shapes |= dict(_pair("time_embed.0.", (embed, base))) | dict(_pair("time_embed.2.", (embed, embed)))
    for block in blocks:
        shapes |= {f"{block.name}.{leaf}": shape for leaf, shape in _block_shapes(block, embed)}
    for prefix in ("", "shift_") if latent_dim else ("",):
        shapes |= dict(_pair(f"{prefix}out.0.", (first,))) | dict(_pair(f"{prefix}out.2.", (3, first, 3, 3)))
    if latent_dim:
        shapes |= dict(_pair("label_emb.", (embed, latent_dim)))
    return _random(shapes)


ENCODER_WIDTHS = {64: (64, 128, 128, 128), 128: (64, 128, 256, 256, 256)}


def encoder_layers(size: int) -> list[tuple[int, str]]:
    """(position, kind) in the encoder's Sequential, from the first convolution to the linear layer."""
    layers, position = [], 0
    for i in range(len(ENCODER_WIDTHS[size])):
        layers.append((position, "conv"))
        if size // 2 ** (i + 1) == 16:
            position += 1
            layers.append((position, "attention"))
        layers.append((position + 1, "norm"))
        position += 3
    return [*layers, (position + 1, "linear")]


def encoder_state(size: int = 64, latent_dim: int = 16) -> State:
    """Random `encoder` of the official class for images of `size` pixels."""
    widths, shapes, i, channels = ENCODER_WIDTHS[size], {}, -1, 3
    for position, kind in encoder_layers(size):
        name = f"encoder.{position}."
        if kind == "conv":
            i += 1
            shapes |= dict(_pair(name, (widths[i], channels, 3, 3)))
            channels = widths[i]
        elif kind == "attention":
            block = Block("", "attention", channels, channels)
            shapes |= {name + leaf: shape for leaf, shape in _block_shapes(block, 0)}
        elif kind == "norm":
            shapes |= dict(_pair(name, (channels,)))
        else:
            shapes |= dict(_pair(name, (latent_dim, channels * (size // 2 ** len(widths)) ** 2)))
    return _random(shapes)


def _random(shapes: dict[str, tuple[int, ...]]) -> State:
    """Nothing at zero, and about unit gain, so that every tensor shows in the output."""
    state = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape)
        if len(shape) == 1:
            state[name] = 0.2 * noise + (1.0 if name.endswith("weight") else 0.0)
        else:
            state[name] = noise / math.sqrt(math.prod(shape[1:]))
    return state


# the forward pass


def unet_forward(
    state: State, c: dict[str, Any], x: torch.Tensor, t: torch.Tensor, z: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The base's noise estimate, and with z the shift."""
    emb = _linear(state, "time_embed.2", F.silu(_linear(state, "time_embed.0", _sinusoids(t, c["base_channel"]))))
    zemb = None if z is None else _linear(state, "label_emb", z)
    skips: list[torch.Tensor] = []
    h = deepest = x
    base = list(walk(c))
    down = sum(block.name.startswith("input") for block in base)
    for block in base[:down]:
        h = _run(state, block, h, emb, None, c)
        if block.leaves_skip:
            skips.append(h)
    deepest = h

    def rest(blocks: list[Block], prefix: str, zemb: torch.Tensor | None) -> torch.Tensor:
        h, left = deepest, list(skips)
        for block in blocks:
            h = _run(state, block, torch.cat([h, left.pop()], 1) if block.takes_skip else h, emb, zemb, c)
        return _conv(state, f"{prefix}out.2", F.silu(_norm(state, f"{prefix}out.0", h)), 1)

    noise = rest(base[down:], "", None)
    return noise, None if zemb is None else rest(list(walk(c, "shift_")), "shift_", zemb)


def encoder_forward(state: State, x: torch.Tensor, size: int) -> torch.Tensor:
    """Features."""
    for position, kind in encoder_layers(size):
        name = f"encoder.{position}"
        if kind == "conv":
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], stride=2, padding=1)
        elif kind == "attention":
            x = attention(state, name, x, heads=4, new_order=False)
        elif kind == "norm":
            x = F.silu(_norm(state, name, x))
        else:
            x = _linear(state, name, x.flatten(1))
    return x


def _run(
    state: State, block: Block, x: torch.Tensor, emb: torch.Tensor, zemb: torch.Tensor | None, c: dict[str, Any]
) -> torch.Tensor:
    if block.kind == "conv":
        return _conv(state, block.name, x, 1)
    if block.kind == "attention":
        heads = c["num_heads"] if c["head_channel"] == -1 else block.cout // c["head_channel"]
        return attention(state, block.name, x, heads=heads, new_order=c["use_new_attention_order"])
    h = F.silu(_norm(state, f"{block.name}.in_layers.0", x))
    if block.kind == "down":
        x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
    elif block.kind == "up":
        x, h = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (x, h))
    h = _norm(state, f"{block.name}.out_layers.0", _conv(state, f"{block.name}.in_layers.2", h, 1))
    h = _modulate(h, _linear(state, f"{block.name}.emb_layers.1", F.silu(emb)))
    if zemb is not None:
        h = _modulate(h, _linear(state, f"{block.name}.emb_z_layers.1", F.silu(zemb)))
    h = _conv(state, f"{block.name}.out_layers.3", F.silu(h), 1)
    return h + (_conv(state, f"{block.name}.skip_connection", x, 0) if block.cin != block.cout else x)


def attention(state: State, name: str, x: torch.Tensor, *, heads: int, new_order: bool) -> torch.Tensor:
    """Residual self-attention, one head at a time."""
    n, channels, height, width = x.shape
    qkv = F.conv1d(_norm(state, f"{name}.norm", x).flatten(2), state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
    d, outputs = channels // heads, []
    for head in range(heads):
        starts = [part * channels + head * d if new_order else (3 * head + part) * d for part in range(3)]
        q, k, v = (qkv[:, start : start + d] for start in starts)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(d), dim=-1)
        outputs.append(v @ weights.transpose(1, 2))
    out = F.conv1d(torch.cat(outputs, 1), state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
    return x + out.view(n, channels, height, width)


def _modulate(h: torch.Tensor, scale_and_shift: torch.Tensor) -> torch.Tensor:
    scale, shift = scale_and_shift[:, :, None, None].chunk(2, dim=1)
    return h * (1 + scale) + shift


def _norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"])


def _conv(state: State, name: str, x: torch.Tensor, padding: int) -> torch.Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)


def _linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _sinusoids(t: torch.Tensor, dim: int) -> torch.Tensor:
    frequencies = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)
