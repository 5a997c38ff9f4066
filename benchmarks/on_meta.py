"""What a step asks of a GPU, counted without one: launches, bytes, memory, and whatever makes the host wait.

Operators run on the meta device, which holds no numbers, and on which our networks take a GPU's paths: what asks for a
value there, or copies to the host, fails. The fused operators of `diti_kernels` count as the kernels that they launch.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from diti_kernels import dispatch
from diti_kernels.adaptive_group_norm import launch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diticli.config import RunConfig
from diticli.models.build import build_unet, new_scheduler
from diticli.models.frozen import FrozenPair
from diticli.models.largest_batch import peak_or_none
from diticli.models.shift_decoder import ShiftDecoder
from diticli.training.objectives import Objective
from diticli.training.plan import stages_of
from diticli.training.step_losses import StepLosses

META = torch.device("meta")
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "_unique2", "is_nonzero", "item"}
"""What makes the host wait for a GPU: a value, or a shape that depends on one."""
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "_unsafe_view"}
"""Operators without a launch, beside views."""


class Launches(TorchDispatchMode):
    """Kernels that operators launch within the block, by name, and the bytes of what they read and write.

    Attributes:
        uploads: copies of host tensors to the device.

    Raises:
        AssertionError: where the host would wait for the device, or copy from it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes = self.uploads = 0

    @property
    def total(self) -> int:
        """All launches."""
        return sum(self.counts.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        made = func(*args, **(kwargs or {}))
        given, found = ({value.device.type for value in _tensors(part)} for part in ((args, kwargs), made))
        if META.type in given:
            assert name not in WAITING, f"{func} makes the host wait"
            assert found <= {META.type}, f"{func} copies to the host"
        if META.type not in given | found:  # on the host
            return made
        self.uploads += name in ("_to_copy", "copy_") and "cpu" in given
        if not (func.is_view or name in _FREE):
            self.counts[name] += _kernels(name, args)
            self.bytes += sum(value.numel() * value.element_size() for value in _tensors((args, made)))
        return made


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _kernels(name: str, args: Any) -> int:
    """Launches of one of our operators in Triton; one of any other."""
    if name not in ("adaptive_group_norm", "adaptive_group_norm_backward"):
        return 1
    backward = name.endswith("backward")
    x, scale, groups = (args[1], args[3], args[7]) if backward else (args[0], args[2], args[4])
    values = launch._ONE_PASS_BACKWARD if backward else launch._ONE_PASS_FORWARD
    return 1 if launch.plan(x.shape[1], scale.shape[1], groups, values).tiles is None else 3


class _Autocast(TorchFunctionMode):
    """What autocast to bf16 does with the operators of our networks; the meta device has none of its own."""

    LOWERED = ("conv2d", "conv_transpose2d", "linear", "matmul", "bmm", "addmm", "scaled_dot_product_attention")

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self._weights: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.enabled and getattr(func, "__name__", "") in self.LOWERED:
            args = [self._lowered(value) for value in args]
            kwargs = {key: self._lowered(value) for key, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))

    def _lowered(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(torch.bfloat16)
        if id(value) not in self._weights:  # autocast casts a weight once
            self._weights[id(value)] = value.to(torch.bfloat16)
        return self._weights[id(value)]

    def is_enabled(self, device_type: str = "") -> bool:
        """In place of `torch.is_autocast_enabled`."""
        return self.enabled

    @contextlib.contextmanager
    def switched(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> Iterator[None]:
        """In place of `torch.autocast`."""
        before, self.enabled = self.enabled, self.enabled and enabled
        try:
            yield
        finally:
            self.enabled = before


class _ChannelsLast(TorchDispatchMode):
    """Convolutions of channels_last maps give such maps, as cuDNN's do; on the meta device PyTorch leaves that out."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and any(map(_is_channels_last, args[:2])):
            return torch.empty_like(made, memory_format=torch.channels_last)
        return made


def _is_channels_last(x: torch.Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@contextlib.contextmanager
def as_on_a_gpu(kernels: str = "reference", precision: str = "fp32") -> Iterator[None]:
    """Tensors of the meta device take a GPU's paths within the block.

    Args:
        kernels: "reference" or "triton".
        precision: "fp32", or "bf16" for autocast.
    """
    mode = _Autocast(precision == "bf16")
    with (
        mock.patch.dict(os.environ, {dispatch.VARIABLE: kernels}),
        mock.patch.object(dispatch, "_require_triton"),
        mock.patch.object(torch, "autocast", mode.switched),
        mock.patch.object(torch, "is_autocast_enabled", mode.is_enabled),
        mock.patch.object(torch, "get_autocast_dtype", return_value=torch.bfloat16),
        mode,
        _ChannelsLast(),
    ):
        yield


def objectives(config: RunConfig) -> dict[str, Objective]:
    """The objective of each stage on the meta device, in training mode."""
    config = replace(config, device="cpu", compile=False)
    stages = list(stages_of(config))  # the second is made of the first one's weights
    return {name: objective.to(META).train() for name, objective, _ in stages}


def gradients(objective: Objective, config: RunConfig, batch_size: int) -> None:
    """Losses and gradients of images on the meta device."""
    side = config.data.resolution
    images = torch.empty(batch_size, config.data.channels, side, side, device=META)
    timesteps = torch.empty(batch_size, dtype=torch.int64, device=META)
    losses = StepLosses.coerce(objective(images, timesteps, torch.empty_like(images)))  # type: ignore[arg-type]
    losses.total_B.mean().backward()


def step_launches(objective: Objective, config: RunConfig, kernels: str, precision: str, batch_size: int) -> Launches:
    """Launches of a step's forward and backward passes."""
    with as_on_a_gpu(kernels, precision), Launches() as launches:
        gradients(objective, config, batch_size)
    objective.zero_grad(set_to_none=True)
    return launches


def sampler_launches(config: RunConfig, kernels: str, dtype: torch.dtype, batch_size: int) -> Launches:
    """Launches of a sampler's step."""
    with META:
        unet = build_unet(config.unet, config.data.resolution, config.data.channels)
        decoder = ShiftDecoder.for_unet(unet, config.chunks.latent_dim)
    pair = FrozenPair(unet, decoder, dtype)
    side = config.data.resolution
    with as_on_a_gpu(kernels):
        z_mod = pair.shift.project(
            torch.empty(batch_size, config.chunks.latent_dim, device=META),
            torch.empty(1, dtype=torch.int64, device=META),
            _windows(config),
        )
        with Launches() as launches, torch.no_grad():
            x = torch.empty(batch_size, config.data.channels, side, side, device=META)
            pair._estimate(x, torch.empty(1, dtype=torch.int64, device=META), z_mod, torch.empty((), device=META))
    return launches


def _windows(config: RunConfig) -> Any:
    from diticli.models.shift_decoder import ChunkWindows

    return ChunkWindows(config.provisional_layout(new_scheduler().config.num_train_timesteps)).to(META)


def step_bytes(objective: Objective, config: RunConfig, precision: str, count: int) -> int:
    """Bytes that a step of `count` images takes beside weights and their states, at most at once.

    Every operator by itself, in plain PyTorch: a compiled step keeps less. The gradients of the weights count.
    """

    def step(count: int) -> None:
        gradients(objective, config, count)
        objective.zero_grad(set_to_none=True)

    with as_on_a_gpu("reference", precision):
        peak = peak_or_none(step, count, META)
    assert peak is not None
    return peak
