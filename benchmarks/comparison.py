"""What `train`, `encode`, `forward` and `edit` share: sides built one by one, measured in turn, and put in a table."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.agreement import Gate
from benchmarks.facts import CLOCKS, Clock, datasheet_peak, matmul_peak, synchroniser
from benchmarks.limits import OutOfTimeError, time_limit
from benchmarks.table import ratio_text, render
from benchmarks.timing import Side, Timings, measure
from diticli.models.device import resolve_precision


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A side that is not built yet.

    Attributes:
        name: unique.
        build: makes what runs the work once.
        note: what it is.
        precision: "fp32", "tf32" or "bf16", for the share of the peak.
        limit: seconds that building and the first run may take, compiling included.
        compiled: whether the seconds until the end of its first run are worth telling.
    """

    name: str
    build: Callable[[], Callable[[], None]]
    note: str
    precision: str = "fp32"
    limit: float = math.inf
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A measurement and what belongs beside it; `first_run` is of those that compile, in seconds."""

    timings: Timings
    notes: dict[str, str]
    precisions: dict[str, str]
    memory: dict[str, int]
    skipped: dict[str, str]
    first_run: dict[str, float] = field(default_factory=dict)
    clock: Clock = "wall"


def compare_sides(
    candidates: Sequence[Candidate],
    device: torch.device,
    *,
    rounds: int,
    inner: int = 1,
    warmup: int = 2,
    budget_seconds: float,
    control: str,
    build_seconds: float = math.inf,
    retries: int = 0,
    skipped: dict[str, str] | None = None,
    clock: Clock = "wall",
) -> Comparison:
    """Build every candidate, measure those that work, and on a GPU their peak memory.

    Args:
        inner: runs between two readings of the clock.
        build_seconds: for building (which may mean compiling) all candidates; those that are not ready by then are
            not measured.
        clock: "wall", or "processor" for the time of all threads of this process.
        others: see `benchmarks.timing.measure`.
    """
    skipped, resident, first_run, sides = dict(skipped or {}), {}, {}, []
    end = time.monotonic() + build_seconds
    for candidate in candidates:
        if candidate.precision == "bf16" and candidate.name != control and _emulates_bf16(device):
            skipped[candidate.name] = "this processor has no bf16: it takes many times as long as float32"
            continue
        before, began = _allocated(device), time.monotonic()
        try:
            with time_limit(min(candidate.limit, end - began)):
                run = candidate.build()
                run()
                synchroniser(device)()
        except OutOfTimeError:
            skipped[candidate.name] = _too_slow(candidate, time.monotonic() - began, build_seconds)
            _clear(device)
            continue
        except Exception as error:  # one side that cannot run must not cost the others
            skipped[candidate.name] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]
            _clear(device)
            continue
        if candidate.compiled:
            first_run[candidate.name] = time.monotonic() - began
        resident[candidate.name] = _allocated(device) - before
        sides.append(Side(name=candidate.name, run=_repeat(run, inner), note=candidate.note))
    timings = measure(
        sides,
        rounds=rounds,
        warmup=warmup,
        budget_seconds=budget_seconds,
        control=control,
        retries=retries,
        synchronise=synchroniser(device),
        clock=CLOCKS[clock],
    )
    timings = Timings(
        seconds={name: [s / inner for s in seconds] for name, seconds in timings.seconds.items()},
        control=timings.control,
        failures=timings.failures,
    )
    memory = {side.name: resident[side.name] + _peak(side, device) for side in sides if device.type == "cuda"}
    notes = {c.name: c.note for c in candidates}
    return Comparison(
        timings=timings,
        notes=notes,
        precisions={c.name: c.precision for c in candidates},
        memory=memory,
        skipped=skipped | dict(timings.failures),
        first_run=first_run,
        clock=clock,
    )


def _emulates_bf16(device: torch.device) -> bool:
    return device.type == "cpu" and resolve_precision("auto", device) != "bf16"


def report(
    comparison: Comparison, gate: Gate, device: torch.device, *, ours: str, units: int, unit: str, flops: float = 0.0
) -> tuple[str, dict[str, Any]]:
    """The table and the JSON form; ratios are in neither unless the gate passed, and marked where the control failed.

    Args:
        ours: the side that every other is divided by.
        units: of work in one run, e.g. images.
        unit: their name.
        flops: of one run; 0 leaves out the share of the peak.
    """
    timings, ratios, rows = comparison.timings, {}, []
    for name in comparison.notes:
        if name not in timings.seconds:
            continue
        low, middle, high = timings.quantiles(name)
        ratio = timings.ratio(name, ours) if gate.passed and ours in timings.seconds else None
        if ratio is not None:
            ratios[name] = ratio.to_dict()
        peak = comparison.memory.get(name)
        row = [name, middle * 1e3, f"{low * 1e3:.3g}-{high * 1e3:.3g}", units / middle]
        row += [ratio_text(ratio) if ratio else None, None if peak is None else peak / 2**30]
        row += [_mfu(flops, middle, device, comparison.precisions[name], comparison.clock), comparison.notes[name]]
        rows.append(row)
    headers = ["side", "ms", "20-80 %", f"{unit}/s", f"time / time of {ours}", "peak GiB", "of peak", "what"]
    lines = [render(headers, rows), *(f"not measured: {k}: {v}" for k, v in comparison.skipped.items())]
    lines += [f"compiled and run once in {v:.0f} s: {k}" for k, v in comparison.first_run.items()]
    lines += [verdict(timings, gate)]
    result = timings.to_dict() | {
        "clock": comparison.clock,
        "unit": unit,
        "units_per_run": units,
        "flops_per_run": flops or None,
        "peak_bytes": comparison.memory or None,
        "notes": comparison.notes,
        "precisions": comparison.precisions,
        "not_measured": comparison.skipped,
        "first_run_seconds": comparison.first_run or None,
        "agreement": gate.to_dict(),
        "speed_up_of_ours": ratios if timings.trustworthy else None,
        "speed_up_untrusted": None if timings.trustworthy else ratios,
    }
    if flops:
        kinds = sorted({kind for name, kind in comparison.precisions.items() if name in timings.seconds})
        result["peak_flops"] = {
            kind: {"measured": matmul_peak(device, kind, comparison.clock), "datasheet": datasheet_peak(device, kind)}
            for kind in kinds
        }
    return "\n".join(lines), result


def verdict(timings: Timings, gate: Gate) -> str:
    """One line: may the ratios be believed?"""
    if not gate.passed:
        return gate.refusal()
    control = timings.control_ratio
    if control is None:
        return "NOT TRUSTWORTHY: there was no control."
    text = f"control {timings.control} against itself: {ratio_text(control)}"
    if not timings.trustworthy:
        return f"NOT TRUSTWORTHY: {text} lies outside 0.98-1.02; measure again on a quiet machine."
    return f"{text}; agreement passed ({len(gate.checks)} checks)"


def _mfu(flops: float, seconds: float, device: torch.device, precision: str, clock: Clock) -> str | None:
    """Share of the measured matrix product peak and, where there is one, of the data sheet's."""
    if not flops:
        return None
    text = f"{flops / seconds / matmul_peak(device, precision, clock):.0%}"
    stated = datasheet_peak(device, precision)
    return text if stated is None else f"{text} ({flops / seconds / stated:.0%} of data sheet)"


def _too_slow(candidate: Candidate, seconds: float, build_seconds: float) -> str:
    """Why a candidate is left out, with the seconds that were spent on it."""
    work = "compiling" if candidate.compiled else "building"
    if seconds < 0.5:
        return f"out of time: {build_seconds:.0f} s were meant for building all sides"
    return f"out of time: {work} it had not ended after {seconds:.0f} s"


def _repeat(run: Callable[[], None], times: int) -> Callable[[], None]:
    def runs() -> None:
        for _ in range(times):
            run()

    return runs


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _peak(side: Side, device: torch.device) -> int:
    """What one run adds at most to what lies in memory before it."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    side.run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated(device) - before


def _clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
