"""The timestep-masked projection as PyTorch operators that autograd and `torch.compile` see through.

Shapes: B samples, T timesteps, 2 bounds of a window, d feature dims, E embedding dims. The Triton kernels are
imported when first launched.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from diti_kernels.dispatch import LAUNCH_OPTIONS, VARIABLE, Backend, backend_for
from diti_kernels.masked_linear.reference import masked_linear_reference
from diti_kernels.sites import asked, choice, wants_gradient

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_INTERPRETER_DTYPES = _KERNEL_DTYPES[:2]  # its tl.dot multiplies the bit patterns of bfloat16 as integers
_INDEX_DTYPES = (torch.int32, torch.int64)


def masked_linear(
    z: Tensor,
    t: Tensor,
    visible_T2: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    own_T2: Tensor | None = None,
) -> Tensor:
    """Project features of which each sample's timestep shows a window: `F.linear(z * mask[t], weight, bias)`.

    Sample b sees dims [visible_T2[t_b, 0], visible_T2[t_b, 1]). The gradient of z reaches all of them (the
    `cumulative` mode), or with `own_T2` only those that also lie in [own_T2[t_b, 0], own_T2[t_b, 1]), the own chunk
    (`detached`). That changes neither the value nor the gradients of weight and bias. Method: Yue et al., ICLR 2024
    (arXiv 2401.11430), section 4, which shows prefixes; everything may be visible too.

    Args:
        z: [B, d] features.
        t: [B] int32 or int64 timesteps, any strides. 0 <= t < T is not checked, which would wait for the device:
            plain PyTorch raises or, where it is negative, counts from the end; the kernels show nothing of z.
        visible_T2: [T, 2] int32 or int64, first visible dim and one past the last. Not checked: a start below 0
            means 0, an end past d means d, and an empty or reversed window shows nothing.
        weight: [E, d], of z's dtype unless autocast is on.
        bias: [E] or None, of weight's dtype unless autocast is on.
        own_T2: [T, 2] likewise, the window that receives gradient where it is visible, or None for all dims.

    Returns:
        [B, E] in the dtype of weight; under autocast in autocast's dtype, as `F.linear` does.

    Raises:
        ValueError: for shapes, dtypes or devices that do not belong together, or for a DITI_KERNELS that is
            none of auto, triton, reference.
        RuntimeError: when DITI_KERNELS=triton and Triton cannot run on z's device.
    """
    _check_layout(z, t, visible_T2, weight, bias, own_T2)
    if _backend(z, visible_T2, weight, bias, own_T2) == "reference":
        return masked_linear_reference(z, t, visible_T2, weight, bias, own_T2=own_T2)
    z, weight, bias = _autocast(z), _autocast(weight), None if bias is None else _autocast(bias)
    _check_kernel_dtypes(z, weight, bias)
    return masked_linear_op(z, t, visible_T2, own_T2, weight, bias)


def _backend(z: Tensor, visible_T2: Tensor, weight: Tensor, bias: Tensor | None, own_T2: Tensor | None) -> Backend:
    """What DITI_KERNELS says; where that is auto, what was measured at this site."""
    backend = backend_for(z)
    if not asked(z.device.type, VARIABLE):
        return backend
    dtypes = {_autocast_dtype(x) for x in (z, weight, bias) if x is not None}
    if len(dtypes) > 1 or not dtypes <= set(_dtypes_on(z.device)) or z.numel() == 0:
        return backend
    shape = (len(z), z.shape[1], len(weight), len(visible_T2))
    options = ("cumulative" if own_T2 is None else "detached", "no bias" if bias is None else "bias")
    found = choice("masked_linear", dtypes.pop(), shape, wants_gradient(z, weight, bias), options)
    return "triton" if found == "triton" else backend


@torch.library.custom_op("diti::masked_linear", mutates_args=())
def masked_linear_op(
    z: Tensor, t: Tensor, visible_T2: Tensor, own_T2: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Triton forward; arguments as `masked_linear`, all of one floating dtype. -> [B, E]."""
    from diti_kernels.masked_linear.triton_kernels import masked_linear_fwd_kernel as kernel

    (B, D), E, T = z.shape, weight.shape[0], len(visible_T2)
    out = torch.empty((B, E), dtype=weight.dtype, device=z.device)
    blocks = {"BLOCK_B": _tile(B, 32), "BLOCK_E": _tile(E, 32), "BLOCK_D": _tile(D, 64)}
    grid = (_tiles(B, blocks["BLOCK_B"]), _tiles(E, blocks["BLOCK_E"]))
    args = (z, t, visible_T2.contiguous(), weight, None if bias is None else bias.contiguous(), out)
    strides = (*z.stride(), *t.stride(), *weight.stride())
    _launch(kernel, grid, *args, B, T, D, E, *strides, HAS_BIAS=bias is not None, **blocks)
    return out


@torch.library.custom_op("diti::masked_linear_dz", mutates_args=())
def masked_linear_dz_op(grad: Tensor, t: Tensor, visible_T2: Tensor, own_T2: Tensor | None, weight: Tensor) -> Tensor:
    """Triton gradient of z: grad [B, E], t [B], tables [T, 2], weight [E, d] -> [B, d], zero where none is due."""
    from diti_kernels.masked_linear.triton_kernels import masked_linear_bwd_dz_kernel as kernel

    B, (E, D), T = grad.shape[0], weight.shape, len(visible_T2)
    dz = torch.empty((B, D), dtype=weight.dtype, device=grad.device)
    blocks = {"BLOCK_B": _tile(B, 32), "BLOCK_E": _tile(E, 64), "BLOCK_D": _tile(D, 32)}
    grid = (_tiles(B, blocks["BLOCK_B"]), _tiles(D, blocks["BLOCK_D"]))
    args = (grad, weight, t, visible_T2.contiguous(), None if own_T2 is None else own_T2.contiguous(), dz)
    strides = (*grad.stride(), *weight.stride(), *t.stride())
    _launch(kernel, grid, *args, B, T, D, E, *strides, HAS_OWN=own_T2 is not None, **blocks)
    return dz


@torch.library.custom_op("diti::masked_linear_dw", mutates_args=())
def masked_linear_dw_op(grad: Tensor, z: Tensor, t: Tensor, visible_T2: Tensor) -> tuple[Tensor, Tensor]:
    """Triton gradients of weight and bias: grad [B, E], z [B, d], t [B], visible_T2 [T, 2] -> [E, d], [E]."""
    from diti_kernels.masked_linear.triton_kernels import masked_linear_bwd_dw_kernel as kernel

    (B, D), E, T = z.shape, grad.shape[1], len(visible_T2)
    dw = torch.empty((E, D), dtype=z.dtype, device=z.device)
    db = torch.empty((E,), dtype=z.dtype, device=z.device)
    blocks = {"BLOCK_B": _tile(B, 64), "BLOCK_E": _tile(E, 32), "BLOCK_D": _tile(D, 32)}
    grid = (_tiles(E, blocks["BLOCK_E"]), _tiles(D, blocks["BLOCK_D"]))
    strides = (*grad.stride(), *z.stride(), *t.stride())
    _launch(kernel, grid, grad, z, t, visible_T2.contiguous(), dw, db, B, T, D, E, *strides, **blocks)
    return dw, db


@masked_linear_op.register_fake
def _fake(
    z: Tensor, t: Tensor, visible_T2: Tensor, own_T2: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return weight.new_empty((z.shape[0], weight.shape[0]))


@masked_linear_dz_op.register_fake
def _fake_dz(grad: Tensor, t: Tensor, visible_T2: Tensor, own_T2: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_empty((grad.shape[0], weight.shape[1]))


@masked_linear_dw_op.register_fake
def _fake_dw(grad: Tensor, z: Tensor, t: Tensor, visible_T2: Tensor) -> tuple[Tensor, Tensor]:
    return z.new_empty((grad.shape[1], z.shape[1])), z.new_empty((grad.shape[1],))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, t, visible_T2, own_T2, weight, _ = inputs
    ctx.save_for_backward(z, t, visible_T2, own_T2, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    z, t, visible_T2, own_T2, weight = ctx.saved_tensors
    wants_z, *_, wants_weight, wants_bias = ctx.needs_input_grad
    dz = masked_linear_dz_op(grad, t, visible_T2, own_T2, weight) if wants_z else None
    dw, db = masked_linear_dw_op(grad, z, t, visible_T2) if wants_weight or wants_bias else (None, None)
    return dz, None, None, None, dw if wants_weight else None, db if wants_bias else None


masked_linear_op.register_autograd(_backward, setup_context=_setup_context)


def _launch(kernel: Any, grid: tuple[int, int], *args: Any, **constants: Any) -> None:
    """Launch on the device of the first argument, which need not be the current one."""
    device = args[0].device
    here: AbstractContextManager[Any] = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
    with here:
        kernel[grid](*args, **constants, **LAUNCH_OPTIONS)


def _tile(size: int, largest: int) -> int:
    """Power of two that covers `size`, within 16 (the least `tl.dot` takes) and `largest`."""
    return min(largest, max(16, 1 << (size - 1).bit_length()))


def _tiles(size: int, tile: int) -> int:
    """Tiles that cover `size`; one for an empty one, so that every launch has programs."""
    return max(1, -(-size // tile))


def _autocast(tensor: Tensor) -> Tensor:
    """`tensor` as `F.linear` would take it: autocast converts every floating dtype but float64."""
    return tensor.to(_autocast_dtype(tensor))


def _autocast_dtype(tensor: Tensor) -> torch.dtype:
    device_type = tensor.device.type
    if torch.is_autocast_enabled(device_type) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return tensor.dtype


def _dtypes_on(device: torch.device) -> tuple[torch.dtype, ...]:
    return _INTERPRETER_DTYPES if device.type == "cpu" else _KERNEL_DTYPES


def _check_layout(
    z: Tensor, t: Tensor, visible_T2: Tensor, weight: Tensor, bias: Tensor | None, own_T2: Tensor | None
) -> None:
    """Raise ValueError unless shapes, index dtypes and devices belong together."""
    B, E = z.shape[0], weight.shape[0]
    if z.ndim != 2 or weight.ndim != 2 or z.shape[1] != weight.shape[1]:
        raise ValueError(f"z [B, d] and weight [E, d] expected, got {list(z.shape)} and {list(weight.shape)}.")
    if t.shape != (B,):
        raise ValueError(f"t must hold one timestep for each of {B} samples, got the shape {list(t.shape)}.")
    if bias is not None and bias.shape != (E,):
        raise ValueError(f"bias must have the shape [{E}] of weight's rows, got {list(bias.shape)}.")
    tables = [table for table in (visible_T2, own_T2) if table is not None]
    if visible_T2.shape[1:] != (2,) or any(table.shape != visible_T2.shape for table in tables):
        shapes = " and ".join(str(list(table.shape)) for table in tables)
        raise ValueError(f"The tables must hold start and end for each timestep, [T, 2], got the shapes {shapes}.")
    if any(index.dtype not in _INDEX_DTYPES for index in (t, *tables)):
        dtypes = ", ".join(str(index.dtype) for index in (t, *tables))
        raise ValueError(f"t and the tables must be int32 or int64, got {dtypes}.")
    devices = {str(x.device) for x in (z, t, *tables, weight, bias) if x is not None}
    if len(devices) > 1:
        raise ValueError(f"All tensors must lie on one device, got {sorted(devices)}. Move them with .to(device).")


def _check_kernel_dtypes(z: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise ValueError unless the kernels take these dtypes."""
    dtypes = {t.dtype for t in (z, weight, bias) if t is not None}
    allowed = _dtypes_on(z.device)
    if len(dtypes) > 1 or z.dtype not in allowed:
        raise ValueError(
            f"On {z.device.type} the Triton kernels take z, weight and bias of one dtype out of "
            f"{list(map(str, allowed))}, got {sorted(map(str, dtypes))}. Convert them, use autocast, or set "
            "DITI_KERNELS=reference."
        )
