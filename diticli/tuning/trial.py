"""Try the other ways of an operation at a site: first whether they are right, then how fast they are.

    python -m diticli.tuning.trial < JOB > EVENTS

This runs in a process of its own: a kernel that no GPU has run may hang, or break whatever else its process does.
The job is a JSON object: sites, device, and until when there is time, by `time.time`. An event is a line of JSON:
{"begin": i}, {"end": i, "verdict": ...}, {"skip": i, "why": ..., "for good": ...}; a site that began and did not end
took the process with it.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import torch
from diti_kernels.adaptive_group_norm import adaptive_group_norm
from diti_kernels.masked_linear import masked_linear
from diti_kernels.sites import Site, forcing, recording
from torch import Tensor

from diticli.memory import is_out_of_memory
from diticli.models.attention import attend
from diticli.models.compiled import StepGraph
from diticli.tuning.cache import REFERENCE, Verdict

LEAST_GAIN = 1.1
"""How many times as fast another way has to be to be taken."""
ROUNDS = 15
READING_SECONDS = 5e-4
MOST_REPEATS = 200
CHECKED_SAMPLES = 4
"""Samples that are compared in float64; the whole batch is compared with the reference in its own dtype."""
FLOOR = {torch.float32: 5e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4}
"""Error that is allowed in any case, as a share of the largest value; else twice the reference's own error."""
WHOLE_BATCH = 4
"""By how much two ways may differ on the whole batch, in allowed errors: each has its own, the reference's included."""

Call = Callable[..., Tensor]
Watch = Callable[[Callable[[], object], int], float]
"""(what runs, how often) -> seconds of one run."""


class Inputs(NamedTuple):
    """What a site is called with.

    Attributes:
        call: the operation, of the leaves.
        leaves: its inputs, some of which want a gradient.
    """

    call: Call
    leaves: list[Tensor]


class RefusalError(Exception):
    """A way that cannot be tried, or not at this site, and why."""


def make_inputs(site: Site, device: torch.device, batch: int, dtype: torch.dtype) -> Inputs:
    """Random inputs for a batch of the site, the same in each call.

    Raises:
        RefusalError: for an operation of another version.
    """
    random = torch.Generator(device).manual_seed(0)

    def draw(*shape: int, as_dtype: torch.dtype = dtype) -> Tensor:
        # Drawn in float32 and rounded to the site's dtype, so that float64 computes the same.
        return torch.randn(shape, generator=random, device=device).to(getattr(torch, site.dtype)).to(as_dtype)

    makers = {"adaptive_group_norm": _norm_inputs, "masked_linear": _linear_inputs, "attention": _attention_inputs}
    try:
        inputs = makers[site.operation](site, batch, dtype, draw)
    except (LookupError, ValueError, TypeError) as error:
        raise RefusalError(f"unknown site ({error})") from error
    for leaf, wants in zip(inputs.leaves, site.wants, strict=True):
        leaf.requires_grad_(wants)
    return inputs


def _norm_inputs(site: Site, batch: int, dtype: torch.dtype, draw: Call) -> Inputs:
    (_, C1, C2, groups, *pixels), (activation, modulation, memory) = site.shape, site.options
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def maps(channels: int) -> Tensor:
        drawn = draw(batch, channels, *pixels) + 0.5
        return drawn.movedim(1, -1).contiguous().movedim(-1, 1) if memory == "channels_last" else drawn

    rows = (batch, C1 + C2) if modulation == "per sample" else (C1 + C2,)
    scale, shift = 1 + draw(*rows, as_dtype=wide) / 2, draw(*rows, as_dtype=wide)
    x, skip = maps(C1), maps(C2) if C2 else draw(0)

    def call(x: Tensor, skip: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        beside = skip if C2 else None
        return adaptive_group_norm(x, scale, shift, groups, skip=beside, activation=activation)  # type: ignore[arg-type]

    return Inputs(call, [x, skip, scale, shift])


def _linear_inputs(site: Site, batch: int, dtype: torch.dtype, draw: Call) -> Inputs:
    (_, d, E, T), (gradient, bias) = site.shape, site.options
    z, weight, b = draw(batch, d), draw(E, d) / d**0.5, draw(E)
    end_T = torch.linspace(1, d, T, device=z.device).long()
    visible_T2 = torch.stack([torch.zeros_like(end_T), end_T], dim=1)
    own_T2 = torch.stack([end_T // 2, end_T], dim=1) if gradient == "detached" else None
    t_B = torch.arange(batch, device=z.device) * 37 % T

    def call(z: Tensor, weight: Tensor, b: Tensor) -> Tensor:
        return masked_linear(z, t_B, visible_T2, weight, b if bias == "bias" else None, own_T2=own_T2)

    return Inputs(call, [z, weight, b])


def _attention_inputs(site: Site, batch: int, dtype: torch.dtype, draw: Call) -> Inputs:
    _, queries, keys, heads, head_dim = site.shape
    return Inputs(attend, [draw(batch, n, heads, head_dim) for n in (queries, keys, keys)])


def way_of(site: Site) -> str:
    """The other way of an operation, by name."""
    return "xformers" if site.operation == "attention" else "triton"


def try_site(site: Site, device: torch.device, watch: Watch) -> Verdict:
    """Whether the site's other way agrees with the reference and, if it does, which of both is to be taken.

    Raises:
        RefusalError: when the site cannot be made here.
        torch.OutOfMemoryError: when memory does not hold it beside what else uses the device.
    """
    way, dtype = way_of(site), getattr(torch, site.dtype, None)
    if dtype not in FLOOR:
        raise RefusalError(f"there is no tolerance for {site.dtype}")
    whole = make_inputs(site, device, site.shape[0], dtype)
    with recording(site.mode) as found, forcing(REFERENCE):  # type: ignore[arg-type]
        whole.call(*whole.leaves)
    if list(found) != [site]:
        raise RefusalError("its inputs cannot be made again")
    try:
        agreement = compare(site, device, whole, way, dtype)
        if agreement.wrong:
            return Verdict(site=site, way=way, choice=REFERENCE, outcome="wrong", detail=agreement.text)
        times = race(site, whole, way, watch)
    except Exception as error:  # whatever a compiler or a launch raises
        if is_out_of_memory(error):
            raise
        text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
        return Verdict(site=site, way=way, choice=REFERENCE, outcome="failed", detail=text)
    return Verdict(
        site=site,
        way=way,
        choice=way if is_faster(times) else REFERENCE,
        outcome="right",
        detail=agreement.text,
        reference_ms=1e3 * statistics.median(times[REFERENCE]),
        way_ms=1e3 * statistics.median(times[way]),
    )


class Agreement(NamedTuple):
    """How near a way comes: whether too far off, and the worst of its errors in words."""

    wrong: bool
    text: str


def compare(site: Site, device: torch.device, whole: Inputs, way: str, dtype: torch.dtype) -> Agreement:
    """Value and gradients of some samples against float64, then those of the whole batch against the reference."""
    batch = min(CHECKED_SAMPLES, site.shape[0])
    few, exact = make_inputs(site, device, batch, dtype), make_inputs(site, device, batch, torch.float64)
    truth, usual, tried = results(exact, REFERENCE), results(few, REFERENCE), results(few, way)
    own = [error_of(*pair) for pair in zip(usual, truth, strict=True)]
    limits = [max(2 * error, FLOOR[dtype]) if math.isfinite(error) else FLOOR[dtype] for error in own]
    errors = [error_of(*pair) for pair in zip(tried, truth, strict=True)]
    differences = [error_of(*pair) for pair in zip(results(whole, way), results(whole, REFERENCE), strict=True)]
    names = ["value", *(f"gradient {i}" for i, wants in enumerate(site.wants) if wants)]
    checks: list[tuple[str, float, float]] = []
    for i, name in enumerate(names):
        checks.append((f"{name} of {batch} samples", errors[i], limits[i]))
        checks.append((f"{name} of all", differences[i], WHOLE_BATCH * limits[i]))
    name, error, limit = max(checks, key=lambda check: check[1] / check[2])
    return Agreement(not error <= limit, f"{name}: error {error:.1e}, allowed {limit:.1e}")


def results(inputs: Inputs, way: str) -> list[Tensor]:
    """The value, and the gradient of each leaf that wants one."""
    with forcing(way):
        out = inputs.call(*inputs.leaves)
        return [out.detach(), *_gradients(out, inputs.leaves)]


def _gradients(out: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted:
        return ()
    random = torch.Generator(out.device).manual_seed(1)
    grad = torch.randn(out.shape, generator=random, device=out.device)
    return torch.autograd.grad(out, wanted, grad.bfloat16().to(out.dtype))  # exact in every dtype


def error_of(actual: Tensor, expected: Tensor) -> float:
    """Largest deviation as a share of the largest expected value; infinite where a number is missing."""
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    error = ((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
    return error if math.isfinite(error) else math.inf


def race(site: Site, inputs: Inputs, way: str, watch: Watch) -> dict[str, list[float]]:
    """Seconds of a call with its gradients, by way: as the site runs, in turns."""
    torch.compiler.reset()  # a function has few graphs at a time
    runs = {name: runner(site, inputs, name) for name in (REFERENCE, way)}
    return in_turns(runs, watch, ROUNDS)


def in_turns(runs: Mapping[str, Callable[[], object]], watch: Watch, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, so many readings by turns."""
    repeats = 1
    for run in runs.values():
        run()  # compiles
        repeats = max(repeats, math.ceil(READING_SECONDS / max(watch(run, 3), 1e-9)))
    repeats = min(repeats, MOST_REPEATS)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            times[name].append(watch(runs[name], repeats))
    return times


def is_faster(times: dict[str, list[float]]) -> bool:
    """Whether the way that is not the reference gains enough in the median round, and something in most."""
    (way,) = times.keys() - {REFERENCE}
    ratios = sorted(usual / tried for usual, tried in zip(times[REFERENCE], times[way], strict=True))
    return statistics.median(ratios) >= LEAST_GAIN and ratios[len(ratios) // 4] > 1


def runner(site: Site, inputs: Inputs, way: str) -> Callable[[], object]:
    """A call with its gradients, as the site's mode runs it."""
    call, leaves = inputs.call, inputs.leaves
    if site.mode == "compiled":
        graph = torch.compile(_by_way, fullgraph=True, dynamic=False)
        call = functools.partial(graph, way, inputs.call)
    wanted = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    with forcing(way):
        grad = torch.ones_like(call(*leaves)) if wanted else None

    def run(*leaves: Tensor) -> object:
        with forcing(way):
            out = call(*leaves)
            return torch.autograd.grad(out, [leaves[i] for i in wanted], grad) if wanted else out

    if site.mode == "captured":
        return StepGraph(run, *leaves, gradients=bool(wanted)).replay
    return functools.partial(run, *leaves)


def _by_way(way: str, call: Call, *leaves: Tensor) -> Tensor:
    """The call; a graph is one way's alone, since it holds for one `way` only."""
    return call(*leaves) if way else leaves[0]


def stopwatch(device: torch.device) -> Watch:
    """Of the device: CUDA events, which do not count the wait for the host's answer; elsewhere the host's clock."""

    def on_gpu(run: Callable[[], object], repeats: int) -> float:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(repeats):
            run()
        after.record()
        after.synchronize()
        return before.elapsed_time(after) / 1e3 / repeats

    def on_host(run: Callable[[], object], repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - started) / repeats

    return on_gpu if device.type == "cuda" else on_host


def try_sites(
    sites: Sequence[Site],
    device: torch.device,
    seconds: float,
    *,
    watch: Watch | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[dict[str, Any]]:
    """Events of the sites in turn, until all are tried or one more like the last would take too long; one always is."""
    started = before = clock()
    for index, site in enumerate(sites):
        now = clock() if index else started
        if index and 2 * now - before - started > seconds:
            return
        before = now
        yield {"begin": index}
        try:
            verdict = try_site(site, device, watch or stopwatch(device))
            yield {"end": index, "verdict": verdict.to_dict()}
        except Exception as error:
            if not isinstance(error, RefusalError) and not is_out_of_memory(error):
                raise
            why = (str(error).splitlines() or [""])[0][:200]
            yield {"skip": index, "why": why, "for good": isinstance(error, RefusalError)}


def main(source: TextIO = sys.stdin, target: TextIO = sys.stdout) -> int:
    """Read a job, write its events."""
    job = json.load(source)
    device = torch.device(job["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.zeros(1, device=device)  # starts the device, which is no part of the first site
    for event in try_sites([Site.from_dict(site) for site in job["sites"]], device, job["until"] - time.time()):
        target.write(json.dumps(event) + "\n")
        target.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
