"""Official DiTi and PDAE weights -> our modules.

The official UNet (guided-diffusion's) is exactly a diffusers `UNet2DModel` with resnet resampling and
`scale_shift`; only names differ, and the fused qkv is split. For every tensor of our modules this file says which
official tensor it comes from; loading then checks that each official tensor is used, once, in its shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from diticli.errors import ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.modules import SelfAttention
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.official.config import encoder_config, new_qkv_order, unet_config

StateDict = Mapping[str, torch.Tensor]

# Within a residual or attention block: our module -> theirs.
_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "z_emb_proj": "emb_z_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
    "group_norm": "norm",
    "to_q": "qkv",
    "to_k": "qkv",
    "to_v": "qkv",
    "to_out.0": "proj_out",
}
_SHOWN = 4


class ConvertedPart(NamedTuple):
    """One of our modules and, for each of its (outermost mapped) submodules, the official one."""

    module: nn.Module
    names: Mapping[str, str]


class _Source(NamedTuple):
    """The official tensor that one of ours comes from; `part` 0, 1, 2 is q, k, v of a fused one."""

    name: str
    part: int | None
    shape: tuple[int, ...]


def from_official(
    encoder: StateDict,
    decoder: StateDict,
    denoise_fn_config: Mapping[str, Any],
    *,
    encoder_model: str,
    latent_dim: int,
) -> tuple[UNet, SemanticEncoder, ShiftDecoder]:
    """Base, encoder and shift decoder of one official checkpoint, in eval mode, sharing its memory.

    Args:
        encoder: `ema_encoder` or `encoder`.
        decoder: `ema_decoder` or `decoder`, which holds the base as well.
        denoise_fn_config: of the pre-trained DPM.
        encoder_model: class of the encoder, e.g. "CELEBA64Encoder".
        latent_dim: d.

    Raises:
        ModelError: for another architecture, and for tensors that are missing, left over or mis-shaped.
    """
    enc = encoder_from_official(encoder, encoder_model, latent_dim=latent_dim)
    config = unet_config(denoise_fn_config, enc.config.sample_size)
    with torch.device("meta"):
        unet = UNet(**config)
        shift = ShiftDecoder(unet_config=config, latent_dim=latent_dim)
    parts = (ConvertedPart(unet, _base_names(config)), ConvertedPart(shift, _shift_names(config)))
    load_parts(
        parts,
        decoder,
        "decoder",
        new_qkv=new_qkv_order(denoise_fn_config),
    )
    return unet.requires_grad_(False).eval(), enc, shift.eval()


def encoder_from_official(official: StateDict, model: str, *, latent_dim: int) -> SemanticEncoder:
    """The encoder alone, in eval mode.

    Raises:
        ModelError: as `from_official`.
    """
    with torch.device("meta"):
        encoder = SemanticEncoder(**encoder_config(model, latent_dim))
    load_parts([ConvertedPart(encoder, dict(_encoder_names(encoder)))], official, "encoder")
    return encoder.eval()


def base_from_official(official: StateDict, denoise_fn_config: Mapping[str, Any], resolution: int | None) -> UNet:
    """The base alone, from a pre-trained DPM's `ema_denoise_fn` or `denoise_fn`, frozen and in eval mode.

    Raises:
        ModelError: as `from_official`.
    """
    config = unet_config(denoise_fn_config, resolution)
    with torch.device("meta"):
        unet = UNet(**config)
    load_parts(
        [ConvertedPart(unet, _base_names(config))],
        official,
        "denoise_fn",
        new_qkv=new_qkv_order(denoise_fn_config),
    )
    return unet.requires_grad_(False).eval()


def load_parts(parts: Sequence[ConvertedPart], official: StateDict, what: str, *, new_qkv: bool = False) -> None:
    """Fill modules, which may be on the meta device, from one official state dict.

    Args:
        parts: modules whose tensors together are those of `official`.
        official: names -> tensors; they are taken over without a copy where possible.
        what: name of `official` in messages.
        new_qkv: the fused qkv holds q, k, v first and heads within; else heads first (legacy).

    Raises:
        ModelError: naming every kind of official tensor that is missing, left over, or mis-shaped.
    """
    sources = [{key: _source(key, value, part) for key, value in part.module.state_dict().items()} for part in parts]
    _check({s.name: s.shape for named in sources for s in named.values()}, official, what)
    for part, named in zip(parts, sources, strict=True):
        state = {key: _take(part.module, key, source, official, new_qkv) for key, source in named.items()}
        part.module.load_state_dict(state, assign=True)


def _check(expected: Mapping[str, tuple[int, ...]], official: StateDict, what: str) -> None:
    missing, extra = sorted(expected.keys() - official.keys()), sorted(official.keys() - expected.keys())
    shapes = [
        f"{name} is {list(official[name].shape)} where {list(shape)} belongs"
        for name, shape in expected.items()
        if name in official and tuple(official[name].shape) != shape
    ]
    found = [
        f"{kind}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for kind, names in (("missing", missing), ("left over", extra), ("mis-shaped", shapes))
        if names
    ]
    if found:
        raise ModelError(
            f"The tensors of the official {what} are not those of its config; {'; '.join(found)}.",
            remedy="Check that the configs belong to this checkpoint (--ddpm-config names the pre-trained DPM's).",
        )


def _source(key: str, tensor: torch.Tensor, part: ConvertedPart) -> _Source:
    """Where our tensor `key` comes from."""
    path, _, leaf = key.rpartition(".")
    block, inner = path, ""
    while block not in part.names:
        block, _, head = block.rpartition(".")
        inner = f"{head}.{inner}" if inner else head
    theirs = f"{part.names[block]}.{_INNER[inner]}" if inner else part.names[block]
    shape = tuple(tensor.shape)
    if inner in ("to_q", "to_k", "to_v"):
        shape = (3 * shape[0], *shape[1:])
    if inner in ("to_q", "to_k", "to_v", "to_out.0") and leaf == "weight":
        shape = (*shape, 1)  # theirs is a 1x1 convolution
    return _Source(f"{theirs}.{leaf}", {"to_q": 0, "to_k": 1, "to_v": 2}.get(inner), shape)


def _take(module: nn.Module, key: str, source: _Source, official: StateDict, new_qkv: bool) -> torch.Tensor:
    tensor = official[source.name].detach().float()
    if tensor.ndim == 3:
        tensor = tensor.squeeze(-1)
    if source.part is None:
        return tensor
    block = module.get_submodule(key.rpartition(".to_")[0])
    assert isinstance(block, SelfAttention)
    rest = tensor.shape[1:]
    split = tensor.view(3, -1, *rest) if new_qkv else tensor.view(block.heads, 3, -1, *rest).transpose(0, 1)
    return split[source.part].reshape(-1, *rest).clone(memory_format=torch.contiguous_format)


def _base_names(config: Mapping[str, Any]) -> dict[str, str]:
    outer = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    return outer | dict(_down_names(config)) | dict(_up_names(config, prefix=""))


def _shift_names(config: Mapping[str, Any]) -> dict[str, str]:
    outer = {"z_embedding": "label_emb", "conv_norm_out": "shift_out.0", "conv_out": "shift_out.2"}
    return outer | dict(_up_names(config, prefix="shift_"))


def _with_attention(config: Mapping[str, Any]) -> list[bool]:
    return [kind.startswith("Attn") for kind in config["down_block_types"]]


def _down_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(our block, theirs) on the way down, where their blocks are numbered through."""
    block, levels = 1, len(config["block_out_channels"])
    for level, attention in enumerate(_with_attention(config)):
        for i in range(config["layers_per_block"]):
            yield f"down_blocks.{level}.resnets.{i}", f"input_blocks.{block}.0"
            if attention:
                yield f"down_blocks.{level}.attentions.{i}", f"input_blocks.{block}.1"
            block += 1
        if level < levels - 1:
            yield f"down_blocks.{level}.downsamplers.0", f"input_blocks.{block}.0"
            block += 1


def _up_names(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """(our block, theirs) in the middle and on the way up; the prefix is "shift_" in the shift branch."""
    for i, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        yield f"mid_block.{name}", f"{prefix}middle_block.{i}"
    block, layers, attention = 0, config["layers_per_block"], _with_attention(config)
    for up, level in enumerate(reversed(range(len(attention)))):
        for i in range(layers + 1):
            yield f"up_blocks.{up}.resnets.{i}", f"{prefix}output_blocks.{block}.0"
            if attention[level]:
                yield f"up_blocks.{up}.attentions.{i}", f"{prefix}output_blocks.{block}.1"
            if level and i == layers:
                yield f"up_blocks.{up}.upsamplers.0", f"{prefix}output_blocks.{block}.{1 + attention[level]}"
            block += 1


def _encoder_names(encoder: SemanticEncoder) -> Iterator[tuple[str, str]]:
    """(our module, theirs): a Sequential of conv, [attention,] norm, SiLU, ... view, linear."""
    position = 0
    for i in range(len(encoder.convs)):
        yield f"convs.{i}", f"encoder.{position}"
        if i == encoder.attention_after:
            position += 1
            yield "attention", f"encoder.{position}"
        yield f"norms.{i}", f"encoder.{position + 1}"
        position += 3
    yield "head", f"encoder.{position + 1}"
