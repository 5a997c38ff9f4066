"""Images to features: the official encoder and ours.

    python -m benchmarks encode --official ~/DiTi --cases celeba64:1024 --device cuda --out encode.json

Resident: the images lie on the device (ours as uint8, the official ones normalised already), the features come back
to the host, as in the official sampler/infer_latents.py. A0 as shipped (fp32), A1 with bf16 autocast, A3 with
channels_last as well. From JPEGs: `encode_with` on a folder of files, against decoding the same files and doing nothing
with them.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.agreement import BF16_FACTOR, FP32_LIMIT, Gate, exact_fp32, relative
from benchmarks.cases import CASES, SEED, Case, pictures, random_pipeline
from benchmarks.comparison import Candidate, compare_sides, report
from benchmarks.facts import CLOCKS, Clock, collect, synchroniser, write
from benchmarks.official_side import OfficialModel, in_layout, load_code
from benchmarks.table import ratio_text
from benchmarks.timing import Side, measure
from diticli.config import Precision
from diticli.data.images import FaceImages, iter_decoded, open_images
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode import encode_with
from diticli.models.device import resolve_device, resolve_precision
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.official.convert import pipeline_from_official

OURS = "ours"
Save = Callable[[dict[str, Any]], None]
JPEG_SIDE = 218
DISTINCT = 256


class OfficialEncoder:
    """The official encoder on a device, in eval mode."""

    def __init__(self, model: OfficialModel, device: torch.device, *, precision: str, channels_last: bool) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.encoder = in_layout(copy.deepcopy(model.encoder), device, self.layout).eval()
        self.device, self.precision = device, precision

    @torch.inference_mode()
    def __call__(self, x0: torch.Tensor) -> torch.Tensor:
        """Features [B, d] on the CPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features: torch.Tensor = self.encoder(x0.contiguous(memory_format=self.layout))
        return features.cpu()


def check_agreement(model: OfficialModel, pipeline: DiTiPipeline, images: torch.Tensor, device: torch.device) -> Gate:
    """Our encoder in fp32 within 1e-4; what `diti encode` gives at most twice as far off as official autocast."""
    gate, images = Gate(), images[:64].to(device)
    x0 = normalise(images)
    with exact_fp32(), torch.inference_mode():
        right = OfficialEncoder(model, device, precision="fp32", channels_last=False)(x0)
        gate.check("fp32 features", relative(pipeline.encoder(x0).float().cpu(), right), FP32_LIMIT)
    autocast = OfficialEncoder(model, device, precision="bf16", channels_last=False)(x0).float()
    limit = max(FP32_LIMIT, BF16_FACTOR * relative(autocast, right))
    gate.check("features as `diti encode` gives them", relative(_ours(pipeline)(images).cpu(), right), limit)
    return gate


def candidates(
    model: OfficialModel | None, pipeline: DiTiPipeline, images: torch.Tensor, device: torch.device
) -> list[Candidate]:
    """The sides on resident images."""
    resident, x0 = images.to(device), normalise(images.to(device))

    def theirs(precision: str, channels_last: bool) -> Callable[[], Callable[[], None]]:
        def build() -> Callable[[], None]:
            assert model is not None
            encoder = OfficialEncoder(model, device, precision=precision, channels_last=channels_last)
            return lambda: void(encoder(x0))

        return build

    def ours(**options: Any) -> Callable[[], Callable[[], None]]:
        def build() -> Callable[[], None]:
            encoder = _ours(pipeline, **options)
            return lambda: void(encoder(resident).cpu())

        return build

    gpu = device.type == "cuda"
    tf32, own = "tf32" if gpu else "fp32", resolve_precision("auto", device)
    note = f"as `diti encode`: {own}" + (", compiled" if gpu else "")
    sides = [Candidate(name=OURS, build=ours(compile=gpu), note=note, precision=own)]
    if model is not None:
        sides += [
            Candidate(name="A0", build=theirs("fp32", False), note="official as shipped", precision=tf32),
            Candidate(name="A1", build=theirs("bf16", False), note="official, bf16 autocast", precision="bf16"),
            Candidate(name="A3", build=theirs("bf16", True), note="official, tuned by us", precision="bf16"),
        ]
    if gpu:
        sides.append(Candidate(name="no compile", build=ours(), note="ours, eager", precision=own))
    return [*sides, Candidate(name="fp32", build=ours(precision="fp32"), note="ours, fp32")]


def _ours(pipeline: DiTiPipeline, *, precision: Precision = "auto", compile: bool = False) -> BatchEncoder:
    return BatchEncoder(pipeline.encoder, precision, compile=compile)


def void(value: Any) -> None:
    """Discards a result."""


def write_jpegs(folder: Path, count: int) -> None:
    """`count` JPEG files, of which every 256 are distinct; the rest are hard links."""
    folder.mkdir()
    faces = FaceImages(min(count, DISTINCT), SEED, JPEG_SIDE)
    for i in range(count):
        path = folder / f"{i:06d}.jpg"
        if i < DISTINCT:
            Image.fromarray(faces.load(i)).save(path, quality=90)
        else:
            os.link(folder / f"{i % DISTINCT:06d}.jpg", path)


def from_jpegs(
    pipeline: DiTiPipeline, folder: Path, count: int, device: torch.device, budget: float, clock: Clock = "wall"
) -> tuple[str, dict[str, Any]]:
    """`encode_with` on files against decoding them."""
    write_jpegs(folder / "jpegs", count)
    source = open_images([str(folder / "jpegs")], pipeline.resolution)

    def decode() -> None:
        for _ in iter_decoded(source, range(count)):
            pass

    def encode() -> None:
        encode_with(pipeline, source, folder / "feats.npy", resume=False)

    sides = [Side(name="decode only", run=decode), Side(name="encode", run=encode)]
    wait = synchroniser(device)
    timings = measure(
        sides,
        rounds=8,
        budget_seconds=budget,
        control="decode only",
        retries=1,
        synchronise=wait,
        clock=CLOCKS[clock],
    )
    share = timings.ratio("decode only", "encode")
    rate = count / timings.quantiles("encode")[1]
    text = f"from JPEGs of {JPEG_SIDE} px: {rate:,.0f} images/s, {ratio_text(share)} of the pure decode rate"
    text += "" if timings.trustworthy else " (NOT TRUSTWORTHY: control failed)"
    return text, timings.to_dict() | {"rate_by_decode_rate": share.to_dict(), "images": count}


def measure_case(case: Case, batch_size: int, options: argparse.Namespace, device: torch.device, save: Save) -> None:
    """All of one case; prints its table, and saves what there is before files are read, and after."""
    images = pictures(case, min(batch_size, DISTINCT))
    images = images.repeat(-(-batch_size // len(images)), 1, 1, 1)[:batch_size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = None if options.official is None else OfficialModel(load_code(options.official), case)
        pipeline = random_pipeline(case) if model is None else pipeline_from_official(model.save(folder / "run"))
        pipeline.to(device)
        gate = Gate() if model is None else check_agreement(model, pipeline, images, device)
        comparison = compare_sides(
            candidates(model, pipeline, images, device),
            device,
            rounds=options.rounds,
            inner=4 if device.type == "cuda" else 1,
            budget_seconds=options.budget,
            retries=1,
            control=OURS,
            clock=options.clock,
        )
        text, result = report(comparison, gate, device, ours=OURS, units=batch_size, unit="images")
        print(f"\n{case.name}, {batch_size} resident images\n{text}", flush=True)
        result = {"batch_size": batch_size, **result}
        save(result)
        text, jpegs = from_jpegs(pipeline, folder, options.jpegs, device, options.budget, options.clock)
        print(text, flush=True)
        save(result | {"jpegs": jpegs})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --official, --device and --out."""
    parser.add_argument("--cases", nargs="+", default=None, metavar="CASE:BATCH", help=", ".join(CASES))
    parser.add_argument("--jpegs", type=int, default=2048, help="files")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timed rounds, resident and from JPEGs")


def main(options: argparse.Namespace) -> None:
    """Measure every case; the file is written after each."""
    device = resolve_device(options.device)
    torch.backends.cudnn.benchmark = True
    default = ["celeba64:1024", "ffhq128:512"] if device.type == "cuda" else ["celeba64:128"]
    result: dict[str, Any] = {"what": "images to features", **collect(device), "cases": {}}
    for text in options.cases or default:
        name, _, batch = text.partition(":")

        def save(found: dict[str, Any], text: str = text) -> None:
            result["cases"][text] = found
            if options.out is not None:
                write(options.out, result)

        measure_case(CASES[name], int(batch or 128), options, device, save)
