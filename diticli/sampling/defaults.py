"""Which solver, and how many steps, where nobody says otherwise. Imports no torch: help texts show these.

Chosen from `benchmarks/reconstruction.py`: fewer steps give images back well, but may edit to another mode of the
distribution than the path itself leads to; 20 follow it to above 45 dB.
"""

from __future__ import annotations

from typing import Literal

from diticli.config import Precision

Solver = Literal["dpm", "ddim"]
DEFAULT_SOLVER: Solver = "dpm"
DEFAULT_STEPS = 20
"""From image to noise, and as many back."""
DEFAULT_CLIP: dict[Solver, bool | None] = {"dpm": None, "ddim": True}
"""Whether the predicted x_0 is clamped to [-1, 1]. DDIM's round trip is best with both directions clamped, and the
official code clamps; the multistep solver clamps with few steps, and else is accurate enough to follow the path itself,
which clamping leaves."""
DEFAULT_PRECISION: dict[Solver, Precision] = {"dpm": "auto", "ddim": "fp32"}
"""In which the networks compute. bf16, where the hardware has it, costs some tenths of a dB of a round trip and
halves its time; DDIM is kept for parity with the official code, which computes in float32."""


def steps_run(solver: Solver, steps: int, timesteps: int) -> int:
    """How many steps a solver runs when `steps` are asked for, of a model with `timesteps`.

    The DPM solver runs as many as asked for. DDIM goes in strides of T // steps, as the official code does, so it runs
    more wherever `steps` does not divide T: 31 for 30, 500 for 334 and 1000 for 600 at T = 1000.
    """
    return steps if solver != "ddim" else len(range(0, timesteps, max(1, timesteps // max(1, steps))))
