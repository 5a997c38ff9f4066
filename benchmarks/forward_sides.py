"""The two sides of `benchmarks.forward`: a noise estimate by the official networks, and by our inference copies."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.cases import DIFFUSION, SEED, TIMESTEPS, Case, pictures
from benchmarks.official_side import OfficialModel
from benchmarks.our_side import variables
from diticli.models.device import gpu_convolutions
from diticli.models.frozen import FrozenBase, FrozenPair
from diticli.models.pipeline import DiTiPipeline, normalise

Estimate = Callable[[int], torch.Tensor]
"""Of a timestep, for the inputs that both sides share."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What both sides are given: noisy images [B, 3, R, R] and features [B, d], float32 on the device."""

    x_t: torch.Tensor
    z: torch.Tensor

    @classmethod
    def draw(cls, case: Case, batch_size: int, device: torch.device) -> Inputs:
        """Faces in noise, and random features."""
        random = torch.Generator().manual_seed(SEED)
        x0 = normalise(pictures(case, batch_size))
        x_t = 0.5 * x0 + 0.75**0.5 * torch.randn(x0.shape, generator=random)
        return cls(x_t=x_t.to(device), z=torch.randn(batch_size, case.latent_dim, generator=random).to(device))


class OfficialForward:
    """The official networks on a device, in eval mode.

    Args:
        model: copied.
        inputs: of every call.
        part: "base" or "pair".
        precision: "fp32", or "bf16" for autocast.
        tuned: weights of convolutions and linear layers in bf16 and channels_last.
        compiled: by torch.compile, as its --compile does.
    """

    def __init__(
        self,
        model: OfficialModel,
        inputs: Inputs,
        part: str,
        *,
        precision: str,
        tuned: bool = False,
        compiled: bool = False,
    ) -> None:
        self.inputs, self.part, self.precision, self.device = inputs, part, precision, inputs.x_t.device
        network = copy.deepcopy(model.decoder) if part == "pair" else model.base()
        self.network = network.to(self.device).requires_grad_(False).eval()
        self.layout = torch.channels_last if tuned else torch.contiguous_format
        if tuned:
            _to_bf16(self.network)
        if compiled:
            self.network.compile()
        self.chunk_T, self.prefix = model.masks(self.device)[:2]
        self.diffusion = model.code.diffusion(DIFFUSION, device=self.device)

    @torch.inference_mode()
    def __call__(self, timestep: int) -> torch.Tensor:
        """The estimate [B, 3, R, R], as its sampler and its loss compute it."""
        x, z = self.inputs.x_t.contiguous(memory_format=self.layout), self.inputs.z
        t = torch.full((len(x),), timestep, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.part == "base":
                noise: torch.Tensor = self.network(x, t)
                return noise
            noise, shift = self.network(x, t, z * self.prefix[self.chunk_T[t]])
            scale = self.diffusion.extract_coef_at_t(self.diffusion.shift_coef, t, x.shape)
            estimate: torch.Tensor = noise + scale * shift
            return estimate


def _to_bf16(network: nn.Module) -> None:
    """Spares autocast its copies of weights; norms stay in float32."""
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class OurForward:
    """Our inference copies.

    Args:
        pipeline: on the device; left as it is.
        inputs: of every call.
        part: "base" or "pair".
        precision: "fp32" or "bf16".
        merge: False keeps repetition and convolution apart in the base's copy.
        compile: with torch.compile.
        environment: variables (DITI_LAYOUT, ...) that hold while the copies are made and while they run.
    """

    def __init__(
        self,
        pipeline: DiTiPipeline,
        inputs: Inputs,
        part: str,
        *,
        precision: str,
        merge: bool = True,
        compile: bool = False,
        environment: dict[str, str] | None = None,
    ) -> None:
        assert pipeline.unet is not None
        assert pipeline.shift_decoder is not None
        self.inputs, self.environment = inputs, environment or {}
        self.windows, device = pipeline.windows, inputs.x_t.device
        self.t_T = torch.arange(TIMESTEPS, device=device)
        self.scale_T = pipeline.schedule.shift_scale(self.t_T, "posterior")
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        with variables(self.environment):
            self.pair = FrozenPair(pipeline.unet, pipeline.shift_decoder, dtype, compile=compile and part == "pair")
            if not merge:
                self.pair.base = FrozenBase(pipeline.unet, dtype, merge_up_to=0)
        if compile and part == "base":
            self.pair.base.compile(fullgraph=True, dynamic=False)
        self.run = self._base if part == "base" else self._pair

    @torch.inference_mode()
    def __call__(self, timestep: int) -> torch.Tensor:
        """The estimate [B, 3, R, R], as edits compute it."""
        with variables(self.environment), gpu_convolutions(self.inputs.x_t.device, self.pair.base.dtype, timed=True):
            return self.run(timestep)

    def _base(self, timestep: int) -> torch.Tensor:
        noise: torch.Tensor = self.pair.base(self.inputs.x_t, self.t_T[timestep : timestep + 1])[0]
        return noise

    def _pair(self, timestep: int) -> torch.Tensor:
        t = self.t_T[timestep : timestep + 1]
        z_mod = self.pair.shift.project(self.inputs.z, t, self.windows)
        return self.pair.estimate(self.inputs.x_t, t, z_mod, self.scale_T[timestep])
