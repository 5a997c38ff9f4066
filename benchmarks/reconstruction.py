"""How faithfully do inversion and decoding give held-out faces back?

    python -m benchmarks.reconstruction --model runs/demo --out benchmarks/results/NAME.json

For each number of DDIM steps and each way of clamping the predicted x_0: PSNR (dB) over all pixels of all images, and
mean, standard deviation and neighbour correlation of the inferred x_T (0, 1 and 0 for Gaussian noise).
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diticli.data.images import FaceImages
from diticli.models.locate import load_pipeline
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.schedule import psnr
from diticli.training.rundir import versions

HELD_OUT_SEED = 1


def measure(pipeline: DiTiPipeline, x0: torch.Tensor, steps: int, clip: tuple[bool, bool]) -> dict[str, Any]:
    """One row: `clip` says whether inversion and decoding clamp the predicted x_0."""
    z = pipeline.encode(x0)
    started = time.perf_counter()
    x_T = pipeline.invert(x0, z, steps=steps, clip=clip[0])
    back = pipeline.decode(x_T, z, steps=steps, clip=clip[1]).cpu()
    seconds = time.perf_counter() - started
    centred = x_T - x_T.mean()
    neighbours = (centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean()
    return {
        "steps": steps,
        "clip_invert": clip[0],
        "clip_decode": clip[1],
        "psnr": psnr(float((back - x0).square().mean())),
        "x_T_mean": float(x_T.mean()),
        "x_T_std": float(x_T.std()),
        "x_T_neighbour_correlation": float(neighbours),
        "seconds": seconds,
    }


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--device", default=None)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 50, 100, 200])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    pipeline = load_pipeline(options.model, options.device)
    faces = FaceImages(options.images, HELD_OUT_SEED, pipeline.resolution)
    x0 = normalise(torch.from_numpy(np.stack([faces.load(i) for i in range(len(faces))])).permute(0, 3, 1, 2))
    rows = []
    for steps in options.steps:
        for clip in ((False, False), (False, True), (True, True)):
            rows.append(measure(pipeline, x0, steps, clip))
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    if options.out is not None:
        facts = {
            "what": "DDIM inversion + decoding of held-out built-in faces",
            "date": datetime.date.today().isoformat(),
            "images": options.images,
            "device": str(pipeline.device),
            "processor": platform.processor() or platform.machine(),
            "versions": versions(),
            "model_hash": pipeline.model_hash,
        }
        options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
