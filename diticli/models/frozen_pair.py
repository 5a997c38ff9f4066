"""Base and shift branch as sampling runs them: inference copies of both, and one step's estimate from them.

Legend of shape suffixes: B batch, C channels, H height, W width, M all modulations.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from diticli.models.compiled import CompiledPart, Part
from diticli.models.frozen import FrozenBase
from diticli.models.frozen_shift import FrozenShift
from diticli.models.shift_body import ShiftBody
from diticli.models.step_graph import StepGraph, wants_graph
from diticli.progress import WarningReporter

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from diticli.models.plain_unet import PlainUNet


class FrozenPair:
    """Inference copies of a base and its shift branch.

    Args:
        unet: the base; left as it is.
        decoder: its shift branch; left as it is.
        dtype: in which the copies compute.
        compile: the step with torch.compile, for the first two shapes of x that come: inverting and decoding full
            batches. Others, such as those of a last batch, run uncompiled.
    """

    MOST_GRAPHS = 4
    MOST_COMPILED = 2

    def __init__(
        self, unet: UNet2DModel | PlainUNet, decoder: ShiftBody, dtype: torch.dtype, *, compile: bool = False
    ) -> None:
        if unet.dtype != torch.float32:
            unet = copy.deepcopy(unet).float()  # the time embedding is computed in float32
        devices = [unet.device] if unet.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # new layers draw their weights before they are given others
            self.base, self.shift = FrozenBase(unet, dtype), FrozenShift(decoder, dtype)
        self._graphs: dict[torch.Size, StepGraph] = {}
        self._compiled: Part | None = (
            CompiledPart("sampler's step", self._estimate, WarningReporter()) if compile else None
        )
        self._compiled_shapes: set[torch.Size] = set()

    def estimate(
        self, x_BCHW: torch.Tensor, t_1: torch.Tensor, z_mod_BM: torch.Tensor, scale: torch.Tensor
    ) -> torch.Tensor:
        """eps + scale * G, [B, C, H, W] in float32; at small batches on a GPU as one CUDA graph.

        Args:
            x_BCHW: noisy images, float32.
            t_1: timestep of all of them, [1].
            z_mod_BM: `FrozenShift.project`.
            scale: factor of the shift, a scalar.
        """
        inputs = (x_BCHW, t_1, z_mod_BM, scale)
        step = self._step_for(x_BCHW.shape)
        if not wants_graph(x_BCHW):
            estimate_BCHW: torch.Tensor = step(*inputs)
            return estimate_BCHW
        if x_BCHW.shape not in self._graphs:
            if len(self._graphs) >= self.MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[x_BCHW.shape] = StepGraph(step, *inputs)
        return self._graphs[x_BCHW.shape](*inputs)

    def _step_for(self, shape: torch.Size) -> Part:
        if self._compiled is None:
            return self._estimate
        if len(self._compiled_shapes) < self.MOST_COMPILED:
            self._compiled_shapes.add(shape)
        return self._compiled if shape in self._compiled_shapes else self._estimate

    def _estimate(self, x: torch.Tensor, t: torch.Tensor, z_mod: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        noise, down = self.base(x, t)
        return noise.float() + scale * self.shift(down, z_mod).float()
