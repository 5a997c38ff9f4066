"""The modulations of all residual blocks of a path at once: what time and features do to the second norm.

Every residual block projects the time embedding to a scale and a shift of its own width, and those of the shift
branch do the same with the features. All blocks read one embedding, so their projections are the rows of one
matrix: one product and a handful of element-wise operations serve a whole path, instead of one of each a block.

Legend of shape suffixes: B batch (or 1 where all samples share it), E embedding, S sum of the blocks' widths,
R rows of all projections (S for "default", 2 S for "scale_shift", scales first).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diticli.models.modules import ResnetBlock


class Modulation(NamedTuple):
    """What one block does to its hidden map: activation(norm(h + offset) * scale + shift), norm without affine."""

    scale: Tensor
    """[B, C] or [C]."""
    shift: Tensor
    """[B, C] or [C]."""
    offset: Tensor | None
    """[B, C] or None."""


class PathWeights(NamedTuple):
    """Second norms and time projections of the blocks of a path, laid end to end."""

    gamma_S: Tensor
    beta_S: Tensor
    weight_RE: Tensor
    bias_R: Tensor


def gather_weights(blocks: Sequence[ResnetBlock]) -> PathWeights:
    """Copies of the blocks' weights; gradients flow back to the blocks."""
    projections = [block.time_emb_proj for block in blocks]
    weight, bias = _stack(projections) if _scales(blocks) else (_cat(projections, "weight"), _cat(projections, "bias"))
    norms = [block.norm2 for block in blocks]
    return PathWeights(_cat(norms, "weight"), _cat(norms, "bias"), weight, bias)


def modulate(
    blocks: Sequence[ResnetBlock], weights: PathWeights, temb_BE: Tensor, z_mod_BS2: Tensor | None = None
) -> Iterator[Modulation]:
    """Modulation of each block in turn.

    "scale_shift": gamma and beta under (1 + s_t), b_t (Dhariwal & Nichol, 2021, section 3); "default": b_t is
    added before the norm. Either is then scaled by (1 + s_z) and shifted by b_z (PDAE, section 3.2).

    Args:
        blocks: of the path, in the order in which they run.
        weights: `gather_weights(blocks)`.
        temb_BE: time embedding.
        z_mod_BS2: `project_features` of the same blocks; None without features.
    """
    time_BR = F.linear(F.silu(temb_BE), weights.weight_RE, weights.bias_R)
    scale, shift, offset = _wide(weights.gamma_S), _wide(weights.beta_S), None
    if _scales(blocks):
        s_t, b_t = _wide(time_BR).chunk(2, dim=1)
        scale, shift = scale * (1 + s_t), torch.addcmul(b_t, shift, 1 + s_t)
    else:
        offset = time_BR
    if z_mod_BS2 is not None:
        s_z, b_z = _wide(z_mod_BS2).chunk(2, dim=1)
        scale, shift = scale * (1 + s_z), torch.addcmul(b_z, shift, 1 + s_z)
    widths = [block.out_channels for block in blocks]
    offsets = [None] * len(widths) if offset is None else offset.split(widths, dim=-1)
    parts = zip(scale.split(widths, dim=-1), shift.split(widths, dim=-1), offsets, strict=True)
    return iter([Modulation(*part) for part in parts])


def project_features(projections: Sequence[nn.Linear], zemb_BE: Tensor) -> Tensor:
    """Scales, then shifts, of all blocks: [B, 2 S] from the embedded features."""
    return F.linear(F.silu(zemb_BE), *_stack(projections))


def _scales(blocks: Sequence[ResnetBlock]) -> bool:
    return bool(blocks[0].time_embedding_norm == "scale_shift")


def _cat(modules: Sequence[nn.Module], name: str) -> Tensor:
    return torch.cat([cast(Tensor, getattr(module, name)) for module in modules])


def _stack(projections: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """All scale rows, then all shift rows, of projections that hold their own scale rows first."""
    weights = [p.weight.unflatten(0, (2, -1)).unbind() for p in projections]
    biases = [p.bias.unflatten(0, (2, -1)).unbind() for p in projections]
    return torch.cat([w[i] for i in (0, 1) for w in weights]), torch.cat([b[i] for i in (0, 1) for b in biases])


def _wide(tensor: Tensor) -> Tensor:
    """1 + s loses the small s in half precision."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
