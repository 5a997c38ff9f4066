"""Inference copies of base and shift decoder: one dtype, and what depends on weights alone computed once.

`FrozenBase` and `FrozenShift` copy a base and a shift decoder, `FrozenPair` is both with one step's noise
estimate. A copy holds the network's own modules, some exchanged for equals: attention projects q, k and v at once,
and repetition followed by a 3x3 convolution becomes one transposed convolution.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, M all modulations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Self

import torch
from diti_kernels.sites import Mode, is_measured
from diti_kernels.winograd.op import serves_frozen
from torch import nn

from diticli.models.compiled import CompilablePart, CompiledPart, StepGraph, may_capture, should_capture
from diticli.models.device import gpu_convolutions
from diticli.models.layout import layout_for
from diticli.models.modulation import PathWeights, gather_weights, modulate
from diticli.models.modules import ResnetBlock, SelfAttention, Upsample
from diticli.models.norms import norm_silu
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.models.unet_forward import (
    DownFeatures,
    down_resnets,
    predict_noise,
    run_down_path,
    run_up_path,
    up_resnets,
)
from diticli.models.upsampling import MERGED_WIDTH, merged_weight
from diticli.progress import LoggingReporter, Reporter


class FrozenBase(nn.Module):
    """An inference copy of a base: no gradient, no autocast, always in eval mode.

    The time embedding and all that modulates stay in float32; they cost next to nothing.

    Args:
        unet: the base; left as it is.
        dtype: in which the copy computes.
        merge_up_to: widest map whose doubling is merged with the convolution that follows; 0 merges none.
    """

    def __init__(self, unet: UNet, dtype: torch.dtype = torch.bfloat16, *, merge_up_to: int = MERGED_WIDTH) -> None:
        super().__init__()
        self.dtype = dtype
        self.unet = copy.deepcopy(unet).requires_grad_(False).eval()
        for name, blocks in (("down", down_resnets(self.unet)), ("up", up_resnets(self.unet))):
            for field, value in gather_weights(blocks)._asdict().items():
                self.register_buffer(f"{name}_{field}", value.float(), persistent=False)
        to_inference(self.unet, dtype, merge_up_to=merge_up_to)
        self.eval()

    def forward(self, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, DownFeatures]:
        """Noise estimate [B, C, H, W] and down-path features, in the copy's dtype (the time embedding in float32).

        Args:
            x_BCHW: noisy images, of any floating dtype.
            t_B: integer timesteps [B], or [1] for all samples.
        """
        with torch.no_grad(), torch.autocast(x_BCHW.device.type, enabled=False):
            down = run_down_path(self.unet, x_BCHW.to(self.dtype), t_B, self.weights("down"))
            return predict_noise(self.unet, down, self.weights("up")), down

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever is asked for."""
        return super().train(False)

    def _apply(self, fn: Callable[..., torch.Tensor], recurse: bool = True) -> Self:
        """Moved to another device, weights take that device's layout, which would else be made anew in every step."""
        super()._apply(fn, recurse)
        lay_out(self.unet, self.dtype)
        return self

    def weights(self, path: str) -> PathWeights:
        """Of the modulations of a path, "down" or "up", as the functions of `diticli.models.unet_forward` take them."""
        return PathWeights(*(getattr(self, f"{path}_{field}") for field in PathWeights._fields))


class FrozenShift(nn.Module):
    """An inference copy of a shift decoder, beside `FrozenBase`.

    What modulates stays in float32; it costs next to nothing.

    Args:
        decoder: left as it is.
        dtype: in which the copy computes.
    """

    def __init__(self, decoder: ShiftDecoder, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(decoder).float().requires_grad_(False).eval()
        for field, value in gather_weights(up_resnets(self.decoder))._asdict().items():
            self.register_buffer(field, value, persistent=False)
        to_inference(self.decoder, dtype)

    @torch.no_grad()
    def project(self, z_BD: torch.Tensor, t_B: torch.Tensor, windows: ChunkWindows) -> torch.Tensor:
        """[B, M] in float32, see `ShiftDecoder.project`."""
        return self.decoder.project(z_BD.float(), t_B, windows)

    @torch.no_grad()
    def forward(self, down: DownFeatures, z_mod_BM: torch.Tensor) -> torch.Tensor:
        """Shift [B, C, H, W] in the copy's dtype, see `ShiftDecoder.forward`."""
        weights = PathWeights(*(getattr(self, field) for field in PathWeights._fields))
        with torch.autocast(z_mod_BM.device.type, enabled=False):
            modulations = modulate(up_resnets(self.decoder), weights, down.temb, z_mod_BM)
            h = run_up_path(self.decoder, down.hidden, down.skips, modulations)
            return self.decoder.conv_out(norm_silu(self.decoder.conv_norm_out, h))


class FrozenPair:
    """Inference copies of a base and its shift branch.

    Args:
        unet: the base; left as it is.
        decoder: its shift branch; left as it is.
        dtype: in which the copies compute.
        compile: the step with torch.compile, for the first two shapes of x that come: inverting and decoding full
            batches. Others, such as those of a last batch, run uncompiled.
        reporter: hears of what pauses the first step: trying kernels, compiling. By default that is logged.
    """

    MOST_GRAPHS = 4
    MOST_COMPILED = 2

    def __init__(
        self,
        unet: UNet,
        decoder: ShiftDecoder,
        dtype: torch.dtype,
        *,
        compile: bool = False,
        reporter: Reporter | None = None,
    ) -> None:
        if unet.dtype != torch.float32:
            unet = copy.deepcopy(unet).float()  # the time embedding is computed in float32
        devices = [unet.device] if unet.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # new layers draw their weights before they are given others
            self.base, self.shift = FrozenBase(unet, dtype), FrozenShift(decoder, dtype)
        self._reporter = reporter or LoggingReporter()
        self._graphs: dict[torch.Size, StepGraph] = {}
        self._captured: dict[torch.Size, bool] = {}
        self._compiled: CompilablePart | None = (
            CompiledPart("sampler's step", self._estimate, self._reporter) if compile else None
        )
        self._compiled_shapes: set[torch.Size] = set()

    def estimate(
        self, x_BCHW: torch.Tensor, t_1: torch.Tensor, z_mod_BM: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """eps + scale * G, [B, C, H, W] in float32; at small batches on a GPU as one CUDA graph.

        Args:
            x_BCHW: noisy images, float32.
            t_1: timestep of all of them, [1].
            z_mod_BM: `FrozenShift.project`.
            scale: factor of the shift, a scalar.
        """
        with gpu_convolutions(x_BCHW.device, self.base.dtype):
            return self._run(x_BCHW, t_1, z_mod_BM, scale)

    def _run(self, x_BCHW: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        inputs = (x_BCHW, *others)
        step = self._step_for(x_BCHW.shape)
        if x_BCHW.shape not in self._captured:
            self._captured[x_BCHW.shape] = self._choose(step, inputs)
        if not self._captured[x_BCHW.shape]:
            estimate_BCHW: torch.Tensor = step(*inputs)
            return estimate_BCHW
        if x_BCHW.shape not in self._graphs:
            if len(self._graphs) >= self.MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[x_BCHW.shape] = StepGraph(step, *inputs)
        return self._graphs[x_BCHW.shape](*inputs)

    def _choose(self, step: CompilablePart, inputs: tuple[torch.Tensor, ...]) -> bool:
        """Choose the kernels of a batch of this shape on a GPU; returns whether to capture it."""
        x, capture = inputs[0], should_capture(inputs[0])
        if not is_measured(x.device.type):
            return capture
        from diticli.tuning.graphs import graph_wins  # here, as they take time and need a GPU
        from diticli.tuning.tune import tune_alone

        mode: Mode = "compiled" if step != self._estimate else "captured" if capture else "eager"
        tune_alone(lambda: self._estimate(*inputs), x.device, mode, self._reporter)
        if not may_capture(x):
            return False
        weights = sum(p.numel() for network in (self.base, self.shift) for p in network.parameters())
        network = f"{weights} weights, {self.base.dtype}{', compiled' if step != self._estimate else ''}"
        return graph_wins(step, inputs, network, reporter=self._reporter)

    def _step_for(self, shape: torch.Size) -> CompilablePart:
        if self._compiled is None:
            return self._estimate
        if len(self._compiled_shapes) < self.MOST_COMPILED:
            self._compiled_shapes.add(shape)
        return self._compiled if shape in self._compiled_shapes else self._estimate

    def _estimate(self, x: torch.Tensor, t: torch.Tensor, z_mod: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        noise, down = self.base(x, t)
        return noise.float() + scale * self.shift(down, z_mod).float()


def to_inference(network: nn.Module, dtype: torch.dtype, *, merge_up_to: int = MERGED_WIDTH) -> None:
    """Change a frozen copy of a base or a shift decoder in place, as this module describes.

    Convolutions and attention go to `dtype`; norms, embeddings and projections stay as they are.
    """
    for module in list(network.modules()):
        if isinstance(module, SelfAttention):
            module.fuse_projections().to(dtype)
            module.to_out.to(dtype)
        elif isinstance(module, Upsample) and _merges(module.conv, dtype, merge_up_to):
            module.conv = merge_upsampling(module.conv)
        elif isinstance(module, ResnetBlock):
            _add_shortcut_bias(module)
            if module.up and _merges(module.conv1, dtype, merge_up_to):
                module.conv1 = merge_upsampling(module.conv1)
    lay_out(network, dtype)
    network.requires_grad_(False)


def _merges(conv: nn.Conv2d | nn.ConvTranspose2d, dtype: torch.dtype, up_to: int) -> bool:
    """Whether to merge the doubling before `conv` with it: not where Winograd's algorithm is faster still."""
    if conv.in_channels > up_to:
        return False
    return dtype != torch.float32 or not serves_frozen(conv.weight)


def _add_shortcut_bias(block: ResnetBlock) -> None:
    """One addition less in every step."""
    shortcut, conv = block.conv_shortcut, block.conv2
    if shortcut is not None and shortcut.bias is not None and conv.bias is not None:
        conv.bias = nn.Parameter(conv.bias + shortcut.bias, requires_grad=False)
        shortcut.bias = None


def lay_out(network: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions in `dtype` and in the layout that maps have on their device."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            layout = layout_for(module.weight.device, dtype)
            module.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]


def merge_upsampling(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.ConvTranspose2d:
    """The transposed convolution that equals repeating every pixel twice each way before the 3x3 `conv`."""
    assert isinstance(conv, nn.Conv2d)
    weight = merged_weight(conv.weight.detach())
    merged = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, 1, device=weight.device)
    merged.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    merged.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
    return merged
