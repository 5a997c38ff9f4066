"""Whether a sampler's step is faster as a CUDA graph, measured where it runs: both ways launch the same kernels."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from diti_kernels.sites import Site

from diticli.memory import is_out_of_memory
from diticli.models.compiled import StepGraph, should_capture
from diticli.progress import Reporter
from diticli.tuning.cache import REFERENCE, TuningCache, Verdict, environment
from diticli.tuning.trial import Watch, in_turns, is_faster, stopwatch
from diticli.tuning.tune import indexed, tuning_seconds

GRAPH = "graph"
LARGEST_TRIED = 128
"""Batches up to which a graph is tried at all: it keeps the memory of a step for itself."""
ROUNDS = 5

Step = Callable[..., torch.Tensor]


def graph_wins(
    step: Step, inputs: tuple[torch.Tensor, ...], network: str, *, watch: Watch | None = None, reporter: Reporter
) -> bool:
    """Whether to capture a step at this batch: by what is known, else by measuring, else by `should_capture`'s guess.

    Args:
        step: of a sampler.
        inputs: of the step, the images first.
        network: what tells networks of other sizes apart.
        watch: of the device.
        reporter: warned where capturing fails.
    """
    x = inputs[0]
    cache = TuningCache(environment(indexed(x.device)), reporter)
    batch = 1 << (len(x) - 1).bit_length()
    site = Site("sampler's step", "captured", str(x.dtype)[6:], (batch, *x.shape[1:]), (False,), (network,))
    verdict = cache.read(site)
    if verdict is None:
        if not tuning_seconds() or len(x) > LARGEST_TRIED:
            return should_capture(x)
        try:
            verdict = _measured(site, step, inputs, watch or stopwatch(x.device))
        except Exception as error:
            if is_out_of_memory(error):
                return False
            text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
            reporter.warn(f"A sampler's step could not be captured as a CUDA graph and runs without ({text}).")
            verdict = Verdict(site=site, way=GRAPH, choice=REFERENCE, outcome="failed", detail=text)
        cache.write(verdict)
    return verdict.choice == GRAPH


def _measured(site: Site, step: Step, inputs: tuple[torch.Tensor, ...], watch: Watch) -> Verdict:
    graph = StepGraph(step, *inputs)
    times = in_turns({REFERENCE: lambda: step(*inputs), GRAPH: lambda: graph(*inputs)}, watch, ROUNDS)
    return Verdict(
        site=site,
        way=GRAPH,
        choice=GRAPH if is_faster(times) else REFERENCE,
        outcome="right",
        detail="the same kernels",
        reference_ms=1e3 * statistics.median(times[REFERENCE]),
        way_ms=1e3 * statistics.median(times[GRAPH]),
    )
