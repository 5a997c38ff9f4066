"""From how many calls on compiling a part of the work wins back its time, measured by `diti doctor --tune`.

Compiling takes a minute or more, too long for trying before the work itself begins. Where nothing was measured, fixed
numbers of steps decide, as they do on a CPU.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from diti_kernels.sites import Site, is_measured
from torch import nn

from diticli.config import RunConfig
from diticli.memory import is_out_of_memory
from diticli.models.build import build_encoder, build_unet
from diticli.models.encoder import SemanticEncoder
from diticli.progress import Reporter, SilentReporter
from diticli.tuning.cache import REFERENCE, TuningCache, Verdict, environment
from diticli.tuning.trial import Watch, in_turns, is_faster, stopwatch
from diticli.tuning.tune import indexed

Part = Literal["training features", "encoding", "sampler's step"]
COMPILED = "compiled"
ROUNDS = 7
SAFETY = 2.0
"""A run is compiled from this many times the calls that win back the time of compiling."""


def part_site(part: Part, batch: int, side: int, dtype: str, weights: int, *more: str) -> Site:
    """What such a measurement is about.

    Args:
        part: of the work.
        batch: images of a call, rounded up to a power of two.
        side: width of the images in pixels.
        dtype: "fp32" or "bf16".
        weights: number of parameters of the networks, which tells them apart.
        more: that it depends on.
    """
    bucket = 1 << max(0, batch - 1).bit_length()
    return Site(part, "compiled", dtype, (bucket, side), ("training" in part,), (f"{weights} weights", *more))


def training_site(config: RunConfig, *, captures: bool = False) -> Site:
    """That of the second stage's step, by settings whose precision is resolved.

    Args:
        config: settings.
        captures: whether the uncompiled step is a CUDA graph.
    """
    with torch.device("meta"):
        networks = build_unet(config.unet, config.data.resolution), build_encoder(config)
    weights = sum(map(_weights, networks))
    batch, side = config.features.batch_size, config.data.resolution
    beside = ("beside a CUDA graph",) if captures else ()
    return part_site("training features", batch, side, config.precision, weights, *beside)


def encoding_site(encoder: SemanticEncoder, batch: int, precision: str) -> Site:
    """That of a batch of images, in "fp32" or "bf16"."""
    return part_site("encoding", batch, encoder.config.sample_size, precision, _weights(encoder))


def sampling_site(unet: nn.Module, decoder: nn.Module, batch: int, side: int, dtype: torch.dtype) -> Site:
    """That of a step of a sampler."""
    return part_site("sampler's step", batch, side, str(dtype)[6:], _weights(unet) + _weights(decoder))


def _weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def compiled_from(site: Site, device: torch.device) -> float | None:
    """Calls from which on the part should be compiled; infinite where that never pays, None where nothing is known."""
    if not is_measured(device.type):
        return None
    verdict = TuningCache(environment(indexed(device)), SilentReporter()).read(site)
    return None if verdict is None else SAFETY * calls_to_win_back(verdict)


def calls_to_win_back(verdict: Verdict) -> float:
    """Calls whose gain is the time that compiling took."""
    if verdict.choice == REFERENCE or verdict.reference_ms is None or verdict.way_ms is None or verdict.cost_s is None:
        return math.inf
    return 1e3 * verdict.cost_s / (verdict.reference_ms - verdict.way_ms)


def try_compiling(
    site: Site,
    plain: Callable[[], object],
    compiled: Callable[[], object],
    device: torch.device,
    reporter: Reporter,
    *,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Time a call, uncompiled and compiled, and how long compiling takes; keep it for the next run.

    Args:
        site: `part_site`.
        plain: a call, which may be known already to work.
        compiled: the same, compiled when it is first called.
        device: where they run.
        reporter: warned where that fails.
        watch: of the device.
        clock: seconds.
    """
    cache, watch = TuningCache(environment(indexed(device)), reporter), watch or stopwatch(device)
    if cache.read(site) is not None:
        return
    try:
        plain()
        watch(plain, 1)  # waits for the device
        started = clock()
        watch(compiled, 1)
        cost = clock() - started
        times = in_turns({REFERENCE: plain, COMPILED: compiled}, watch, ROUNDS)
    except Exception as error:  # whatever a compiler raises
        if is_out_of_memory(error):
            reporter.note(f"Not tried, as memory does not hold it: {site.name}.")
            return
        text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
        reporter.warn(f"Compiling failed for {site.name} ({text}); it runs uncompiled.")
        cache.write(Verdict(site=site, way=COMPILED, choice=REFERENCE, outcome="failed", detail=text))
        return
    cache.write(
        Verdict(
            site=site,
            way=COMPILED,
            choice=COMPILED if is_faster(times) else REFERENCE,
            outcome="right",
            detail=f"compiling took {cost:.0f} s",
            reference_ms=1e3 * statistics.median(times[REFERENCE]),
            way_ms=1e3 * statistics.median(times[COMPILED]),
            cost_s=cost,
        )
    )
