"""The shifted noise estimate: base, shift decoder and chunk mask in one place for training and sampling.

Method: DiTi (arXiv 2401.11430), eq. 6; PDAE (arXiv 2212.12990), eq. 9-12.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, M all modulations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from diticli.chunks import ChunkLayout
from diticli.models.frozen import FrozenBase, FrozenPair
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.models.unet_forward import DownFeatures, predict_noise, run_down_path
from diticli.schedule import NoiseSchedule


class Prediction(NamedTuple):
    """The base's noise estimate and the shift G, both [B, C, H, W]."""

    noise: torch.Tensor
    shift: torch.Tensor


def run_base(base: UNet | FrozenBase, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, DownFeatures]:
    """Noise estimate [B, C, H, W] and down-path features of a base in eval mode, without gradient.

    Args:
        base: the base, or its inference copy.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
    """
    if isinstance(base, FrozenBase):
        return base(x_BCHW, t_B)
    with torch.no_grad():
        down = run_down_path(base, x_BCHW, t_B)
        return predict_noise(base, down), down


def predict(
    base: UNet | FrozenBase,
    decoder: ShiftDecoder,
    x_BCHW: torch.Tensor,
    t_B: torch.Tensor,
    *z_mods: torch.Tensor,
) -> list[Prediction]:
    """One prediction per set of features; the frozen base runs once, without gradient.

    Args:
        base: in eval mode.
        decoder: its shift branch.
        x_BCHW: noisy images.
        t_B: integer timesteps [B], or [1] for all samples.
        z_mods: projected features, one or more sets; see `ShiftDecoder.project`.
    """
    noise, down = run_base(base, x_BCHW, t_B)
    return [Prediction(noise, decoder(down, z_mod)) for z_mod in z_mods]


class ShiftedNoise:
    """The noise estimate that samplers follow: (x_t, t) -> eps + c_t G(x_t, t, m_t z), [B, C, H, W] in float32.

    What the shift branch takes from the features is the same at all timesteps of a chunk, so that it is computed
    when a walk enters a chunk and kept until it leaves.

    Args:
        pair: base and shift branch.
        schedule: on their device.
        layout: which chunk a timestep belongs to.
        windows: what a timestep sees of the features, on the same device.
        z_BD: features on the same device.
        form: of c_t, see `NoiseSchedule.shift_scale`.
    """

    def __init__(
        self,
        pair: FrozenPair,
        schedule: NoiseSchedule,
        layout: ChunkLayout,
        windows: ChunkWindows,
        z_BD: torch.Tensor,
        form: str,
    ) -> None:
        self._pair, self._windows, self._z_BD = pair, windows, z_BD
        # Rows of these are views: no step uploads a number.
        self._t_T = torch.arange(schedule.timesteps, device=z_BD.device)
        self._scale_T = schedule.shift_scale(self._t_T, form)
        self._chunk_T = layout.timestep_to_chunk().tolist()
        self._chunk = -1
        self._z_mod_BM = z_BD

    @torch.no_grad()
    def __call__(self, x_BCHW: torch.Tensor, t: int) -> torch.Tensor:
        """The estimate for noisy images, all of them at timestep t."""
        now = self._t_T[t : t + 1]
        if self._chunk_T[t] != self._chunk:
            self._chunk = self._chunk_T[t]
            self._z_mod_BM = self._pair.shift.project(self._z_BD, now, self._windows)
        return self._pair.estimate(x_BCHW, now, self._z_mod_BM, self._scale_T[t])
