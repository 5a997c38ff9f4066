"""Do both sides compute the same thing? Asked of every run before a speed-up is printed.

Errors are relative: the 2-norm of the difference by the 2-norm of what is right, for the losses of a batch, for all
gradients together, and for the worst single tensor (whose norm counts as at least a thousandth of the whole, as
gradients that cancel to nothing have no relative error). Right is the official code in fp32 without TF32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

FP32_LIMIT = 1e-4
BF16_FACTOR = 2.0
FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Relative errors of one side."""

    loss: float
    gradient: float
    worst_tensor: float
    worst_name: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "loss": self.loss,
            "gradient": self.gradient,
            "worst_tensor": self.worst_tensor,
            "worst_name": self.worst_name,
        }


@dataclass(kw_only=True)
class Gate:
    """Checks of one run. A speed-up may be printed when there was one at least, and all passed."""

    checks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether speed-ups may be printed."""
        return bool(self.checks) and all(check["passed"] for check in self.checks)

    def check(self, name: str, error: float, limit: float) -> bool:
        """Note a check; an error that is no number fails."""
        passed = math.isfinite(error) and error <= limit
        self.checks.append({"name": name, "error": error, "limit": limit, "passed": passed})
        return passed

    def check_fp32(self, name: str, errors: Errors) -> None:
        """Losses, gradients and the worst tensor within 1e-4."""
        for what in ("loss", "gradient", "worst_tensor"):
            self.check(f"{name}: {what}", getattr(errors, what), FP32_LIMIT)

    def refusal(self) -> str:
        """Why no speed-up is printed; empty when it may be."""
        if self.passed:
            return ""
        failed = [f"{c['name']} {c['error']:.1e} > {c['limit']:.1e}" for c in self.checks if not c["passed"]]
        return "No speed-up: the sides were not compared." if not failed else f"No speed-up: {'; '.join(failed)}."

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"passed": self.passed, "checks": self.checks}


def relative(got: torch.Tensor, right: torch.Tensor) -> float:
    """2-norm of the difference by the 2-norm of what is right."""
    difference, norm = (got.double() - right.double()).norm(), right.double().norm()
    return float(difference / norm) if norm else float(difference)


def compare(
    losses: torch.Tensor,
    gradients: Mapping[str, torch.Tensor],
    right_losses: torch.Tensor,
    right_gradients: Mapping[str, torch.Tensor],
) -> Errors:
    """Errors of one side against the other.

    Raises:
        ValueError: when the names of the gradients differ.
    """
    if gradients.keys() != right_gradients.keys():
        raise ValueError(f"Different parameters: {sorted(gradients.keys() ^ right_gradients.keys())[:4]}.")
    norms = {name: float(right.double().norm()) for name, right in right_gradients.items()}
    whole = math.sqrt(sum(norm**2 for norm in norms.values()))
    distances = {name: float((gradients[name].double() - g.double()).norm()) for name, g in right_gradients.items()}
    each = {name: distances[name] / max(norms[name], FLOOR * whole) for name in norms}
    worst = max(each, key=lambda name: each[name] if math.isfinite(each[name]) else math.inf)
    return Errors(
        loss=relative(losses, right_losses),
        gradient=math.sqrt(sum(d**2 for d in distances.values())) / whole,
        worst_tensor=each[worst],
        worst_name=worst,
    )


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """No TF32 within the block."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
