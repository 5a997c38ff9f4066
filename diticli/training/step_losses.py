"""The losses of one training step, as an objective returns them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class StepLosses(NamedTuple):
    """Losses of a step, one per image."""

    total_B: torch.Tensor
    """What is minimised."""
    noise_B: torch.Tensor | None
    """The part that depends on the timestep."""
    ssl_B: torch.Tensor | None
    """The self-supervised part, unweighted."""

    @classmethod
    def coerce(cls, output: StepLosses | torch.Tensor) -> StepLosses:
        """What an objective returned; a lone tensor depends on the timestep as a whole."""
        return output if isinstance(output, StepLosses) else cls(output, output, None)

    def detached(self) -> StepLosses:
        """The same numbers without what autograd recorded."""
        total_B, noise_B, ssl_B = (None if part is None else part.detach() for part in self)
        assert total_B is not None
        return StepLosses(total_B, noise_B, ssl_B)
