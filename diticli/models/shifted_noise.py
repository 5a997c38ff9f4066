"""The noise estimate that samplers walk along: base plus shift under fixed features.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, M all modulations.
"""

from __future__ import annotations

import torch

from diticli.chunks import ChunkLayout
from diticli.models.frozen_pair import FrozenPair
from diticli.models.predictor import ChunkWindows
from diticli.schedule import NoiseSchedule


class ShiftedNoise:
    """(x_t, t) -> eps + c_t G(x_t, t, m_t z), [B, C, H, W] in float32 (DiTi, arXiv 2401.11430, eq. 6).

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
