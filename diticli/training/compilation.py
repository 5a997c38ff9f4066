"""torch.compile for the parts of a training step, and the rule by which `compile = "auto"` decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._functorch import config as functorch_config

from diticli.config import RunConfig
from diticli.progress import Reporter

Part = Callable[..., Any]
"""A function of tensors that takes part in a training step."""
Compiler = Callable[[str, Part], Part]
"""(name for people, function) -> the same function, faster."""


CPU_STEPS = 50_000
"""Steps from which a run on a CPU is compiled."""


def compile_pays(config: RunConfig, device: torch.device) -> bool:
    """What `compile = "auto"` means: yes on a GPU, on a CPU for runs of at least `CPU_STEPS` steps.

    The steps are those of all stages that the run trains.
    """
    if device.type == "cuda":
        return True
    trains_base = not config.base_model and not config.ssl.only
    return config.features.steps + (config.base.steps if trains_base else 0) >= CPU_STEPS


class CompiledPart:
    """A function, compiled as one graph when it is first called.

    Where that fails, the reporter is told why, once, and the function runs uncompiled from then on: the result is
    the same.

    Args:
        name: what it is, for the message.
        function: of tensors; under autograd or without.
        reporter: receiver of the message.
    """

    def __init__(self, name: str, function: Part, reporter: Reporter) -> None:
        self.name, self.function, self.reporter = name, function, reporter
        self._compiled: Part | None = torch.compile(function, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if self._compiled is None:
            return self.function(*arguments)
        try:
            # Otherwise the backward pass is compiled within `backward`, where nothing could take over from it.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._compiled = None
            self.reporter.warn(f"torch.compile failed on the {self.name}, which runs uncompiled: {_first_line(error)}")
        return self.function(*arguments)


def compiler_for(reporter: Reporter) -> Compiler:
    """A `Compiler` that tells `reporter` where it fails."""
    return lambda name, function: CompiledPart(name, function, reporter)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
