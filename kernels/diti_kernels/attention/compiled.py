"""The C code of `heads.c`: attention of float32 heads on a CPU, without a gradient.

Legend of shape suffixes: B batch, M query tokens, N key tokens, H heads, K channels of a head.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from diti_kernels import native

SOURCE = Path(__file__).with_name("heads.c")
PANEL = 16
"""As in products.h: channels of a head are a multiple of it."""


class _Shape(ctypes.Structure):
    """`Shape` of heads.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("b", "m", "n", "h", "c")),
        *((f"{of}_{name}", ctypes.c_int64) for of in ("sample", "token", "head") for name in "qkv"),
        ("threads", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


@functools.cache
def library() -> native.Library:
    """The functions, compiled when they are first asked for."""
    return native.load(SOURCE, _is_right)


def attend(q_BMHK: Tensor, k_BNHK: Tensor, v_BNHK: Tensor, *, functions: ctypes.CDLL | None = None) -> Tensor:
    """softmax(q kᵀ / √K) v, contiguous [B, M, H, K], of any strides but 1 within a head.

    `functions` other than those of `library` are for its check.
    """
    functions = functions or library().functions
    assert functions is not None
    B, M, H, K = q_BMHK.shape
    out = torch.empty((B, M, H, K), dtype=torch.float32, device="cpu")
    steps = zip(q_BMHK.stride()[:3], k_BNHK.stride()[:3], v_BNHK.stride()[:3], strict=True)
    sizes = (B, M, k_BNHK.shape[1], H, K)
    flat = (step for of_three in steps for step in of_three)
    shape = _Shape(*sizes, *flat, torch.get_num_threads(), math.log2(math.e) / math.sqrt(K))
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (q_BMHK, k_BNHK, v_BNHK, out)]
    if functions.diti_attention(ctypes.byref(shape), *addresses):
        raise torch.OutOfMemoryError("No memory for the keys and values of attention.")
    return out


def _is_right(functions: ctypes.CDLL) -> bool:
    """Whether values at two small shapes are those of plain PyTorch in float64, as any compiler must have them."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        generator = torch.Generator().manual_seed(0)
        for B, N, H, K, scale in ((2, 37, 2, 32, 1.0), (1, 48, 1, 48, 20.0)):
            qkv = scale * torch.randn(B, N, 3, H, K, generator=generator)
            q, k, v = qkv.double().transpose(1, 3).unbind(2)
            right = ((q @ k.transpose(2, 3) / math.sqrt(K)).softmax(-1) @ v).transpose(1, 2)
            ours = attend(*qkv.unbind(2), functions=functions)
            if not bool((ours.double() - right).abs().max() < 1e-4 * right.abs().max()):
                return False
    return True
