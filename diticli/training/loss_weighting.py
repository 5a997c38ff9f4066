"""Loss weights over timesteps, and the scale of the KL term of each chunk. Ours; the published weight is the default.

A factor that x_t still shows costs the noise estimate one degree of freedom, 1 / D of its mean squared error, at
every t before noise hides it (I-MMSE, Guo et al., 2005). Exact features would therefore save as much at the
smallest t as at any other; features that are known up to noise, as in a VAE, save most just before the factor is
hidden, which keeps a chunk to its own timesteps. docs/modularity.md derives it. A KL weight b, in degrees of
freedom, limits the signal-to-noise ratio of the features to about 1 / (2 b) - 1.

With "uniform" weights a degree of freedom saves the same at all t. "gap" makes late timesteps, where the base's error
is small, count as much as early ones.
"""

from __future__ import annotations

import numpy as np
import torch

from diticli.chunks import ChunkLayout
from diticli.models.reconstruction_gap import GapCurve
from diticli.schedule import NoiseSchedule


def loss_weights(schedule: NoiseSchedule, gap: GapCurve, weighting: str) -> torch.Tensor:
    """w_t [T], scaled so that the base alone has a mean loss of 1.

    Args:
        schedule: of the base.
        gap: the base's errors by timestep.
        weighting: "pdae", "uniform" or "gap"; see `diticli.config_groups.ModularityConfig`.
    """
    error_T = noise_error(schedule, gap)
    weights = {"pdae": schedule.loss_weight, "uniform": torch.ones_like(error_T), "gap": 1 / error_T}[weighting]
    return weights / (weights * error_T).mean()


def noise_error(schedule: NoiseSchedule, gap: GapCurve) -> torch.Tensor:
    """Mean squared error [T] of the base's noise estimate: that of the image times SNR_t, straight in log between the
    timesteps that were measured."""
    bar = schedule.alphas_cumprod.double().cpu().numpy()
    measured = np.array(gap.timesteps)
    errors = np.array(gap.error) * bar[measured] / (1 - bar[measured])
    return torch.from_numpy(np.exp(np.interp(np.arange(len(bar)), measured, np.log(errors)))).float()


def kl_scale(weight_T: torch.Tensor, layout: ChunkLayout, values: int) -> torch.Tensor:
    """Scale of the KL term [D], the same for all dims of a chunk: by how much the loss falls for each degree of freedom
    of the noise estimate that the chunk supplies at all its timesteps.

    Args:
        weight_T: w_t, [T].
        layout: chunks of timesteps and of dims.
        values: of an image; a degree of freedom is one of them.
    """
    bounds = zip(layout.timestep_starts, layout.timestep_ends, strict=True)
    scale_K = torch.stack([weight_T[start:end].sum() for start, end in bounds]) / (len(weight_T) * values)
    return scale_K.repeat_interleave(torch.tensor(layout.ends) - torch.tensor(layout.starts))
