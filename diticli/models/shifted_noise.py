"""The noise estimate that samplers walk along: base plus shift under fixed features.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, M all modulations.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from diticli.chunks import ChunkLayout
from diticli.models.frozen import FrozenBase
from diticli.models.predictor import ChunkWindows, predict
from diticli.models.shift_decoder import ShiftDecoder
from diticli.schedule import NoiseSchedule


class ShiftedNoise:
    """(x_t, t) -> eps + c_t G(x_t, t, m_t z), [B, C, H, W] in float32 (DiTi, arXiv 2401.11430, eq. 6).

    What the shift decoder takes from the features is the same at all time-steps of a chunk, so that it is computed
    when a walk enters a chunk and kept until it leaves.

    Args:
        base: the frozen base.
        decoder: its shift branch.
        schedule: on the device of both.
        layout: which chunk a time-step belongs to.
        windows: what a time-step sees of the features, on the same device.
        z_BD: features on the same device.
        form: of c_t, see `NoiseSchedule.shift_scale`.
    """

    def __init__(
        self,
        base: UNet2DModel | FrozenBase,
        decoder: ShiftDecoder,
        schedule: NoiseSchedule,
        layout: ChunkLayout,
        windows: ChunkWindows,
        z_BD: torch.Tensor,
        form: str,
    ) -> None:
        self._base, self._decoder, self._windows = base, decoder, windows
        self._z_BD = z_BD.to(decoder.dtype)
        # Rows of these are views: no step uploads a number.
        self._t_T = torch.arange(schedule.timesteps, device=z_BD.device)
        self._scale_T = schedule.shift_scale(self._t_T, form)
        self._chunk_T = layout.timestep_to_chunk().tolist()
        self._chunk = -1
        self._z_mod_BM = self._z_BD

    @torch.no_grad()
    def __call__(self, x_BCHW: torch.Tensor, t: int) -> torch.Tensor:
        """The estimate for noisy images, all of them at time-step t."""
        now = self._t_T[t : t + 1]
        if self._chunk_T[t] != self._chunk:
            self._chunk = self._chunk_T[t]
            self._z_mod_BM = self._decoder.project(self._z_BD, now, self._windows)
        noise, shift = predict(self._base, self._decoder, x_BCHW.to(self._base.dtype), now, self._z_mod_BM)[0]
        return noise.float() + self._scale_T[t] * shift.float()
