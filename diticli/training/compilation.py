"""Which runs are compiled, and how an objective gets its parts compiled."""

from __future__ import annotations

from collections.abc import Callable

import torch

from diticli.config import RunConfig
from diticli.models.compiled import CompiledPart, Part
from diticli.models.device import resolve_precision
from diticli.progress import Reporter

Compiler = Callable[[str, Part], Part]
"""(name for people, function) -> the same function, faster."""

CPU_STEPS = {"fp32": 5_000, "bf16": 20_000}
"""Steps, by precision, from which a run on a CPU is compiled.

On a CPU most of a step is convolutions, which a compiler leaves to oneDNN. Measured on faces32 with one thread, beside
other work: a compiled step was 1.12 to 1.15 times as fast in fp32 and 1.01 to 1.04 times in bf16, and compiling took as
long as 60 to 175 steps. That is won back within 1,600 steps in fp32, and 15,000 in bf16 at the worst.
"""


def compile_pays(config: RunConfig, device: torch.device) -> bool:
    """What `compile = "auto"` means: yes on a GPU, on a CPU for runs of at least `CPU_STEPS` steps.

    The steps are those of all stages that the run trains; auto precision is that of the device. A run that is planned
    by time (`minutes`) is not compiled on a CPU: its steps are not known yet.
    """
    if device.type == "cuda":
        return True
    if config.minutes:
        return False
    precision = resolve_precision(config.precision, device)
    trains_base = not config.base_model and not config.ssl.only
    return config.features.steps + (config.base.steps if trains_base else 0) >= CPU_STEPS[precision]


def compiler_for(reporter: Reporter) -> Compiler:
    """A `Compiler` that tells `reporter` where it fails."""
    return lambda name, function: CompiledPart(name, function, reporter)
