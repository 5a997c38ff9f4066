"""Choose the memory layout, NCHW or channels_last, of feature maps and of inference copies' weights.

channels_last on a GPU, whose tensor cores want it, and in half precision on a CPU: measured on a Xeon with AMX, whole
steps of faces32 and celeba64 networks, forward passes are 1.3 to 1.45 times as fast as in NCHW and training steps 1.1
times. In float32 on a CPU a short measurement decides (`diti_kernels.cpu_layout`) where a C compiler makes norms for it
(`diti_kernels.native`): on a Xeon with AVX-512 steps take 0.7 to 0.95 of their time. Without a compiler NCHW is 1.05
times as fast. `diticli.models.norms` says what norms make of it.
`DITI_LAYOUT=auto|contiguous|channels_last` (default auto) forces one; contiguous is NCHW.

Weights in training stay in NCHW, as they are loaded and resumed: fused optimizers walk through a weight and its state
side by side in memory, and state that was read from a file lies in NCHW. In float32 on a CPU they lie as maps do, and
state that is read is laid out so (`StageTrainer`).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Literal, NamedTuple, cast

import torch
from diti_kernels.adaptive_group_norm.compiled_rows import serves
from diti_kernels.cpu_layout import measured
from diti_kernels.dispatch import constant_in_graphs
from torch import Tensor

from diticli.variables import word_of

logger = logging.getLogger(__name__)
VARIABLE = "DITI_LAYOUT"

Layout = Literal["contiguous", "channels_last"]
_FORMATS: dict[Layout, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
CHOICES = ("auto", *_FORMATS)


class LayoutChoice(NamedTuple):
    """The chosen memory layout and why.

    Attributes:
        name: "contiguous" or "channels_last".
        reason: half a sentence for people, e.g. "DITI_LAYOUT=contiguous".
    """

    name: Layout
    reason: str


def in_layout(x_BCHW: Tensor) -> Tensor:
    """`x` in the layout in which networks run on its device, in autocast's dtype or else its own.

    Raises:
        ConfigError: when DITI_LAYOUT is none of auto, contiguous, channels_last.
    """
    device, dtype = x_BCHW.device, x_BCHW.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return x_BCHW.contiguous(memory_format=layout_for(device, dtype))


def layout_for(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """Layout of maps and weights on `device` in `dtype`; logs the choice and its reason once.

    Under `torch.compile` the choice is made when the graph is traced and stays with that graph.

    Raises:
        ConfigError: when DITI_LAYOUT is none of auto, contiguous, channels_last.
    """
    return _FORMATS[_choose_and_log(device, dtype)]


def layout_choice(device: torch.device, dtype: torch.dtype) -> LayoutChoice:
    """What `layout_for` answers, and why, without logging it.

    Raises:
        ConfigError: when DITI_LAYOUT is none of auto, contiguous, channels_last.
    """
    wanted = word_of(VARIABLE, CHOICES)
    if wanted != "auto":
        return LayoutChoice(cast(Layout, wanted), f"{VARIABLE}={wanted}")
    if device.type != "cpu":
        return LayoutChoice("channels_last", "tensor cores want it")
    if dtype.itemsize > 2 and serves(device.type, dtype):
        found = measured(torch.get_num_threads())
        return LayoutChoice("channels_last" if found.wins else "contiguous", found.reason)
    if dtype.itemsize > 2:
        return LayoutChoice("contiguous", f"faster on a CPU in {str(dtype).removeprefix('torch.')} without norms in C")
    return LayoutChoice("channels_last", "faster on a CPU in half precision")


@constant_in_graphs
def _choose_and_log(device: torch.device, dtype: torch.dtype) -> Layout:
    choice = layout_choice(device, dtype)
    _log_once(device.type, dtype, choice)
    return choice.name


@cache
def _log_once(device_type: str, dtype: torch.dtype, choice: LayoutChoice) -> None:
    logger.info("Layout of maps on %s in %s: %s (%s)", device_type, str(dtype).removeprefix("torch."), *choice)
