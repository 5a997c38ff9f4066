"""A whole training step of stage 2, the official code's and ours, on the same weights and images.

    python -m benchmarks train --official ~/DiTi --cases celeba64:128 --device cuda --out train.json

Sides: A0 the official code as shipped (fp32; PyTorch's default of TF32 in convolutions), A1 with bf16 autocast, A2
with its own --compile, A3 tuned by us (bf16, channels_last, fused Adam, foreach average, no reading of losses), ours,
and ours with each feature switched off in turn. A step is forward, backward, Adam and moving average; drawing
timesteps and noise is part of it on both sides. Before that, losses and gradients of both sides are compared, in both
gradient modes.

On a CPU compiled sides are measured where they are asked for (--compile on for ours, --compiled for A2); a side whose
compilation outlasts --compile-limit is left out, and named with the seconds spent on it.
"""

from __future__ import annotations

import argparse
import functools
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diti_kernels.adaptive_group_norm.compiled_rows import serves
from diti_kernels.dispatch import decide
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.agreement import Gate
from benchmarks.cases import CASES, Case, pictures, random_pipeline
from benchmarks.comparison import Candidate, compare_sides, report
from benchmarks.facts import CLOCKS, Clock, collect, synchroniser, write
from benchmarks.limits import OutOfTimeError, time_limit
from benchmarks.official_side import OfficialModel, load_code
from benchmarks.step_agreement import Setting, check_agreement
from benchmarks.table import ratio_text
from benchmarks.timing import Side, measure
from diticli.models.device import resolve_device, resolve_precision
from diticli.models.layout import layout_choice
from diticli.models.pipeline import normalise
from diticli.official.convert import pipeline_from_official

OURS = "ours"
Save = Callable[[dict[str, Any]], None]


def candidates(
    setting: Setting, *, features: bool, compiled: bool, limit: float = math.inf, own: str = OURS
) -> tuple[list[Candidate], dict[str, str]]:
    """The sides, most important first, and those that this device has no use for.

    Args:
        setting: the case.
        features: ours with each feature off as well.
        compiled: A2 as well.
        limit: seconds that a side may take to compile.
        own: name of ours.
    """
    device, skipped = setting.device, {}
    images, x0 = setting.images.to(device), normalise(setting.images.to(device))
    tf32 = "tf32" if device.type == "cuda" else "fp32"

    def theirs(name: str, note: str, precision: str = "fp32", **options: Any) -> Candidate:
        def build() -> Callable[[], None]:
            return functools.partial(setting.official(precision=precision, **options).step, x0)

        precise, compiles = tf32 if precision == "fp32" else precision, "compiled" in options
        return Candidate(name=name, build=build, note=note, precision=precise, limit=limit, compiled=compiles)

    def ours(name: str, note: str, *, fused: bool = True, **changes: Any) -> Candidate:
        def build() -> Callable[[], None]:
            trainer = setting.ours(**changes)
            if not fused:
                trainer.unfuse_optimizer()
            return functools.partial(trainer.step, images)

        precision, compiles = changes.get("precision", setting.precision), changes.get("compile", setting.compile)
        compiles = compiles and name != OURS  # the check of agreement has compiled it, so no time is left to tell
        return Candidate(name=name, build=build, note=note, precision=precision, limit=limit, compiled=compiles)

    sides = [ours(own, _what(setting))]
    if setting.model is not None:
        sides += [
            theirs("A0", "official as shipped"),
            theirs("A1", "official, bf16 autocast", "bf16"),
            theirs("A3", "official, tuned by us", "bf16", tuned=True),
        ]
    if setting.compile:
        sides.append(ours("no compile", "ours, not compiled", compile=False))
    elif device.type == "cuda":
        sides.append(ours("no graph", "ours, DITI_CUDA_GRAPH=0", environment={"DITI_CUDA_GRAPH": "0"}))
        sides.append(ours("compiled", "ours, compiled instead", compile=True))
    if setting.model is not None:
        if compiled:
            sides.append(theirs("A2", "official, its --compile", compiled=True))
        else:
            skipped["A2"] = "not asked for: compiling it takes minutes (--compiled)"
    if features:
        switches = _switches(setting)
        skipped |= {name: why_not for name, _, _, why_not in switches if why_not}
        sides += [ours(name, note, **changes) for name, note, changes, why_not in switches if not why_not]
    return sides, skipped


def _switches(setting: Setting) -> list[tuple[str, str, dict[str, Any], str]]:
    """(name, note, what changes, why it is not measured): ours with one feature off."""
    triton, bf16 = decide(setting.device.type).backend == "triton", setting.precision == "bf16"
    reference, sdpa, plain = {"DITI_KERNELS": "reference"}, {"DITI_ATTENTION": "sdpa"}, {"DITI_LAYOUT": "contiguous"}
    dtype = torch.bfloat16 if bf16 else torch.float32
    laid = layout_choice(setting.device, dtype).name == "channels_last"
    chosen = triton or serves(setting.device.type, dtype)
    return [
        ("no frozen copy", "ours, base computed by the UNet itself", {"frozen_copy": False}, ""),
        ("not merged", "ours, doubling and convolution apart", {"merge": False}, ""),
        ("contiguous", _as(plain), {"environment": plain}, "" if laid else "ours is contiguous here anyway"),
        ("reference ops", _as(reference), {"environment": reference}, "" if chosen else "no kernel runs here anyway"),
        ("sdpa", _as(sdpa), {"environment": sdpa}, ""),
        ("fp32", "ours, fp32", {"precision": "fp32"}, "" if bf16 else "ours is fp32 here"),
        ("plain Adam", "ours, Adam not fused", {"fused": False}, ""),
    ]


def _as(environment: dict[str, str]) -> str:
    return "ours, " + ", ".join(f"{name}={value}" for name, value in environment.items())


def _what(setting: Setting) -> str:
    graph = ", a CUDA graph" if setting.device.type == "cuda" else ""
    return f"ours: {setting.precision}" + (", compiled" if setting.compile else graph)


def count_flops(setting: Setting) -> float:
    """Floating-point operations of one official step's products and convolutions (two per multiply-add)."""
    count = min(2, setting.batch_size)
    x0 = normalise(setting.images[:count].to(setting.device))
    if setting.model is None:
        return 0.0
    with FlopCounterMode(display=False) as counter:
        setting.official().losses(x0)[0].backward()
    return float(counter.get_total_flops()) / count * setting.batch_size


def checked(setting: Setting, limit: float) -> tuple[Setting, Gate, dict[str, str]]:
    """The agreement of both sides, and why ours goes on uncompiled where compiling it takes longer than `limit`.

    It is compiled before that, so that the check's own time is not taken for the compiler's.
    """
    late: dict[str, str] = {}
    if setting.compile:
        began = time.monotonic()
        try:
            with time_limit(limit):
                compile_step(setting)
        except OutOfTimeError:
            late = {OURS: f"out of time: compiling it had not ended after {time.monotonic() - began:.0f} s"}
            setting = replace(setting, compile=False)
    gate = check_agreement(setting)
    if failed := [warning for warning in setting.heard.warnings if "torch.compile failed" in warning]:
        late = {OURS: failed[0]}
    return setting, gate, late


def compile_step(setting: Setting) -> None:
    """One step of ours as the check and the timing take it; the compiler keeps what it made on disk."""
    trainer = setting.ours(batch_size=setting.check_images)
    trainer.step(setting.images[: setting.check_images].to(setting.device))
    trainer.trainer.accelerator.free_memory()


def with_loader(
    setting: Setting, *, rounds: int, steps: int, budget: float, clock: Clock = "wall"
) -> tuple[str, dict[str, Any]]:
    """Our training loop with its feed against the bare step on resident images."""
    trainer, images = setting.ours(), setting.images.to(setting.device)

    def bare() -> None:
        for _ in range(steps):
            trainer.step(images)

    def looped() -> None:
        trainer.run_with_loader(steps)

    sides = [Side(name="step only", run=bare), Side(name="with loader", run=looped)]
    wait = synchroniser(setting.device)
    timings = measure(
        sides, rounds=rounds, budget_seconds=budget, control="step only", synchronise=wait, clock=CLOCKS[clock]
    )
    ratio = timings.ratio("step only", "with loader")
    text = f"with-loader rate / step-only rate: {ratio_text(ratio)}"
    text += "" if timings.trustworthy else " (NOT TRUSTWORTHY: control failed)"
    return text, timings.to_dict() | {"rate_with_loader_by_step_only": ratio.to_dict(), "steps_per_run": steps}


def measure_case(case: Case, batch_size: int, options: argparse.Namespace, device: torch.device, save: Save) -> None:
    """All of one case; prints its table, and saves what there is before the loader is measured, and after."""
    gpu = device.type == "cuda"
    precision = resolve_precision(options.precision, device)
    compile = options.compile == "on"
    compiled = options.compiled or (gpu and not options.eager)
    with tempfile.TemporaryDirectory() as temporary:
        model = None if options.official is None else OfficialModel(load_code(options.official), case)
        folder = None if model is None else model.save(Path(temporary) / "run")
        setting = Setting(
            case=case,
            batch_size=batch_size,
            device=device,
            pipeline=lambda: random_pipeline(case) if folder is None else pipeline_from_official(folder),
            model=model,
            images=pictures(case, batch_size),
            precision=precision,
            compile=compile,
        )
        setting, gate, late = checked(setting, options.compile_limit)
        flops = count_flops(setting)
        own = f"{OURS}, uncompiled" if late else OURS  # which is no "ours": no side is compared with it
        limit = options.compile_limit
        sides, skipped = candidates(setting, features=not options.brief, compiled=compiled, limit=limit, own=own)
        comparison = compare_sides(
            sides,
            device,
            rounds=options.rounds,
            inner=4 if gpu else 1,
            warmup=2 if gpu else 1,
            budget_seconds=options.budget,
            build_seconds=options.build,
            control=own,
            retries=options.retries,
            skipped=skipped | late,
            clock=options.clock,
        )
        text, result = report(comparison, gate, device, ours=OURS, units=batch_size, unit="images", flops=flops)
        print(f"\n{case.name}, batch {batch_size}: {flops / batch_size / 1e9:.1f} GFLOP an image\n{text}", flush=True)
        result = {"batch_size": batch_size, "gflop_per_image": flops / batch_size / 1e9, **result}
        save(result)
        del comparison, sides
        steps = 20 if gpu else 2
        text, loader = with_loader(setting, rounds=8, steps=steps, budget=options.budget / 3, clock=options.clock)
        print(text, flush=True)
        for warning in setting.heard.warnings:
            print(f"warning: {warning}", flush=True)
        save(result | {"loader": loader, "warnings": setting.heard.warnings})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --official, --device and --out."""
    parser.add_argument("--cases", nargs="+", default=None, metavar="CASE:BATCH", help=", ".join(CASES))
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", choices=("on", "off"), default="off", help="ours; on a GPU else a CUDA graph")
    parser.add_argument("--compiled", action="store_true", help="measure A2 on a CPU too")
    parser.add_argument("--eager", action="store_true", help="leave out A2 on a GPU too")
    parser.add_argument("--brief", action="store_true", help="no switching off of features")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of timed rounds per case")
    parser.add_argument("--retries", type=int, default=0, help="as many more while the control fails")
    parser.add_argument("--compile-limit", type=float, default=300.0, help="seconds that one side may take to compile")
    parser.add_argument("--build", type=float, default=600.0, help="seconds to build and compile the sides of a case")


def main(options: argparse.Namespace) -> None:
    """Measure every case; the file is written after each."""
    device = resolve_device(options.device)
    _prepare(device)
    default = ["celeba64:128", "ffhq128:64"] if device.type == "cuda" else ["small64:16", "celeba64:4"]
    result: dict[str, Any] = {"what": "training step of stage 2", **collect(device), "cases": {}}
    for text in options.cases or default:
        name, _, batch = text.partition(":")

        def save(found: dict[str, Any], text: str = text) -> None:
            result["cases"][text] = found
            if options.out is not None:
                write(options.out, result)

        measure_case(CASES[name], int(batch or 32), options, device, save)


def _prepare(device: torch.device) -> None:
    """Process-wide settings of both sides: cudnn.benchmark, as in both trainers, and room for many graphs."""
    torch.backends.cudnn.benchmark = True
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.accumulated_recompile_limit = 512
