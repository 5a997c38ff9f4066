"""Loss weights over timesteps, and why a bottleneck keeps chunks apart. Ours; the published weight is the default.

A factor of the image that x_t determines up to a variance of 1 / (SNR_t s) costs the noise estimate one degree of
freedom, 1 / D of its mean squared error, at every t before the factor is lost (SNR_t s < 1), however well x_t shows it:
by I-MMSE (Guo et al., 2005), precision is worth as much at any noise level. Features without noise know the factor
exactly, so every factor helps equally at the smallest t, the first chunk takes what is easiest, and what it took the
later chunks need not learn: coarse attributes end up early. Where features are known to a variance of 1 / p only, they
save p / (p + SNR_t s) of that degree of freedom: nothing while x_t tells more than they do (SNR_t s >> p), all of it
just before the factor is lost. A Gaussian channel whose nats have a price gives features such a precision, and chunks
the attributes that are lost in their own timesteps.

Where every timestep sees all chunks and trains its own only, a chunk gains nothing by what another one tells, and a
factor goes to the chunk that gains most by it. At t it is SNR_t s / (1 + SNR_t s) of the D * error_t degrees of freedom
that the base misses. Those become fewer with t, so that the factor's part is largest around the timestep where it is
lost: the chunk there learns it fastest. Some price is needed here too: without one, chunks grow against each other.

A price b in degrees of freedom is what the loss pays for b of them in the chunk's own timesteps. Features of precision
p leave r / (1 + r + p) of a factor's degree of freedom missing, r = SNR_t s. More precision saves r / (1 + r + p)^2, at
most 1 / (4 (1 + p)) and that at r = 1 + p, and costs b / 2. So all factors are told up to 1 + p = 1 / (2 b), whatever
the base's errors, the size of images and the number of chunks, and with enough training they end in the chunk where x_t
tells them as precisely as the features do. A price in shares of the loss would tell coarse factors more precisely than
fine ones, since the base misses less at large t.

With "uniform" weights a degree of freedom saves the same at all t. "gap" makes late timesteps, where the base's error
is small, count as much as early ones.
"""

from __future__ import annotations

import numpy as np
import torch

from diticli.chunks import ChunkLayout
from diticli.models.gap import GapCurve
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


def degree_of_freedom(weight_T: torch.Tensor, layout: ChunkLayout, values: int) -> torch.Tensor:
    """What one degree of freedom of the noise estimate, told at all timesteps of a chunk, takes off the loss: [D], the
    same for all dims of a chunk.

    Args:
        weight_T: w_t, [T].
        layout: chunks of timesteps and of dims.
        values: of an image; a degree of freedom is one of them.
    """
    bounds = zip(layout.timestep_starts, layout.timestep_ends, strict=True)
    worth = torch.stack([weight_T[start:end].sum() for start, end in bounds]) / (len(weight_T) * values)
    return worth.repeat_interleave(torch.tensor(layout.ends) - torch.tensor(layout.starts))
