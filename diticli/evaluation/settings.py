"""Settings of an evaluation of edits."""

from __future__ import annotations

from dataclasses import dataclass

from diticli.probing.directions import DEFAULT_ALONG, Along
from diticli.sampling import DEFAULT_SOLVER, DEFAULT_STEPS, Solver, steps_run


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How edits are made and judged.

    Attributes:
        steps: of inversion and of decoding that are asked for; see `diticli.sampling.steps_run`.
        solver: "dpm" or "ddim".
        amount: of an attribute move, both ways; see `Directions.move`.
        along: which direction of an attribute; see `Directions.vector`.
        batch_size: images decoded together.
        seed: of splits and bootstraps.
        force: judge edits also where reconstructions are too bad for it; then it is only warned of.
    """

    steps: int = DEFAULT_STEPS
    solver: Solver = DEFAULT_SOLVER
    amount: float = 0.3
    along: Along = DEFAULT_ALONG
    batch_size: int = 128
    seed: int = 0
    force: bool = False

    def steps_run(self, timesteps: int) -> int:
        """Steps each way that run on a model with `timesteps`."""
        return steps_run(self.solver, self.steps, timesteps)
