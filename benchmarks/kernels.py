"""Each operation at each of its sites: the usual PyTorch sequence, ours in plain PyTorch, compiled, and in Triton.

    python -m benchmarks kernels --device cuda --out benchmarks/results/NAME.json

On a GPU each way is captured as a CUDA graph, as it runs in a captured step: what the host takes to launch it, which at
these sizes is more than the work, is not counted. `--eager` counts it.
All ways run in turn on the same leaves, forward alone (no autograd) and forward with all gradients. A way's error is
measured against float64 in the same run; a ratio is printed only where no way is further off than twice the usual
sequence in the same dtype, and where the usual sequence, run a second time in every round, equals itself within 2 %.
Readings are short, so that most of them fall between the turns of other work on the machine; rounds go on until that
control is sure to hold, or time is up. "autocast" is what models run in bf16: the usual sequence under autocast. On a
GPU, "of copy" is the least traffic (each tensor once; 64 MB and more, which no cache holds) by the time, as a share of
what a copy of a large tensor reaches.
Compiling takes longer than measuring: only the first site is compiled, and sites that do not fit --budget are left out.
All of it: --compile-all --budget 3000.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.agreement import Gate, relative
from benchmarks.facts import collect, synchroniser, write
from benchmarks.kernel_sites import CPU_SITES, SITES, Function, Site, kernels, make_leaves, ways
from benchmarks.table import ratio_text, render
from benchmarks.timing import TWIN, Side, Timings, measure, quantile

USUAL = "usual"
READING_SECONDS = 1e-3
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-4}
CACHED_BYTES = 64 << 20  # less may come from a second-level cache (40 to 50 MB on A100 and H100), past a copy's speed
HEADERS = ["site", "dtype", "work", "way", "ms", "usual / this", "of copy"]


@dataclass(frozen=True, kw_only=True)
class Way:
    """A function of the leaves and the DITI_KERNELS it runs under; `exact` is the one that keeps float64."""

    name: str
    function: Function
    setting: str = "reference"
    autocast: bool = False
    exact: Function | None = None

    def __call__(self, *leaves: Tensor) -> Tensor:
        """The result for these leaves."""
        with kernels(self.setting), torch.autocast(leaves[0].device.type, torch.bfloat16, enabled=self.autocast):
            return self.function(*leaves)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON where asked. 1 when a parity check failed."""
    options = _parse(argv)
    device = torch.device(options.device)
    facts, started = collect(device), time.monotonic()
    copy = copy_bandwidth(device) if device.type == "cuda" else None
    rows: list[list[Any]] = []
    records: list[dict[str, Any]] = []
    sites = [site for site in (SITES if device.type == "cuda" else CPU_SITES) if options.site in site.name]
    for index, site in enumerate(sites):
        for dtype in (torch.float32, torch.bfloat16):
            compiled = options.compile_all or index == 0
            if time.monotonic() - started > options.budget:
                records.append({"site": site.name, "dtype": str(dtype)[6:], "skipped": "out of time"})
                continue
            found = measure_site(site, dtype, device, options, compiled)
            records += [record | {"of_copy": _of_copy(record, copy)} for record in found]
            rows += [row for record in records[-len(found) :] for row in _rows(record)]
            torch.compiler.reset()
    print(render(HEADERS, rows))
    failed = [record for record in records if "agreement" in record and not record["agreement"]["passed"]]
    for record in failed:
        print(f"{record['site']} {record['dtype']}: {record['refusal']}")
    for record in (r for r in records if "skipped" in r):
        print(f"not measured: {record['site']} {record['dtype']}: {record['skipped']}")
    measured = [r for r in records if "control_passed" in r]
    noisy = sum(not r["control_passed"] for r in measured)
    print(f"control failed (outside 0.98-1.02), so that no ratio is shown: {noisy} of {len(measured)} measurements.")
    if options.out is not None:
        write(options.out, {"what": "operations by site", **facts, "copy_bytes_per_second": copy, "rows": records})
    return 1 if failed else 0


def measure_site(
    site: Site, dtype: torch.dtype, device: torch.device, options: argparse.Namespace, compiled: bool
) -> list[dict[str, Any]]:
    """Records of one site and dtype: forward, and forward with gradients; checked before anything is timed."""
    leaves = make_leaves(site, options.batch, device, dtype)
    usable, gate, failures = checked(build_ways(site, options.batch, device, dtype, compiled), leaves)
    records, wait = [], synchroniser(device)
    for work, run_of in (("forward", _forward), ("forward+backward", _forward_backward)):
        made = captured if device.type == "cuda" and not options.eager else _as_it_is
        inner = options.inner or repeats([made(run_of(way, leaves, 1)) for way in usable], wait)
        timings = measure(
            [Side(name=way.name, run=made(run_of(way, leaves, inner))) for way in usable],
            rounds=options.rounds,
            warmup=2,
            budget_seconds=options.seconds,
            control=USUAL,
            retries=options.retries,
            settle=True,
            synchronise=wait,
        )
        norm = site.operation == "norm"
        least = site.least_bytes(options.batch, dtype.itemsize, work != "forward") if norm else None
        what = {"site": site.name, "dtype": str(dtype)[6:], "work": work, "batch": options.batch, "least_bytes": least}
        records.append(what | _record(timings, inner, gate, failures))
    return records


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """A run on the GPU as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _as_it_is(run: Callable[[], None]) -> Callable[[], None]:
    return run


def repeats(runs: Sequence[Callable[[], None]], wait: Callable[[], None]) -> int:
    """How often to run between two readings of the clock, so that the fastest takes a millisecond."""
    fastest = math.inf
    for run in runs:
        for _ in range(5):
            wait()
            started = time.perf_counter()
            run()
            wait()
            fastest = min(fastest, time.perf_counter() - started)
    return max(1, math.ceil(READING_SECONDS / fastest))


def build_ways(site: Site, batch: int, device: torch.device, dtype: torch.dtype, compiled: bool) -> list[Way]:
    """All ways that this device has; the usual one first."""
    usual, ours = ways(site, batch, device)
    found = [Way(name=USUAL, function=usual if dtype == torch.float32 else _in_dtype(usual, dtype), exact=usual)]
    if dtype != torch.float32:
        found.append(Way(name="usual, autocast", function=usual, autocast=True))
    found.append(Way(name="ours, eager", function=ours))
    if compiled:
        found.append(Way(name="usual, compiled", function=torch.compile(found[0].function, dynamic=False)))
        found.append(Way(name="ours, compiled", function=torch.compile(ours, dynamic=False)))
    if device.type == "cuda":
        found.append(Way(name="ours, Triton", function=ours, setting="triton"))
    return found


def checked(candidates: Sequence[Way], leaves: list[Tensor]) -> tuple[list[Way], Gate, dict[str, str]]:
    """The ways that run, the checks of their values and gradients, and why the others do not.

    Errors are against the first way in float64 on the same leaves; the first way's own set the limits.
    """
    usual, dtype = candidates[0], leaves[0].dtype
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves]
    grad = torch.ones_like(usual.function(*leaves).detach()).normal_()
    truths = _results(usual.exact or usual.function, doubles, grad)
    usable, gate, limits = [], Gate(), [FLOOR[dtype]] * len(truths)
    failures: dict[str, str] = {}
    for way in candidates:
        try:
            errors = [relative(*pair) for pair in zip(_results(way, leaves, grad), truths, strict=True)]
        except Exception as problem:  # one way that cannot run (memory, a missing compiler) must not cost the others
            failures[way.name] = f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"[:300]
            continue
        usable.append(way)
        if way is usual:
            limits = [max(2 * error, FLOOR[dtype]) for error in errors]
        for i, (error, limit) in enumerate(zip(errors, limits, strict=True)):
            gate.check(f"{way.name}: {f'gradient {i}' if i else 'value'}", error, limit)
    return usable, gate, failures


def _results(function: Function, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves, grad.to(value.dtype))]


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, that copying 1 GiB reaches."""
    source = torch.zeros(1 << 29, dtype=torch.bfloat16, device=device)
    target, wait, seconds = torch.empty_like(source), synchroniser(device), []
    for _ in range(20):
        wait()
        started = time.perf_counter()
        target.copy_(source)
        wait()
        seconds.append(time.perf_counter() - started)
    return 2 * source.numel() * source.element_size() / quantile(seconds, 0.5)


def _in_dtype(function: Function, dtype: torch.dtype) -> Function:
    """All leaves in `dtype`: the usual sequence at its fastest."""

    def converted(*leaves: Tensor) -> Tensor:
        return function(*(leaf.to(dtype) for leaf in leaves))

    return converted


def _forward(way: Way, leaves: list[Tensor], inner: int) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            for _ in range(inner):
                way(*leaves)

    return run


def _forward_backward(way: Way, leaves: list[Tensor], inner: int) -> Callable[[], None]:
    grad = torch.ones_like(way(*leaves).detach())

    def run() -> None:
        for _ in range(inner):
            torch.autograd.grad(way(*leaves), leaves, grad)

    return run


def _record(timings: Timings, inner: int, gate: Gate, failures: dict[str, str]) -> dict[str, Any]:
    """JSON form; ratios that the control or the gate forbids are kept apart or left out."""
    names = [name for name in timings.seconds if not name.endswith(TWIN)]
    ratios = {name: timings.ratio(USUAL, name) for name in names} if gate.passed else {}
    shown = ratios if timings.trustworthy else {}
    return {
        "milliseconds": {name: timings.quantiles(name)[1] / inner * 1e3 for name in names},
        "usual_by_this": {name: ratio.to_dict() for name, ratio in shown.items()},
        "untrusted": None if timings.trustworthy else {name: ratio.to_dict() for name, ratio in ratios.items()},
        "printed": {name: ratio_text(ratio) for name, ratio in shown.items()},
        "rounds": timings.rounds,
        "runs_per_reading": inner,
        "control": None if timings.control_ratio is None else timings.control_ratio.to_dict(),
        "control_passed": timings.trustworthy,
        "agreement": gate.to_dict(),
        "refusal": gate.refusal(),
        "failures": failures | dict(timings.failures),
    }


def _of_copy(record: dict[str, Any], copy: float | None) -> dict[str, float] | None:
    if copy is None or (record["least_bytes"] or 0) < CACHED_BYTES:
        return None
    return {name: record["least_bytes"] / (ms / 1e3) / copy for name, ms in record["milliseconds"].items()}


def _rows(record: dict[str, Any]) -> list[list[Any]]:
    shares = record["of_copy"] or {}
    what = [record["site"], record["dtype"], record["work"] + ("" if record["control_passed"] else " (control failed)")]
    return [
        [*what, name, ms, record["printed"].get(name), f"{shares[name]:.0%}" if name in shares else None]
        for name, ms in record["milliseconds"].items()
    ]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto")
    parser.add_argument("--official", type=Path, default=None, help="not used: nothing here has an official form")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    parser.add_argument("--eager", action="store_true", help="on a GPU, launched one by one and not as CUDA graphs")
    parser.add_argument("--batch", type=int, default=None, help="images (default 64 on a GPU, 8 on a processor)")
    parser.add_argument("--rounds", type=int, default=500, help="at most, where the control does not hold sooner")
    parser.add_argument("--inner", type=int, default=None, help="runs between two readings (default: a millisecond's)")
    parser.add_argument("--seconds", type=float, default=None, help="of one measurement's rounds (default 0.7, CPU 3)")
    parser.add_argument(
        "--retries", type=int, default=2, help="as many rounds and seconds more while the control is not sure"
    )
    parser.add_argument("--budget", type=float, default=45.0, help="seconds after which no new site begins")
    parser.add_argument("--site", default="", help="only sites whose name contains this, e.g. 'celeba64 norm 256+'")
    parser.add_argument("--compile-all", action="store_true", help="compile at every site and in every dtype")
    options = parser.parse_args(argv)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    gpu = options.device == "cuda"
    options.batch = options.batch or (64 if gpu else 8)
    options.seconds = options.seconds or (0.7 if gpu else 3.0)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
