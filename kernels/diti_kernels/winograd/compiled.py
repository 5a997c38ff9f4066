"""The C code of `tiles.c`: Winograd convolutions of channels_last float32 maps on a CPU.

Legend of shape suffixes: B batch, C input channels, D output channels, H height, W width.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diti_kernels import native

SOURCE = Path(__file__).with_name("tiles.c")
TILE = 4
"""Height and width of a tile of outputs."""
PANEL, PAD, MOST_CHANNELS = 16, 16, 4096
"""As in tiles.c: channels are multiples of the first."""
LARGE_WEIGHTS = 2**15
"""From so many weights on, each block holds more tiles, since it reads them all."""


class _Shape(ctypes.Structure):
    """`Shape` of tiles.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("b", "h", "w", "c_in", "c_out", "block")),
        ("threads", ctypes.c_int32),
    )


@functools.cache
def library() -> native.Library:
    """The functions, compiled when they are first asked for."""
    return native.load(SOURCE, _is_right)


def pack(weight_DC33: Tensor, stride: int = 1, *, functions: ctypes.CDLL | None = None) -> Tensor:
    """Transformed weights, four times as many, for `convolve` or, with stride 2, `convolve_strided`.

    `functions` other than those of `library` are for its check, here and below.
    """
    D, C = weight_DC33.shape[:2]
    weight = weight_DC33.permute(2, 3, 1, 0).contiguous()
    packed = _empty(36 * (C * D + PAD))
    shape = _shape((0, 0, 0), C, D)
    _functions(functions).diti_winograd_pack(ctypes.byref(shape), stride, _address(weight), _address(packed))
    return packed


def turned(weight_DC33: Tensor) -> Tensor:
    """The weights [C, D, 3, 3] whose convolution is the gradient of the input."""
    return weight_DC33.flip(2, 3).transpose(0, 1)


def convolve(
    x_BCHW: Tensor, packed: Tensor, bias_D: Tensor | None, channels: int, *, functions: ctypes.CDLL | None = None
) -> Tensor:
    """[B, D, H, W] channels_last of channels_last x, with D = `channels`."""
    B, C, H, W = x_BCHW.shape
    y = torch.empty(B, channels, H, W, dtype=torch.float32, memory_format=torch.channels_last)
    shape = _shape((B, H, W), C, channels, 96 if C * channels > LARGE_WEIGHTS else 24)
    addresses = [_address(tensor) for tensor in (x_BCHW, packed, bias_D, y)]
    _check(_functions(functions).diti_winograd_convolve(ctypes.byref(shape), *addresses))
    return y


def convolve_strided(
    x_BCHW: Tensor, packed: Tensor, bias_D: Tensor | None, channels: int, *, functions: ctypes.CDLL | None = None
) -> Tensor:
    """As `convolve` with stride 2: [B, D, H / 2, W / 2]."""
    B, C, H, W = x_BCHW.shape[0], x_BCHW.shape[1], x_BCHW.shape[2] // 2, x_BCHW.shape[3] // 2
    y = torch.empty(B, channels, H, W, dtype=torch.float32, memory_format=torch.channels_last)
    shape = _shape((B, H, W), C, channels, 12)
    addresses = [_address(tensor) for tensor in (x_BCHW, packed, bias_D, y)]
    _check(_functions(functions).diti_winograd_convolve_strided(ctypes.byref(shape), *addresses))
    return y


def weight_gradient(x_BCHW: Tensor, grad_BDHW: Tensor, *, functions: ctypes.CDLL | None = None) -> Tensor:
    """[D, C, 3, 3] of channels_last input and gradient."""
    B, C, H, W = x_BCHW.shape
    D = grad_BDHW.shape[1]
    gradient = _empty(3, 3, C, D)
    shape = _shape((B, H, W), C, D, 96 if C * D > LARGE_WEIGHTS else 48)
    addresses = [_address(tensor) for tensor in (x_BCHW, grad_BDHW, gradient)]
    _check(_functions(functions).diti_winograd_weight_gradient(ctypes.byref(shape), *addresses))
    return gradient.permute(3, 2, 0, 1)


def _functions(given: ctypes.CDLL | None) -> ctypes.CDLL:
    functions = given or library().functions
    assert functions is not None
    return functions


def _shape(map_BHW: tuple[int, int, int], inputs: int, outputs: int, block: int = 0) -> _Shape:
    B, H, W = map_BHW
    threads = torch.get_num_threads()
    share = -(-B * (H // TILE) * (W // TILE) // threads)  # of the tiles, for each thread
    return _Shape(B, H, W, inputs, outputs, max(12, min(block, -(-share // 12) * 12)), threads)


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="cpu")


def _address(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _check(status: int) -> None:
    if status:
        raise torch.OutOfMemoryError("No memory for the transformed maps of a convolution.")


def _is_right(functions: ctypes.CDLL) -> bool:
    """Whether values and gradients of small maps are those of PyTorch, as any compiler must have them."""
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        generator = torch.Generator().manual_seed(0)
        for C, D in ((16, 48), (32, 16)):
            sizes = ((2, C, 8, 16), (D, C, 3, 3), (D,), (2, D, 8, 16))
            x, weight, bias, grad = (torch.randn(size, generator=generator) for size in sizes)
            x, grad = (maps.contiguous(memory_format=torch.channels_last) for maps in (x, grad))
            theirs = [tensor.double().requires_grad_() for tensor in (x, weight, bias)]
            x64, weight64, bias64 = theirs
            expected = F.conv2d(x64, weight64, bias64, padding=1)
            gradients = torch.autograd.grad((expected * grad.double()).sum(), theirs[:2])
            ours = (
                convolve(x, pack(weight, functions=functions), bias, D, functions=functions),
                convolve(grad, pack(turned(weight), functions=functions), None, C, functions=functions),
                weight_gradient(x, grad, functions=functions),
                convolve_strided(x, pack(weight, 2, functions=functions), bias, D, functions=functions),
            )
            right = (expected, *gradients, F.conv2d(x64, weight64, bias64, 2, padding=1))
            if not all(_agree(a, b) for a, b in zip(ours, right, strict=True)):
                return False
    return True


def _agree(ours: Tensor, right: Tensor) -> bool:
    return bool((ours.double() - right).abs().max() < 1e-4 * right.abs().max())
