"""Adaptive group norm as PyTorch operators that autograd and `torch.compile` see through.

Shapes: B samples, C = C1 + C2 channels in G groups, then any spatial dims.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diti_kernels.adaptive_group_norm.compiled_rows import CompiledNorm, forward_maps, serves, takes_maps
from diti_kernels.adaptive_group_norm.eager import folded_group_norm
from diti_kernels.adaptive_group_norm.layout import from_rows, is_channels_last, like_channels_last, to_rows
from diti_kernels.adaptive_group_norm.reference import Activation, adaptive_group_norm_reference, concatenate
from diti_kernels.adaptive_group_norm.registration import adaptive_group_norm_op
from diti_kernels.dispatch import VARIABLE, Backend, backend_for
from diti_kernels.native import PLAIN
from diti_kernels.sites import asked, choice, depends_on_site, wants_gradient

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def adaptive_group_norm(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    groups: int,
    eps: float = 1e-5,
    *,
    skip: Tensor | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """y = activation(x_hat * scale + shift), where x_hat is x (and skip) normalised per sample and group.

    Group norm (Wu & He, 2018), its affine, and every later modulation in one pass: fold gamma, beta and the
    scales and shifts of time and features into `scale` and `shift` by ordinary tensor arithmetic, and autograd
    takes their gradients apart again. Adaptive group norm: Dhariwal & Nichol, 2021, section 3.

    Args:
        x: [B, C1, *], floating point, any memory format.
        scale: [B, C], [1, C] or [C], any floating dtype; used in float32 (float64 for float64 x).
        shift: as scale.
        groups: G, divides C; group g holds the channels [g C/G, (g + 1) C/G).
        eps: added to the variance.
        skip: None, or [B, C2, *] of x's spatial shape: the norm is that of `torch.cat([x, skip], dim=1)`.
            Of another dtype than x, it is converted to x's.
        activation: "silu" or "none".

    Returns:
        [B, C, *] of x's dtype and memory format. Differentiable; twice only where the definition itself runs, see
        README.md.

    Raises:
        ValueError: for shapes, dtypes or devices that do not belong together, an unknown activation, or a
            DITI_KERNELS that is none of auto, triton, reference.
        RuntimeError: when DITI_KERNELS=triton and Triton cannot run on x's device.
    """
    silu = activation == "silu"
    if (silu or activation == "none") and takes_maps(x, skip, scale, shift, groups) and not depends_on_site("cpu"):
        return forward_maps(x, skip, scale, shift, groups, eps, silu)
    _check(x, scale, shift, groups, skip, activation)
    backend = _backend(x, scale, shift, groups, skip, activation)
    if backend == "reference" and _definition_serves(x):
        return adaptive_group_norm_reference(x, scale, shift, groups, eps, skip=skip, activation=activation)
    if x.dtype not in _KERNEL_DTYPES:
        raise ValueError(
            f"The Triton kernels take x in {list(map(str, _KERNEL_DTYPES))}, got {x.dtype}. Convert it, or set "
            "DITI_KERNELS=reference."
        )
    scale, shift = (m.float().expand(x.shape[0], m.shape[-1]).contiguous() for m in (scale, shift))
    if backend == "reference" and _folding_serves(x):
        h = x if skip is None else concatenate(x, skip)
        y = folded_group_norm(h, scale, shift, groups, eps, silu)
        return like_channels_last(y) if is_channels_last(x) else y
    if backend == "reference" and _c_serves(x):
        skip = None if skip is None else skip.to(x.dtype)
        rows: Tensor = CompiledNorm.apply(x, skip, scale, shift, groups, eps, silu)
        return rows
    skip_rows = None if skip is None else to_rows(skip.to(x.dtype))
    arguments = (scale, shift, groups, eps, silu, backend == "triton")
    return from_rows(adaptive_group_norm_op(to_rows(x), skip_rows, *arguments)[0], x)


def _backend(
    x: Tensor, scale: Tensor, shift: Tensor, groups: int, skip: Tensor | None, activation: Activation
) -> Backend:
    """What DITI_KERNELS says; where that is auto, what was measured at this site."""
    backend = backend_for(x)
    if x.dtype not in _KERNEL_DTYPES or not asked(x.device.type, VARIABLE) or x.numel() == 0:
        return backend
    shape = (len(x), x.shape[1], 0 if skip is None else skip.shape[1], groups, *x.shape[2:])
    modulation = "per sample" if scale.ndim == 2 and len(scale) == len(x) > 1 else "shared"
    options = (activation, modulation, "channels_last" if is_channels_last(x) else "contiguous")
    found = choice("adaptive_group_norm", x.dtype, shape, wants_gradient(x, skip, scale, shift), options)
    return "triton" if found == "triton" else backend


def _definition_serves(x: Tensor) -> bool:
    """Whether plain PyTorch means the definition: where a compiler fuses it, and for what the others do not take.

    Inductor's C++ reduces channels_last input slower than the written-out form, so that stays even when compiled.
    """
    if x.dtype not in _KERNEL_DTYPES or x.numel() == 0:
        return True
    return torch.compiler.is_compiling() and (x.device.type != "cpu" or x.is_contiguous())


def _c_serves(x: Tensor) -> bool:
    """Whether the C code does it, without a custom operator around it: eager, and no tensor of another class."""
    return not torch.compiler.is_compiling() and type(x) in PLAIN and serves(x.device.type, x.dtype)


def _folding_serves(x: Tensor) -> bool:
    """Whether PyTorch's own group norm does it: elsewhere than on a CPU in any layout, with a copy there and back.

    There the written-out passes are 19 launches forward and 29 backward, over 11 and 14 times the least bytes.
    """
    return x.device.type != "cpu" or x.is_contiguous()


def _check(x: Tensor, scale: Tensor, shift: Tensor, groups: int, skip: Tensor | None, activation: str) -> None:
    """Raise ValueError unless the arguments belong together."""
    tensors = [t for t in (x, skip, scale, shift) if t is not None]
    if x.ndim < 2 or any(not t.is_floating_point() for t in tensors):
        shapes = [(list(t.shape), str(t.dtype)) for t in tensors]
        raise ValueError(f"x [B, C, *], skip, scale and shift must be floating point tensors, got {shapes}.")
    if len({t.device for t in tensors}) > 1:
        devices = sorted({str(t.device) for t in tensors})
        raise ValueError(f"All tensors must lie on one device, got {devices}. Move them with .to(device).")
    if skip is not None and (skip.ndim != x.ndim or skip.shape[0] != x.shape[0] or skip.shape[2:] != x.shape[2:]):
        raise ValueError(f"skip must equal x in all dims but channels, got {list(skip.shape)} beside {list(x.shape)}.")
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    for name, modulation in (("scale", scale), ("shift", shift)):
        if tuple(modulation.shape) not in ((x.shape[0], channels), (1, channels), (channels,)):
            raise ValueError(
                f"{name} must be [{x.shape[0]}, {channels}], [1, {channels}] or [{channels}], got "
                f"{list(modulation.shape)}."
            )
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups. Choose a divisor of {channels}.")
    if activation not in ("silu", "none"):
        raise ValueError(f"activation={activation!r} is unknown. Use 'silu' or 'none'.")
