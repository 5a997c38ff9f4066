"""The shift branch as sampling runs it: a copy in one dtype, with all that its weights imply computed once.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, M all modulations.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from diticli.models.blocks import norm_silu
from diticli.models.frozen import to_inference
from diticli.models.modulation import PathWeights, gather_weights, modulate
from diticli.models.predictor import ChunkWindows
from diticli.models.shift_body import ShiftBody
from diticli.models.unet import DownFeatures, run_up_path, up_resnets


class FrozenShift(nn.Module):
    """An inference copy of a shift decoder, beside `diticli.models.frozen.FrozenBase`.

    What modulates stays in float32; it costs next to nothing.

    Args:
        decoder: left as it is.
        dtype: in which the copy computes.
    """

    def __init__(self, decoder: ShiftBody, dtype: torch.dtype = torch.bfloat16) -> None:
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
