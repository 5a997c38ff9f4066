"""One noise estimate, the official code's and ours, on the same weights, images and timestep.

    python -m benchmarks forward --official ~/DiTi --cases celeba64:128 --device cuda --out forward.json

Two tables a case: the base alone (the official `UNet`, our `FrozenBase`), and base and shift under features as samplers
ask for them, eps + c_t G(x_t, t, m_t z) (the official `ShiftUNet`, our `FrozenPair`). Sides: A0 the official networks
as shipped (fp32; PyTorch's default of TF32 in convolutions), A1 with bf16 autocast, A3 tuned by us (weights in bf16 and
channels_last beside autocast), A2 compiled (--compiled), ours, and ours with features switched off. All run without
autograd. Before that, the estimates of both sides are compared at three timesteps.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.agreement import BF16_FACTOR, FP32_LIMIT, Gate, exact_fp32, relative
from benchmarks.cases import CASES, Case, random_pipeline
from benchmarks.comparison import Candidate, compare_sides, report
from benchmarks.encode import void
from benchmarks.facts import collect, write
from benchmarks.forward_sides import Estimate, Inputs, OfficialForward, OurForward
from benchmarks.official_side import OfficialModel, load_code
from benchmarks.our_side import variables
from diticli.models.device import resolve_device, resolve_precision
from diticli.models.layout import VARIABLE, layout_choice
from diticli.models.pipeline import DiTiPipeline, unet_to_diffusers
from diticli.official.convert import pipeline_from_official

OURS = "ours"
PARTS = {"base": "base alone", "pair": "base and shift"}
CHECKED = (10, 417, 900)
TIMED = 417
Save = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One part of one case as it is measured."""

    part: str
    pipeline: DiTiPipeline
    model: OfficialModel | None
    inputs: Inputs
    precision: str

    def theirs(self, **options: Any) -> OfficialForward:
        """The official networks."""
        assert self.model is not None
        return OfficialForward(self.model, self.inputs, self.part, **options)

    def ours(self, **changes: Any) -> OurForward:
        """Our copies, with one thing changed."""
        return OurForward(self.pipeline, self.inputs, self.part, **{"precision": self.precision} | changes)


@torch.no_grad()
def check_agreement(setting: Setting) -> Gate:
    """Ours in fp32 within 1e-4, and in bf16 at most twice as far off as autocast of what is right.

    Right are the official networks in fp32, and without them our own as they are trained.
    """
    gate = Gate()
    with exact_fp32():
        right = _at_all(setting.theirs(precision="fp32") if setting.model else _trained(setting, autocast=False))
        gate.check("fp32 estimate", relative(_at_all(setting.ours(precision="fp32")), right), FP32_LIMIT)
    if setting.precision == "bf16":
        rough = _at_all(setting.theirs(precision="bf16") if setting.model else _trained(setting, autocast=True))
        limit = BF16_FACTOR * relative(rough, right)
        gate.check("bf16 estimate", relative(_at_all(setting.ours()), right), limit)
    return gate


def _at_all(estimate: Estimate) -> torch.Tensor:
    return torch.stack([estimate(t).float() for t in CHECKED])


def _trained(setting: Setting, *, autocast: bool) -> Estimate:
    """diffusers' own UNet and our shift decoder, no copy of either."""
    pipeline, inputs = setting.pipeline, setting.inputs
    device = inputs.x_t.device

    def estimate(timestep: int) -> torch.Tensor:
        t = torch.full((len(inputs.x_t),), timestep, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            if setting.part == "base":
                assert pipeline.unet is not None
                noise: torch.Tensor = unet_to_diffusers(pipeline.unet)(inputs.x_t, t).sample
                return noise
            noise, shift = pipeline.predict(inputs.x_t, t, inputs.z)
        return noise.float() + pipeline.schedule.shift_scale(t, "posterior") * shift.float()

    return estimate


def candidates(setting: Setting, *, compiled: bool, limit: float) -> list[Candidate]:
    """The sides, most important first."""
    device, own = setting.inputs.x_t.device, setting.precision
    tf32 = "tf32" if device.type == "cuda" else "fp32"

    def side(name: str, note: str, make: Callable[..., Estimate], precision: str, **options: Any) -> Candidate:
        def build() -> Callable[[], None]:
            estimate = make(precision=precision, **options)
            return lambda: void(estimate(TIMED))

        compiles = bool({"compile", "compiled"} & options.keys())
        precise = tf32 if precision == "fp32" and make == setting.theirs else precision
        return Candidate(name=name, build=build, note=note, precision=precise, limit=limit, compiled=compiles)

    sides = [side(OURS, f"ours: {own}", setting.ours, own)]
    if setting.model is not None:
        sides += [
            side("A0", "official as shipped", setting.theirs, "fp32"),
            side("A1", "official, bf16 autocast", setting.theirs, "bf16"),
            side("A3", "official, tuned by us", setting.theirs, "bf16", tuned=True),
        ]
        sides += [side("A2", "official, compiled", setting.theirs, "fp32", compiled=True)] if compiled else []
    if compiled:
        sides.append(side("compiled", "ours, compiled", setting.ours, own, compile=True))
    if own == "bf16":
        sides.append(side("fp32", "ours, fp32", setting.ours, "fp32"))
    if setting.part == "base":
        sides.append(side("not merged", "ours, doubling and convolution apart", setting.ours, own, merge=False))
    if layout_choice(device, torch.bfloat16 if own == "bf16" else torch.float32).name == "channels_last":
        environment = {VARIABLE: "contiguous"}
        sides.append(side("contiguous", f"ours, {VARIABLE}=contiguous", setting.ours, own, environment=environment))
    return sides


def count_flops(setting: Setting) -> float:
    """Of products and convolutions, two per multiply-add, before anything is merged, and by PyTorch's own operators."""
    estimate = setting.theirs(precision="fp32") if setting.model else _trained(setting, autocast=False)
    plain = variables({"DITI_KERNELS": "reference"})  # the counter sees no C code
    with plain, torch.no_grad(), FlopCounterMode(display=False) as counter:
        estimate(TIMED)
    return float(counter.get_total_flops())


def measure_case(case: Case, batch_size: int, options: argparse.Namespace, device: torch.device, save: Save) -> None:
    """Both parts of one case; prints their tables, and saves after each."""
    inputs = Inputs.draw(case, batch_size, device)
    found: dict[str, Any] = {"batch_size": batch_size}
    with tempfile.TemporaryDirectory() as temporary:
        model = None if options.official is None else OfficialModel(load_code(options.official), case)
        folder = None if model is None else model.save(Path(temporary) / "run")
        pipeline = random_pipeline(case) if folder is None else pipeline_from_official(folder)
    pipeline.to(device)
    precision = resolve_precision(options.precision, device)
    for part, name in PARTS.items():
        setting = Setting(part=part, pipeline=pipeline, model=model, inputs=inputs, precision=precision)
        gate, flops = check_agreement(setting), count_flops(setting)
        comparison = compare_sides(
            candidates(setting, compiled=options.compiled, limit=options.compile_limit),
            device,
            rounds=options.rounds,
            inner=4 if device.type == "cuda" else 1,
            budget_seconds=options.budget,
            retries=options.retries,
            control=OURS,
            clock=options.clock,
        )
        text, result = report(comparison, gate, device, ours=OURS, units=batch_size, unit="images", flops=flops)
        title = f"{case.name}, batch {batch_size}, {name}: {flops / batch_size / 1e9:.1f} GFLOP an image"
        print(f"\n{title}\n{text}", flush=True)
        found[part] = {"gflop_per_image": flops / batch_size / 1e9, **result}
        save(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --official, --device and --out."""
    parser.add_argument("--cases", nargs="+", default=None, metavar="CASE:BATCH", help=", ".join(CASES))
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compiled", action="store_true", help="measure both sides compiled as well")
    parser.add_argument("--compile-limit", type=float, default=300.0, help="seconds that one side may take to compile")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timed rounds of each part of a case")
    parser.add_argument("--retries", type=int, default=1, help="as many more while the control fails")


def main(options: argparse.Namespace) -> None:
    """Measure every case; the file is written after each part."""
    device = resolve_device(options.device)
    default = ["celeba64:128", "ffhq128:64"] if device.type == "cuda" else ["small64:16", "celeba64:4"]
    result: dict[str, Any] = {"what": "one noise estimate", **collect(device), "cases": {}}
    for text in options.cases or default:
        name, _, batch = text.partition(":")

        def save(found: dict[str, Any], text: str = text) -> None:
            result["cases"][text] = found
            if options.out is not None:
                write(options.out, result)

        measure_case(CASES[name], int(batch or 8), options, device, save)
