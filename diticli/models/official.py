"""Official DiTi and PDAE weights -> our modules.

The official UNet (guided-diffusion's) is exactly a diffusers `UNet2DModel` with resnet resampling and
`scale_shift`; only names differ, and the fused qkv is split. Nothing here executes a pickle or a config.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DModel

from diticli.errors import ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.shift_decoder import ShiftDecoder

StateDict = Mapping[str, torch.Tensor]

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "emb_z_layers.1": "z_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}


def unet_config(denoise_fn_config: Mapping[str, Any], resolution: int) -> dict[str, Any]:
    """`UNet2DModel` config of an official `denoise_fn_config`.

    Raises:
        ModelError: for a shape that `UNet2DModel` cannot express.
    """
    c = denoise_fn_config
    multipliers = list(c["channel_multiplier"])
    if multipliers[0] != 1:
        raise ModelError(f"The first channel multiplier must be 1, got {multipliers[0]}.")
    channels = [int(m * c["base_channel"]) for m in multipliers]
    with_attention = [2**level in c["attention_resolutions"] for level in range(len(channels))]
    return {
        "sample_size": resolution,
        "in_channels": c["input_channel"],
        "out_channels": c["input_channel"],
        "block_out_channels": tuple(channels),
        "layers_per_block": c["num_residual_blocks_of_a_block"],
        "down_block_types": tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in with_attention),
        "up_block_types": tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(with_attention)),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": _head_dim(c, channels, with_attention),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "dropout": float(c.get("dropout", 0.0)),
    }


def _head_dim(c: Mapping[str, Any], channels: list[int], with_attention: list[bool]) -> int | None:
    if c["head_channel"] != -1:
        return int(c["head_channel"])
    if c["num_heads"] == 1:
        return None  # one head as wide as its block
    widths = {ch for ch, a in zip(channels, with_attention, strict=True) if a} | {channels[-1]}
    if len(widths) > 1:
        raise ModelError(
            f"{c['num_heads']} heads at several widths {sorted(widths)}: diffusers fixes the head's width instead."
        )
    return channels[-1] // int(c["num_heads"])


def unet_state(official: StateDict, config: Mapping[str, Any], *, legacy_qkv: bool = True) -> dict[str, torch.Tensor]:
    """State dict of the base `UNet2DModel` from an official UNet (the shift branch's tensors are left out)."""
    names = dict(_unet_names(config, prefix=""))
    names |= {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    return _rename(official, names, config, legacy_qkv)


def shift_state(official: StateDict, config: Mapping[str, Any], *, legacy_qkv: bool = True) -> dict[str, torch.Tensor]:
    """State dict of our `ShiftDecoder` from an official ShiftUNet."""
    names = {o: n for o, n in _unet_names(config, prefix="shift_") if o.startswith("shift_")}
    names |= {"label_emb": "z_embedding", "shift_out.0": "conv_norm_out", "shift_out.2": "conv_out"}
    return _rename(official, names, config, legacy_qkv)


def encoder_state(official: StateDict) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Config and state dict of our `SemanticEncoder` from an official encoder (a Sequential).

    Raises:
        ModelError: when the layers are not those of a DiTi encoder.
    """
    layers: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in official.items():
        parts = name.split(".", 2)
        if len(parts) != 3 or not parts[1].isdigit():
            raise ModelError(f"Not a DiTi encoder: it holds {name!r}.")
        layers.setdefault(int(parts[1]), {})[parts[2]] = tensor
    state: dict[str, torch.Tensor] = {}
    widths: list[int] = []
    attention_after, norms = -1, 0
    for index in sorted(layers):
        layer = layers[index]
        if "qkv.weight" in layer:
            attention_after = len(widths) - 1
            state |= _prefixed("attention", _attention_state(layer, heads=4, legacy=True))
        elif "weight" not in layer:
            raise ModelError(f"Not a DiTi encoder: layer {index} holds {sorted(layer)}.")
        elif layer["weight"].ndim == 4:
            state |= _prefixed(f"convs.{len(widths)}", layer)
            widths.append(layer["weight"].shape[0])
        elif layer["weight"].ndim == 1:
            state |= _prefixed(f"norms.{norms}", layer)
            norms += 1
        else:
            state |= _prefixed("head", layer)
    if norms != len(widths) or "head.weight" not in state:
        raise ModelError(f"Not a DiTi encoder: {len(widths)} convolutions, {norms} norms.")
    side = int((state["head.weight"].shape[1] // widths[-1]) ** 0.5)
    size = side * 2 ** len(widths)
    config = {
        "sample_size": size,
        "in_channels": state["convs.0.weight"].shape[1],
        "widths": tuple(widths),
        "latent_dim": state["head.weight"].shape[0],
        "attention_size": size // 2 ** (attention_after + 1) if attention_after >= 0 else 0,
    }
    return config, state


def load_exactly(module: torch.nn.Module, state: StateDict, what: str) -> None:
    """Load `state` into `module`; anything missing, left over or mis-shaped is an error naming it."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or shapes:
        raise ModelError(f"The {what} does not fit: missing {missing[:3]}, left over {extra[:3]}, shapes {shapes[:3]}.")
    module.load_state_dict(dict(state))


def from_official(
    encoder: StateDict, decoder: StateDict, denoise_fn_config: Mapping[str, Any], *, latent_dim: int
) -> tuple[UNet2DModel, SemanticEncoder, ShiftDecoder]:
    """Base, encoder and shift decoder of one official checkpoint (`ema_encoder`, `ema_decoder`)."""
    enc_config, enc_state = encoder_state(encoder)
    config = unet_config(denoise_fn_config, enc_config["sample_size"])
    legacy = not denoise_fn_config["use_new_attention_order"]
    unet = UNet2DModel(**config)
    load_exactly(unet, unet_state(decoder, config, legacy_qkv=legacy), "base")
    enc = SemanticEncoder(**enc_config)
    load_exactly(enc, enc_state, "encoder")
    shift = ShiftDecoder.for_unet(unet, latent_dim)
    load_exactly(shift, shift_state(decoder, config, legacy_qkv=legacy), "shift decoder")
    return unet.requires_grad_(False).eval(), enc.eval(), shift.eval()


def _unet_names(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """(official module, our module) for every residual and attention block."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    attention = [kind.startswith("Attn") for kind in config["down_block_types"]]
    block = 1
    for level in range(levels):
        for i in range(layers):
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}"
            if attention[level]:
                yield f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}"
            block += 1
        if level < levels - 1:
            yield f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0"
            block += 1
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"{prefix}middle_block.{i}", f"mid_block.{name}"
    block = 0
    for up, level in enumerate(reversed(range(levels))):
        for i in range(layers + 1):
            yield f"{prefix}output_blocks.{block}.0", f"up_blocks.{up}.resnets.{i}"
            if attention[level]:
                yield f"{prefix}output_blocks.{block}.1", f"up_blocks.{up}.attentions.{i}"
            if level and i == layers:
                yield f"{prefix}output_blocks.{block}.{1 + attention[level]}", f"up_blocks.{up}.upsamplers.0"
            block += 1


def _rename(
    official: StateDict, names: dict[str, str], config: Mapping[str, Any], legacy: bool
) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for theirs, ours in names.items():
        layer = {k[len(theirs) + 1 :]: v for k, v in official.items() if k.startswith(theirs + ".")}
        if "qkv.weight" in layer:
            width = layer["qkv.weight"].shape[1]
            layer = _attention_state(layer, heads=width // (config["attention_head_dim"] or width), legacy=legacy)
        elif "in_layers.0.weight" in layer:
            layer = _swap_prefixes(layer, _RESNET)
        state |= _prefixed(ours, layer)
    return state


def _attention_state(layer: StateDict, *, heads: int, legacy: bool) -> dict[str, torch.Tensor]:
    """Split the fused qkv: heads first, then q, k, v (legacy), or q, k, v first (the new order)."""
    state = _swap_prefixes({k: _squeeze(v) for k, v in layer.items() if not k.startswith("qkv")}, _ATTENTION)
    for kind in ("weight", "bias"):
        fused = _squeeze(layer[f"qkv.{kind}"])
        rest = fused.shape[1:]
        split = fused.view(heads, 3, -1, *rest).transpose(0, 1) if legacy else fused.view(3, -1, *rest)
        for name, part in zip(("to_q", "to_k", "to_v"), split, strict=True):
            state[f"{name}.{kind}"] = part.reshape(-1, *rest).contiguous()
    return state


def _squeeze(tensor: torch.Tensor) -> torch.Tensor:
    """A 1x1 convolution's weight [O, I, 1] as a linear one's [O, I]."""
    return tensor.squeeze(-1) if tensor.ndim == 3 else tensor


def _swap_prefixes(layer: StateDict, table: Mapping[str, str]) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in layer.items():
        theirs, _, leaf = name.rpartition(".")
        if theirs not in table:
            raise ModelError(f"Unknown tensor {name!r} in an official block.")
        out[f"{table[theirs]}.{leaf}"] = tensor
    return out


def _prefixed(prefix: str, layer: StateDict) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in layer.items()}
