"""Types of the samplers' arguments: a noise predictor, and a callback after every step."""

from __future__ import annotations

from collections.abc import Callable

import torch

# (x_t [B, C, H, W], timestep of all samples) -> noise estimate [B, C, H, W]. The timestep is a Python int, so that
# a predictor can look things up by it without waiting for a GPU.
NoisePredictor = Callable[[torch.Tensor, int], torch.Tensor]
# (steps done, steps in all)
StepCallback = Callable[[int, int], None]
