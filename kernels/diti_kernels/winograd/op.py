"""`convolve_3x3`, and where it takes Winograd's algorithm instead of PyTorch's convolution."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from diti_kernels import native
from diti_kernels.winograd import compiled

LEAST_TILES = 64
"""Of a batch, where weights are transformed in each call: that takes as long as some twenty tiles, or more."""
MOST_KEPT = 2**14
"""Weights of a frozen convolution whose transformed form is kept in inference mode, in four times their memory."""
LEAST_GAIN = 1.1
"""How many times as fast as PyTorch's convolution: ties stay with PyTorch."""
WIDTHS = (32, 64, 128)
"""Channels at which this machine is measured; more count as the last."""
SIDE, BATCH, READINGS = 16, 8, 5


def convolve_3x3(x_BCHW: Tensor, weight_DC33: Tensor, bias_D: Tensor | None = None, stride: int = 1) -> Tensor:
    """A convolution with padding 1: `F.conv2d(x, weight, bias, stride, padding=1)`.

    By Winograd's algorithm for channels_last float32 maps on a CPU, where that was measured to be faster on this
    machine: 1.5 to 4 times with stride 1, 1.3 to 1.6 times with stride 2, there without a gradient only. Its values
    differ from float64 by about 1e-5 of the largest (PyTorch's own by 1e-6). It is differentiable once; PyTorch's any
    number of times.

    Args:
        x_BCHW: maps [B, C, H, W].
        weight_DC33: [D, C, 3, 3].
        bias_D: [D].
        stride: of height and width.

    Returns:
        [B, D, H, W]; with stride 2 half as high and wide.
    """
    if not serves(x_BCHW, weight_DC33, stride=stride):
        return F.conv2d(x_BCHW, weight_DC33, bias_D, stride, padding=1)
    grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_BCHW, weight_DC33, bias_D))
    if stride == 2:
        if grad:
            return F.conv2d(x_BCHW, weight_DC33, bias_D, stride, padding=1)
        return compiled.convolve_strided(x_BCHW, _packed(weight_DC33, 2), bias_D, weight_DC33.shape[0])
    if grad:
        return _Convolution.apply(x_BCHW, weight_DC33, bias_D)
    return compiled.convolve(x_BCHW, _packed(weight_DC33), bias_D, weight_DC33.shape[0])


def serves(x: Tensor, weight: Tensor, *, scale: int = 1, stride: int = 1) -> bool:
    """Whether Winograd's algorithm runs for maps `scale` times as high and wide as x: it can, and pays here.

    With stride 2 that is so without a gradient only.
    """
    if any(type(t) not in native.PLAIN or t.dtype != torch.float32 or not t.is_cpu for t in (x, weight)):
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or x.ndim != 4:
        return False
    if not x.is_contiguous(memory_format=torch.channels_last):
        return False
    B, C, H, W = x.shape
    D = weight.shape[0]
    if stride not in (1, 2) or H % stride or W % stride:
        return False
    size = (scale * H // stride, scale * W // stride)
    if not _divides(B, C, D, *size, _is_kept(weight)) or why().functions is None:
        return False
    kind: Kind = "strided" if stride == 2 else "trained" if weight.requires_grad else "frozen"
    return measured(torch.get_num_threads()).pays(min(C, D), kind)


def serves_frozen(weight: Tensor) -> bool:
    """Whether Winograd's algorithm runs in inference mode for maps of whole tiles, however few, on weight's device."""
    if not weight.is_cpu or weight.dtype != torch.float32 or weight.numel() > MOST_KEPT * 9 or why().functions is None:
        return False
    D, C = weight.shape[:2]
    divides = _divides(1, C, D, compiled.TILE, compiled.TILE, True)
    return divides and measured(torch.get_num_threads()).pays(min(C, D), "frozen")


@functools.lru_cache(maxsize=4096)
def _divides(B: int, C: int, D: int, H: int, W: int, kept: bool) -> bool:
    """Whether channels divide into panels and outputs H x W into tiles, and into enough of them."""
    if C % compiled.PANEL or D % compiled.PANEL or H % compiled.TILE or W % compiled.TILE or not B * H * W:
        return False
    tiles = B * (H // compiled.TILE) * (W // compiled.TILE)
    return max(C, D) <= compiled.MOST_CHANNELS and (kept or tiles >= LEAST_TILES)


def why() -> native.Library:
    """The C code, or why it does not run."""
    return native.forbidden("cpu") or compiled.library()


class Measured(NamedTuple):
    """Milliseconds of PyTorch and of Winograd's algorithm at `WIDTHS` channels; empty where nothing was measured."""

    times: dict[str, float]

    def pays(self, channels: int, kind: Kind) -> bool:
        """Whether Winograd's algorithm is faster for so many channels."""
        width = max((width for width in WIDTHS if width <= channels), default=0)
        if not self.times or not width:
            return False
        return self.times[f"pytorch {width} {kind}"] >= LEAST_GAIN * self.times[f"winograd {width} {kind}"]

    @property
    def reason(self) -> str:
        """Half a sentence for people."""
        if not self.times:
            return "not measured, DITI_TUNE=0"
        gains = (self.times[f"pytorch {width} trained"] / self.times[f"winograd {width} trained"] for width in WIDTHS)
        told = ", ".join(f"{gain:.2g} at {width}" for gain, width in zip(gains, WIDTHS, strict=True))
        return f"measured here, times as fast as PyTorch in training: {told} channels"


SIDES = ("pytorch", "winograd")
Kind = Literal["frozen", "trained", "strided"]
"""Forward, forward and backward, and forward with stride 2."""
NAMES = [f"{side} {width} {kind}" for side in SIDES for width in WIDTHS for kind in get_args(Kind)]


@functools.cache
def measured(threads: int) -> Measured:
    """What is kept of this machine with so many threads, else what is measured now; nothing is with DITI_TUNE=0."""
    depends_on = (threads, compiled.SOURCE.read_bytes())
    return Measured(native.kept_times("winograd", NAMES, depends_on, measure))


def measure(clock: native.Clock = time.process_time) -> dict[str, float]:
    """Milliseconds of both ways in turn, at maps of 16x16; the least of the readings counts."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        runs = dict(item for width in WIDTHS for item in _runs(width))
        for run in runs.values():
            run()
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(READINGS):
            for name, run in runs.items():
                started = clock()
                run()
                best[name] = min(best[name], clock() - started)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def _runs(width: int) -> list[tuple[str, Callable[[], object]]]:
    def laid(*shape: int) -> Tensor:
        size = shape[0] * shape[1] * shape[2] * shape[3]
        values = torch.linspace(-1, 1, size, dtype=torch.float32).view(shape)
        return values.contiguous(memory_format=torch.channels_last)

    x, weight, grad = laid(BATCH, width, SIDE, SIDE), laid(width, width, 3, 3), laid(BATCH, width, SIDE, SIDE)
    ways = (lambda x, w: F.conv2d(x, w, padding=1), lambda x, w: _Convolution.apply(x, w, None))
    more, packed = laid(4 * BATCH, width, SIDE, SIDE), compiled.pack(weight, 2)  # such weights are kept
    strided = (
        lambda: F.conv2d(more, weight, stride=2, padding=1),
        lambda: compiled.convolve_strided(more, packed, None, width),
    )
    runs: list[tuple[str, Callable[[], object]]] = []
    for side, way, at_half in zip(SIDES, ways, strided, strict=True):

        def frozen(way: Callable[[Tensor, Tensor], Tensor] = way) -> object:
            with torch.no_grad():
                return way(x, weight)

        def trained(way: Callable[[Tensor, Tensor], Tensor] = way) -> object:
            inputs = (x.detach().requires_grad_(), weight.detach().requires_grad_())
            return torch.autograd.grad((way(*inputs) * grad).sum(), inputs)

        kinds: tuple[Callable[[], object], ...] = (frozen, trained, at_half)
        runs += [(f"{side} {width} {kind}", run) for kind, run in zip(get_args(Kind), kinds, strict=True)]
    return runs


_KEPT = WeakTensorKeyDictionary()
"""Transformed weights of frozen convolutions, with what tells that the weights are still the same."""


def _is_kept(weight: Tensor) -> bool:
    """In training, where batches are large, keeping it would only take memory."""
    if not torch.is_inference_mode_enabled():
        return False
    return not weight.requires_grad and weight.numel() <= MOST_KEPT * 9 and not weight.is_inference()


def _packed(weight: Tensor, stride: int = 1) -> Tensor:
    if not _is_kept(weight):
        return compiled.pack(weight, stride)
    state = (weight.data_ptr(), weight._version, stride)
    found = _KEPT.get(weight)
    if found is None or found[0] != state:
        found = _KEPT[weight] = (state, compiled.pack(weight, stride))
    return found[1]


class _Convolution(torch.autograd.Function):
    """Maps and gradients are channels_last; differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return compiled.convolve(x, _packed(weight), bias, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        dx = compiled.convolve(grad, compiled.pack(compiled.turned(weight)), None, x.shape[1]) if wants_x else None
        dweight = compiled.weight_gradient(x, grad) if wants_weight else None
        dbias = grad.sum((0, 2, 3)) if ctx.has_bias and wants_bias else None
        return dx, dweight, dbias
