"""Which runs are compiled, and how an objective gets its parts compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diticli.config import RunConfig
from diticli.models.compiled import CompiledPart, Part
from diticli.progress import Reporter

Compiler = Callable[[str, Part], Part]
"""(name for people, function) -> the same function, faster."""

CPU_STEPS = 50_000
"""Steps from which a run on a CPU is compiled.

On a CPU most of a step is convolutions, which a compiler leaves to oneDNN: a compiled step of faces32 (bf16, one
thread) was 1.01 to 1.04 times as fast, and compiling it took 96 to 230 s on a busy machine.
"""


def compile_pays(config: RunConfig, device: torch.device) -> bool:
    """What `compile = "auto"` means: yes on a GPU, on a CPU for runs of at least `CPU_STEPS` steps.

    The steps are those of all stages that the run trains.
    """
    if device.type == "cuda":
        return True
    trains_base = not config.base_model and not config.ssl.only
    return config.features.steps + (config.base.steps if trains_base else 0) >= CPU_STEPS


def compiler_for(reporter: Reporter) -> Compiler:
    """A `Compiler` that tells `reporter` where it fails."""
    return lambda name, function: CompiledPart(name, function, reporter)
