"""Fail before images are read or a model is loaded where an environment variable cannot be obeyed."""

from __future__ import annotations

import diti_kernels
import torch

from diticli.errors import ConfigError, DeviceError
from diticli.models.attention import check_attention
from diticli.models.layout import layout_choice
from diticli.variables import CUDA_GRAPH, CUDA_GRAPH_CHOICES, word_of


def check_variables(device: torch.device, dtype: torch.dtype = torch.float32) -> None:
    """See that DITI_ATTENTION, DITI_CUDA_GRAPH, DITI_KERNELS and DITI_LAYOUT can be obeyed.

    Raises:
        ConfigError: when one of them holds an unknown word.
        DeviceError: when xformers or Triton is asked for and cannot run there.
    """
    check_attention(device, dtype)
    layout_choice(device, dtype)
    word_of(CUDA_GRAPH, CUDA_GRAPH_CHOICES)
    try:
        diti_kernels.decide(device.type)
    except (ValueError, RuntimeError) as error:
        wrong, _, remedy = str(error).partition(". ")
        kind = ConfigError if isinstance(error, ValueError) else DeviceError
        raise kind(f"{wrong}.", remedy=remedy) from error
