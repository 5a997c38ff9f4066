"""How faithful are inversion, decoding and edits, by solver and number of steps?

    python -m benchmarks.reconstruction --model runs/demo --out benchmarks/results/NAME.json

On held-out built-in faces, for each solver, precision and number of steps: PSNR (dB) and SSIM of the round trip; mean,
standard deviation and neighbour correlation of the inferred x_T (0, 1 and 0 for Gaussian noise); and agreement (PSNR)
of an edit, the first quarter of the chunks exchanged within pairs, with two references: DDIM with as many steps as it
takes, and the multistep solver with 400. Beside NAME.json goes NAME.png, the curve.

    python -m benchmarks.reconstruction --model shipped --short --out benchmarks/results/NAME.json

--short measures the round trip alone, in fp32, with both solvers at 20 and 50 steps: minutes instead of hours on a CPU.
PSNR is that of `diticli.pictures.tiles.psnr`, as everywhere: clamped pictures of 8 bits, over all pixels.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import platform
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from benchmarks.reconstruction_curve import draw
from diticli.data.images import FaceImages
from diticli.editing.mixing import mix_chunks
from diticli.evaluation.image_metrics import ssim
from diticli.models.load import load_model, load_pipeline
from diticli.models.model import DiTiModel
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.pictures.grids import psnr
from diticli.sampling import steps_run
from diticli.training.rundir import versions

HELD_OUT_SEED = 1


class Way(NamedTuple):
    """One way of going from image to noise and back: its name, steps there and back, and the pipeline's options."""

    name: str
    invert_steps: int
    decode_steps: int
    options: dict[str, Any]

    def steps_run(self, timesteps: int) -> tuple[int, int]:
        """Steps there and back that run on a model with `timesteps`."""
        solver = self.options["solver"]
        return steps_run(solver, self.invert_steps, timesteps), steps_run(solver, self.decode_steps, timesteps)


class Outcome(NamedTuple):
    """Inferred noise, reconstructions and edits [N, 3, R, R] on the CPU, and the seconds they took."""

    x_T: torch.Tensor
    back: torch.Tensor
    edited: torch.Tensor
    seconds: float


def run(pipeline: DiTiPipeline, x0: torch.Tensor, z: torch.Tensor, edited_z: torch.Tensor, way: Way) -> Outcome:
    """Invert, decode under the images' own features, decode under the edited ones."""
    started = time.perf_counter()
    x_T = pipeline.invert(x0, z, way.invert_steps, **way.options)
    back = pipeline.decode(x_T, z, way.decode_steps, **way.options).cpu()
    seconds = time.perf_counter() - started
    edited = pipeline.decode(x_T, edited_z, way.decode_steps, **way.options).cpu()
    return Outcome(x_T.cpu(), back, edited, seconds)


def row(
    way: Way, outcome: Outcome, x0: torch.Tensor, references: dict[str, torch.Tensor], timesteps: int
) -> dict[str, Any]:
    """What the outcome says about the way; images are judged as they are shown, within [-1, 1]."""
    x_T, back = outcome.x_T, outcome.back.clamp(-1, 1)
    inverted, decoded = way.steps_run(timesteps)
    centred = x_T - x_T.mean()
    neighbours = (centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()
    return {
        "name": way.name,
        "invert_steps": way.invert_steps,
        "decode_steps": way.decode_steps,
        "invert_steps_run": inverted,
        "decode_steps_run": decoded,
        **way.options,
        "psnr": psnr(back, x0),
        "ssim": float(ssim(back, x0).mean()),
        "x_T_mean": float(x_T.mean()),
        "x_T_std": float(x_T.std()),
        "x_T_neighbour_correlation": float(neighbours),
        **{f"edit_{name}": agreement(outcome.edited, images) for name, images in references.items()},
        "seconds": outcome.seconds,
    }


def agreement(edited: torch.Tensor, reference: torch.Tensor) -> float:
    """10 log10(4 / MSE) of edits within [-1, 1], dB: finer than a PSNR of grey levels, to tell samplers apart."""
    mse = float((edited.clamp(-1, 1) - reference.clamp(-1, 1)).square().mean())
    return 10 * math.log10(4 / mse) if mse else math.inf


def ways(steps: list[int], timesteps: int) -> list[Way]:
    """What is compared."""
    found = []
    for n in steps:
        found += [
            Way("dpm", n, n, {"solver": "dpm", "precision": "fp32"}),
            Way("dpm, bf16", n, n, {"solver": "dpm", "precision": "bf16"}),
            Way("ddim", n, n, {"solver": "ddim", "precision": "fp32", "clip": False}),
            Way("ddim, clamped", n, n, {"solver": "ddim", "precision": "fp32", "clip": True}),
        ]
    official = {"solver": "ddim", "precision": "fp32", "clip": True, "shift_form": "score"}
    return [*found, Way("official", timesteps, min(100, timesteps), official)]


def measure_round_trip(pipeline: DiTiModel, x0: torch.Tensor) -> list[dict[str, Any]]:
    """PSNR and SSIM of inversion and decoding alone."""
    z = pipeline.encode(x0)
    rows = []
    for solver, steps in itertools.product(("dpm", "ddim"), (20, 50)):
        way = Way(solver, steps, steps, {"solver": solver, "precision": "fp32"})
        sampler = pipeline.sampler(**way.options)
        started = time.perf_counter()
        back = sampler.decode(sampler.invert(x0, z, steps=steps), z, steps=steps).cpu().clamp(-1, 1)
        ran = dict(
            zip(("invert_steps_run", "decode_steps_run"), way.steps_run(pipeline.schedule.timesteps), strict=True)
        )
        found = {"psnr": psnr(back, x0), "ssim": float(ssim(back, x0).mean())}
        rows.append({"name": solver, **way.options, **ran, **found, "seconds": time.perf_counter() - started})
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def measure(pipeline: DiTiPipeline, x0: torch.Tensor, steps: list[int]) -> list[dict[str, Any]]:
    """All rows; printed as they come."""
    z = pipeline.encode(x0)
    other = z.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    layout, timesteps = pipeline.chunks, pipeline.schedule.timesteps
    edited_z = mix_chunks(z, other, layout, range(max(1, layout.chunks // 4)), 1.0)
    exact = {
        "ddim_1000": Way("", timesteps, timesteps, {"solver": "ddim", "precision": "fp32", "clip": False}),
        "dpm_400": Way("", min(400, timesteps - 1), min(400, timesteps - 1), {"solver": "dpm", "precision": "fp32"}),
    }
    references = {name: run(pipeline, x0, z, edited_z, way).edited for name, way in exact.items()}
    rows = []
    for way in ways(steps, timesteps):
        rows.append(row(way, run(pipeline, x0, z, edited_z, way), x0, references, timesteps))
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    """Print the table; write it and the curve where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--images", type=int, default=64, help="an even number")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 15, 20, 30, 50, 100])
    parser.add_argument("--short", action="store_true", help="the round trip alone")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    pipeline = (load_model if options.short else load_pipeline)(options.model, options.device)
    faces = FaceImages(options.images, HELD_OUT_SEED, pipeline.resolution)
    x0 = normalise(torch.from_numpy(np.stack([faces.load(i) for i in range(len(faces))])).permute(0, 3, 1, 2))
    rows = (
        measure_round_trip(pipeline, x0) if options.short else measure(cast(DiTiPipeline, pipeline), x0, options.steps)
    )
    if options.out is not None:
        facts = {
            "what": "inversion, decoding and edits of held-out built-in faces; --short: no edits",
            "command": " ".join(["python -m benchmarks.reconstruction", *sys.argv[1:]]),
            "psnr": "dB, clamped pictures of 8 bits, over all pixels",
            "date": datetime.date.today().isoformat(),
            "images": options.images,
            "device": str(pipeline.device),
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "versions": versions(),
            "model_hash": pipeline.model_hash,
        }
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
        if not options.short:
            draw(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
