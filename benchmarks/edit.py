"""Counterfactuals of a pair: the official way (1000 steps of inversion, 100 of decoding, picture by picture) and ours.

    python -m benchmarks edit --official ~/DiTi --cases celeba64 --scale 0.2 --device cuda --out edit.json
    python -m benchmarks edit --official ~/DiTi --model runs/demo ...    (adds the quality of both ways)

Time is taken on converted random weights, which cost what trained ones do. `--scale` shortens the official schedule;
its time is then multiplied back, step by step, and the table says so. The official figure (4 ranges of chunks, 5
alphas, 2 directions) is composed of one inversion and 40 decodes, as its script makes them. Ours is `edit_pair`, which
decodes both reconstructions as well. "Same schedule" is ours with `EditSettings.like_official`, at the scaled steps.

Quality needs a trained model, and official checkpoints cannot be made from ours; with `--model` the official algorithm
is therefore run by `EditSettings.like_official` (whose pictures equal the official ones, see `benchmarks.parity`), and
a speed-up is printed only if our default reconstructs held-out faces no more than 0.1 dB worse.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.agreement import BF16_FACTOR, Gate, exact_fp32, relative
from benchmarks.cases import CASES, DIFFUSION, Case, pictures, random_pipeline
from benchmarks.comparison import verdict
from benchmarks.facts import collect, synchroniser, write
from benchmarks.official_side import OfficialModel, load_code
from benchmarks.table import ratio_text, render
from benchmarks.timing import Ratio, Side, Timings, measure, median_interval
from diticli.data.images import FaceImages
from diticli.editing.pair import edit_pair
from diticli.editing.settings import EditSettings
from diticli.models.device import resolve_device
from diticli.models.load import load_pipeline
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.official.convert import pipeline_from_official
from diticli.pictures.grids import psnr

INVERT, DECODE = 1000, 100
FIGURE_RANGES = ((2, 6), (16, 24), (24, 32), (32, 64))  # of 64 chunks
FIGURE_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIGURE_PICTURES = 2 * len(FIGURE_RANGES) * len(FIGURE_ALPHAS)
CHECK_STEPS = 10
INVERSION_LIMIT = 1e-3
QUALITY_MARGIN_DB = 0.1
HELD_OUT_SEED = 1


class OfficialEditor:
    """The official counterfactual generation on a device: its sampler, called as its script calls it."""

    def __init__(self, model: OfficialModel, device: torch.device, precision: str = "fp32") -> None:
        self.device, self.precision = device, precision
        self.encoder, self.decoder = model.encoder.to(device).eval(), model.decoder.to(device).eval()
        self.diffusion = model.code.diffusion(DIFFUSION, device=device)
        self.masks = model.masks(device)[1]

    @torch.inference_mode()
    def invert(self, x0: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and x_T of both images, in one batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z = self.encoder(x0)
            arguments: tuple[Any, ...] = (f"ddim{steps}", None, self.decoder, x0, None, z)
            x_T = self.diffusion.masked_guided_ddim(*arguments, reverse_process=False, masks=self.masks, verbose=False)
        return z, x_T

    @torch.inference_mode()
    def decode(self, x_T: torch.Tensor, z: torch.Tensor, steps: int) -> torch.Tensor:
        """Pictures [B, 3, R, R]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            arguments: tuple[Any, ...] = (f"ddim{steps}", None, self.decoder, None, x_T, z)
            images: torch.Tensor = self.diffusion.masked_guided_ddim(*arguments, masks=self.masks, verbose=False)
        return images


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Official steps as measured, and what multiplies them back to 1000 and 100."""

    invert: int
    decode: int

    @classmethod
    def scaled(cls, scale: float) -> Schedule:
        """Steps that divide T, so that the official sequence has exactly as many."""
        return cls(invert=_divisor(INVERT * scale), decode=_divisor(DECODE * scale))

    @property
    def factors(self) -> tuple[float, float]:
        """Of inversion and decoding."""
        return INVERT / self.invert, DECODE / self.decode

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"invert_steps": self.invert, "decode_steps": self.decode, "multiplied_by": self.factors}


def _divisor(steps: float) -> int:
    """The divisor of T = 1000 nearest to `steps`."""
    divisors = [n for n in range(1, INVERT + 1) if INVERT % n == 0]
    return min(divisors, key=lambda n: abs(n - steps))


def check_agreement(model: OfficialModel, pipeline: DiTiPipeline, x0: torch.Tensor, device: torch.device) -> Gate:
    """Inversion and decoding over a few steps, under the official choices."""
    gate, settings = Gate(), EditSettings.like_official(invert_steps=CHECK_STEPS, decode_steps=CHECK_STEPS)
    with exact_fp32():
        right, autocast = (OfficialEditor(model, device, precision) for precision in ("fp32", "bf16"))
        z, x_T = right.invert(x0, CHECK_STEPS)
        images = right.decode(x_T, z, CHECK_STEPS)
        own = relative(autocast.invert(x0, CHECK_STEPS)[1], x_T), relative(autocast.decode(x_T, z, CHECK_STEPS), images)
        got = pipeline.invert(x0, z, steps=CHECK_STEPS, **settings.sampler_kwargs()).to(x_T.device)
        back = pipeline.decode(x_T, z, steps=CHECK_STEPS, **settings.sampler_kwargs()).to(x_T.device)
    for name, error, theirs in (
        ("inverted x_T", relative(got, x_T), own[0]),
        ("decoded pictures", relative(back, images), own[1]),
    ):
        gate.check(name, error, max(INVERSION_LIMIT, BF16_FACTOR * theirs))
    return gate


def check_quality(gate: Gate, options: argparse.Namespace, device: torch.device) -> dict[str, Any] | None:
    """Reconstruction PSNR in dB of the official algorithm and of our default on a trained model; None without one."""
    if options.model is None:
        return None
    pipeline = load_pipeline(options.model, str(device))
    faces = FaceImages(options.images, HELD_OUT_SEED, pipeline.resolution)
    x0 = normalise(torch.from_numpy(np.stack([faces.load(i) for i in range(len(faces))])).permute(0, 3, 1, 2))
    ways = {"official": EditSettings.like_official(), "default": EditSettings()}
    found: dict[str, Any] = {"model": options.model, "images": len(faces)}
    for name, settings in ways.items():
        z = pipeline.encode(x0)
        x_T = pipeline.invert(x0, z, steps=settings.invert_steps, **settings.sampler_kwargs())
        back = pipeline.decode(x_T, z, steps=settings.decode_steps, **settings.sampler_kwargs()).cpu().clamp(-1, 1)
        found[name] = float(np.mean([psnr(*pictures) for pictures in zip(back, x0, strict=True)]))
    gate.check("dB lost against the official algorithm", found["official"] - found["default"], QUALITY_MARGIN_DB)
    return found


def sides(
    model: OfficialModel | None,
    pipeline: DiTiPipeline,
    images: torch.Tensor,
    schedule: Schedule,
    device: torch.device,
    *,
    figure: bool,
) -> list[Side]:
    """What is timed; the official parts one by one."""
    a, b = (Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images)
    chunks = pipeline.chunks.chunks
    ranges = [tuple(range(low * chunks // 64, max(high * chunks // 64, 1))) for low, high in FIGURE_RANGES]
    same = EditSettings.like_official(invert_steps=schedule.invert, decode_steps=schedule.decode)

    def ours(chosen: Sequence[tuple[int, ...]], alphas: Sequence[float], settings: EditSettings) -> None:
        edit_pair(pipeline, a, b, chosen, alphas, settings=settings)

    found = [
        Side(name="pair", run=lambda: ours(ranges[1:2], [1.0], EditSettings())),
        Side(name="same schedule", run=lambda: ours(ranges[1:2], [1.0], same)),
    ]
    if figure:
        found.append(Side(name="figure", run=lambda: ours(ranges, FIGURE_ALPHAS, EditSettings(noise="slerp"))))
    if model is None:
        return found
    editor, x0 = OfficialEditor(model, device), normalise(images.to(device))
    z, x_T = editor.invert(x0, CHECK_STEPS)

    def decode() -> None:
        editor.decode(x_T[:1], z[:1], schedule.decode).cpu()

    return [
        *found,
        Side(name="official inversion", run=lambda: void(editor.invert(x0, schedule.invert)[1].cpu())),
        Side(name="official decode", run=decode),
    ]


def void(value: Any) -> None:
    """Discards a result."""


def speed_ups(timings: Timings, schedule: Schedule) -> dict[str, Ratio]:
    """How many times faster ours is, round by round; the official times multiplied back where scaled."""
    invert, decode = (timings.seconds[f"official {part}"] for part in ("inversion", "decode"))
    more_invert, more_decode = schedule.factors

    def against(name: str, decodes: int, invert_factor: float, decode_factor: float) -> Ratio:
        rounds = zip(invert, decode, timings.seconds[name], strict=True)
        return median_interval([(i * invert_factor + decodes * d * decode_factor) / ours for i, d, ours in rounds])

    decodes = {
        "pair": (2, more_invert, more_decode),
        "same schedule": (2, 1.0, 1.0),
        "figure": (FIGURE_PICTURES, more_invert, more_decode),
    }
    return {name: against(name, *how) for name, how in decodes.items() if name in timings.seconds}


def render_result(timings: Timings, gate: Gate, schedule: Schedule, quality: dict[str, Any] | None) -> str:
    """The table and what must be said beside it."""
    official = "official inversion" in timings.seconds
    ratios = speed_ups(timings, schedule) if official and gate.passed else {}
    rows = []
    for name in timings.seconds:
        low, middle, high = timings.quantiles(name)
        rows.append([name, middle, f"{low:.3g}-{high:.3g}", ratio_text(ratios[name]) if name in ratios else None])
    lines = [render(["side", "s", "20-80 %", "speed-up of ours"], rows)]
    if official and schedule.factors != (1.0, 1.0):
        lines.append(
            f"official times in the speed-ups of pair and figure are extrapolated per step, from {schedule.invert} "
            f"of {INVERT} and {schedule.decode} of {DECODE} steps"
        )
    lines += [f"not measured: {name}: {why}" for name, why in timings.failures.items()]
    if quality is None:
        lines.append("quality was not compared here: random weights (--model compares it)")
    else:
        lines.append(f"reconstruction PSNR: official {quality['official']:.2f} dB, ours {quality['default']:.2f} dB")
    return "\n".join([*lines, verdict(timings, gate)])


def measure_case(case: Case, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All of one case; prints its table."""
    images, schedule = pictures(case, 2), Schedule.scaled(options.scale or (0.2 if device.type == "cuda" else 0.05))
    with tempfile.TemporaryDirectory() as temporary:
        model = None if options.official is None else OfficialModel(load_code(options.official), case)
        pipeline = (
            random_pipeline(case) if model is None else pipeline_from_official(model.save(Path(temporary) / "run"))
        )
        pipeline.to(device)
        gate = Gate() if model is None else check_agreement(model, pipeline, normalise(images.to(device)), device)
        quality = check_quality(gate, options, device)
        timings = measure(
            sides(model, pipeline, images, schedule, device, figure=options.figure or device.type == "cuda"),
            rounds=options.rounds,
            budget_seconds=options.budget,
            control="pair",
            synchronise=synchroniser(device),
        )
    print(f"\n{case.name}\n{render_result(timings, gate, schedule, quality)}", flush=True)
    result = timings.to_dict() | {"schedule": schedule.to_dict(), "agreement": gate.to_dict(), "quality": quality}
    if gate.passed:
        ratios = {name: ratio.to_dict() for name, ratio in speed_ups(timings, schedule).items()}
        result["speed_up_of_ours" if timings.trustworthy else "speed_up_untrusted"] = ratios
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --official, --device and --out."""
    parser.add_argument("--cases", nargs="+", default=None, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--scale", type=float, default=None, help="of the official steps; 0.2 on a GPU, 0.02 on a CPU")
    parser.add_argument("--figure", action="store_true", help="the figure on a CPU too, where it takes minutes")
    parser.add_argument("--model", default=None, help="a trained model, for the quality of both ways")
    parser.add_argument("--images", type=int, default=8, help="held-out images for the quality")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timed rounds per case")


def main(options: argparse.Namespace) -> None:
    """Measure every case; the file is written after each."""
    device = resolve_device(options.device)
    default = ["celeba64"] if device.type == "cuda" else ["small64"]
    result: dict[str, Any] = {"what": "counterfactuals of a pair", **collect(device), "cases": {}}
    for name in options.cases or default:
        result["cases"][name] = measure_case(CASES[name], options, device)
        if options.out is not None:
            write(options.out, result)
