"""What `diti doctor` reports on precision, layout, kernels and attention: the choices that decide the speed."""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import diti_kernels
import torch
from diti_kernels.adaptive_group_norm import compiled_rows
from diti_kernels.attention import op as native_attention
from diti_kernels.winograd import op as winograd
from torch import nn

from diticli.doctor.finding import Finding
from diticli.errors import DiTiError
from diticli.models.attention import attention_choice
from diticli.models.build import build_encoder, build_unet
from diticli.models.compiled import CAPTURED_DEVICES, may_capture_steps
from diticli.models.device import resolve_precision
from diticli.models.encoder import SemanticEncoder
from diticli.models.layout import layout_choice
from diticli.models.modules import SelfAttention
from diticli.models.unet import UNet
from diticli.settings import build_config, preset_names


class AttentionShape(NamedTuple):
    """The shape of one self-attention layer.

    Attributes:
        network: "UNet" (the base and the shift branch alike) or "encoder".
        tokens: positions of the map.
        heads: how many.
        head_dim: channels of each.
        batch: images of a training step.
    """

    network: str
    tokens: int
    heads: int
    head_dim: int
    batch: int


def speed(device: torch.device) -> Iterator[Finding]:
    """Device, precision and layout, the kernels' implementation, and the operator of every attention of the presets."""
    yield from _precision(device)
    yield from _layout(device)
    yield from _kernels(device)
    yield from _compiled_in_c(device)
    yield from _graphs(device)
    yield from _attention(device)


def _precision(device: torch.device) -> Iterator[Finding]:
    precision = resolve_precision("auto", device)
    reason = "the hardware computes in it" if precision == "bf16" else "the hardware is slow in bf16"
    yield Finding(topic="speed", name="device", value=str(device))
    yield Finding(topic="speed", name="precision auto", value=f"{precision} ({reason})")


def _layout(device: torch.device) -> Iterator[Finding]:
    dtype = torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32
    try:
        name, reason = layout_choice(device, dtype)
        yield Finding(topic="speed", name="layout of maps", value=f"{name} ({reason})")
    except DiTiError as error:
        yield Finding(topic="speed", name="layout of maps", value=error.message, status="broken", remedy=error.remedy)


def _kernels(device: torch.device) -> Iterator[Finding]:
    for operation in (module.name for module in pkgutil.iter_modules(diti_kernels.__path__) if module.ispkg):
        if importlib.util.find_spec(f"diti_kernels.{operation}.triton_kernels") is None:
            continue
        try:
            backend, reason = diti_kernels.decide(device.type)
            yield Finding(topic="speed", name=f"kernel {operation}", value=f"{backend} ({reason})")
        except (ValueError, RuntimeError) as error:
            wrong, _, remedy = str(error).partition(". ")
            yield Finding(topic="speed", name=f"kernel {operation}", value=wrong, status="broken", remedy=remedy)


def _compiled_in_c(device: torch.device) -> Iterator[Finding]:
    """What float32 norms, convolutions and attention without a gradient run on a CPU."""
    if device.type != "cpu":
        return
    yield Finding(topic="speed", name="float32 norms in C", value=compiled_rows.why().reason)
    for name, operation in (("convolutions by Winograd", winograd), ("attention in C", native_attention)):
        found = operation.why()
        reason = found.reason if found.functions is None else operation.measured(torch.get_num_threads()).reason
        yield Finding(topic="speed", name=f"float32 {name}", value=reason)


def _graphs(device: torch.device) -> Iterator[Finding]:
    """What is launched as a whole on a GPU."""
    if device.type in CAPTURED_DEVICES:
        try:
            captured = may_capture_steps(device, processes=1, views=False)
        except DiTiError as error:
            yield Finding(topic="speed", name="CUDA graphs", value=error.message, status="broken", remedy=error.remedy)
            return
        value = "training steps that are not compiled, samplers' steps where that was faster (DITI_CUDA_GRAPH=0: none)"
        yield Finding(topic="speed", name="CUDA graphs", value=value if captured else "none (DITI_CUDA_GRAPH=0)")


def _attention(device: torch.device) -> Iterator[Finding]:
    users: dict[AttentionShape, list[str]] = {}
    for preset in preset_names():
        for shape in preset_attentions(preset):
            users.setdefault(shape, []).append(preset)
    try:
        for shape, presets in users.items():
            heads = f"{shape.heads} head{'s' * (shape.heads != 1)} of {shape.head_dim}, {shape.tokens} tokens"
            name = f"{', '.join(presets)}: {shape.network}, {heads}"
            yield Finding(topic="attention", name=name, value=_operators(device, *shape[1:]))
    except DiTiError as error:
        yield Finding(topic="attention", name="attention", value=error.message, status="broken", remedy=error.remedy)


def _operators(device: torch.device, tokens: int, heads: int, head_dim: int, batch: int) -> str:
    """What runs with and without a gradient, and why."""
    dtype = torch.bfloat16 if resolve_precision("auto", device) == "bf16" else torch.float32
    trained, frozen = (
        attention_choice(device, dtype, tokens=tokens, heads=heads, head_dim=head_dim, batch=batch, gradient=gradient)
        for gradient in (True, False)
    )
    if trained == frozen:
        return f"{trained.name} ({trained.reason})"
    return f"trained {trained.name} ({trained.reason}), else {frozen.name} ({frozen.reason})"


def preset_attentions(preset: str) -> list[AttentionShape]:
    """The distinct self-attentions of a preset's second stage, the UNet's from fine to coarse first.

    The networks are built without memory.

    Raises:
        ConfigError: for an unknown preset.
    """
    config = build_config(preset)
    with torch.device("meta"):
        unet = build_unet(config.unet, config.data.resolution)
        encoder = build_encoder(config)
    batch = config.features.batch_size
    of_unet = [AttentionShape("UNet", size**2, *_heads(block), batch) for size, block in _in_unet(unet)]
    of_encoder = [AttentionShape("encoder", size**2, *_heads(block), batch) for size, block in _in_encoder(encoder)]
    return list(dict.fromkeys(of_unet + of_encoder))


def _in_unet(unet: UNet) -> Iterator[tuple[int, Any]]:
    """Map size and block; the way up repeats the sizes of the way down."""
    size = unet.config.sample_size
    for level, block in enumerate(unet.down_blocks):
        yield from ((size >> level, attention) for attention in _attentions(block))
    if unet.mid_block is not None:
        yield from ((size >> (len(unet.down_blocks) - 1), attention) for attention in _attentions(unet.mid_block))


def _in_encoder(encoder: SemanticEncoder) -> Iterator[tuple[int, Any]]:
    if encoder.attention is not None:
        yield encoder.config.attention_size, encoder.attention


def _attentions(block: nn.Module) -> Iterator[Any]:
    return (module for module in block.modules() if isinstance(module, SelfAttention))


def _heads(block: Any) -> tuple[int, int]:
    return block.heads, block.inner_dim // block.heads
