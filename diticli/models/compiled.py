"""torch.compile that says why where it fails, and goes on without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from diticli.progress import Reporter

Part = Callable[..., Any]
"""A function of tensors."""


class CompiledPart:
    """A function, compiled as one graph when it is first called.

    Where that fails, the reporter is told why, once, and the function runs uncompiled from then on: the result is
    the same.

    Args:
        name: what it is, for the message.
        function: of tensors of fixed shapes; under autograd or without.
        reporter: receiver of the message.
    """

    def __init__(self, name: str, function: Part, reporter: Reporter) -> None:
        self.name, self.function, self.reporter = name, function, reporter
        self._compiled: Part | None = torch.compile(function, fullgraph=True, dynamic=False)

    def __call__(self, *arguments: Any) -> Any:
        """The function's result."""
        if self._compiled is None:
            return self.function(*arguments)
        # Imported here: these modules take a second, and only compiled runs need them.
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
        from torch._functorch import config

        try:
            # Otherwise the backward pass is compiled within `backward`, where nothing could take over from it.
            with config.patch(force_non_lazy_backward_lowering=True):
                return self._compiled(*arguments)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._compiled = None
            self.reporter.warn(f"torch.compile failed on the {self.name}, which runs uncompiled: {_reason(error)}")
        return self.function(*arguments)


def _reason(error: Exception) -> str:
    """Kind and first line of the error, or of the compiler's own within it."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    return ": ".join([type(inner).__name__, *lines[:1]])
