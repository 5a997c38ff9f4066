"""How long will a table of pairs take? Measured by a few steps of one batch."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from diticli.editing.engine import EditablePipeline, batch_of
from diticli.editing.many_files import TablePlan
from diticli.editing.settings import EditSettings

PROBED_STEPS = 2
PROBES = 3
"""The middle one counts: a single disturbance does not, and other work on the machine does."""


def seconds_for(pipeline: EditablePipeline, plan: TablePlan, settings: EditSettings) -> float:
    """Seconds of sampling that are left; an estimate that leaves out reading and writing."""
    invert, decode = plan.pictures
    if not decode:
        return 0.0
    side = getattr(pipeline, "resolution", 0)
    shape = (getattr(pipeline, "channels", 3), side, side)
    x = torch.zeros(1, *shape)
    size = min(decode, batch_of(pipeline, x, settings))
    short = replace(settings, invert_steps=PROBED_STEPS, decode_steps=PROBED_STEPS)
    z = torch.zeros(size, pipeline.chunks.latent_dim)
    noise = torch.zeros(size, *shape)
    took = []
    with torch.inference_mode():
        sampler = pipeline.sampler(**short.sampler_kwargs())
        for _ in range(1 + PROBES):  # the first warms up
            began = time.perf_counter()
            sampler.decode(noise, z, steps=PROBED_STEPS).cpu()
            took.append(time.perf_counter() - began)
    each = statistics.median(took[1:]) / (short.steps_run(pipeline.chunks.timesteps)[1] * size)
    inverting, decoding = settings.steps_run(pipeline.chunks.timesteps)
    return each * (invert * inverting + decode * decoding)
