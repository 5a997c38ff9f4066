"""Batch and learning rate of stage 1 on one budget of images: how much better a base of `faces32` could be.

    python -m benchmarks.experiments.base_budget --folder runs/budget --out benchmarks/results/NAME.json

Each arm trains a base on built-in faces under --folder; finished ones are kept. The error of the noise estimate is
measured on faces of a seed that no training saw, the same noise for all, and told in degrees of freedom: mean squared
error times the values of an image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write
from benchmarks.table import render
from diticli.config import RunConfig
from diticli.data.images import FaceImages, load_images
from diticli.models.base_files import load_base
from diticli.models.reconstruction_gap import measure_gap
from diticli.schedule import NoiseSchedule
from diticli.settings import build_config
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

EMA = {8: 0.999, 16: 0.998, 32: 0.996, 64: 0.995}
"""Batch -> decay of the moving average, per step."""
ARMS = ((64, 1e-3), (64, 4e-3), (16, 5e-4), (16, 1e-3), (16, 2e-3), (8, 7e-4), (8, 1.5e-3), (8, 3e-3))
"""Batch, and the learning rate that the optimizer gets at its peak; the first is that of `faces32`."""
TIMESTEPS = (7, 60, 112, 195, 300, 450, 570, 700, 810)


def settings(batch: int, rate: float, options: argparse.Namespace) -> RunConfig:
    """Settings of one arm; stage 2 is one batch, since a run has both."""
    return build_config(
        "faces32",
        options={
            "data.source": "faces",
            "base.images": options.images,
            "base.warmup_images": 3_000,
            "base.batch_size": batch,
            "base.learning_rate": rate * 32 / batch,
            "base.ema_decay": EMA[batch],
            "features.images": 64,
            "sample_every": 0,
            "device": options.device,
        },
        assignments=(),
    )


def noise_errors(run: RunDirectory, faces: int) -> dict[int, float]:
    """Timestep -> D times the mean squared error of the noise estimate, D values in an image, on held-out faces."""
    base, scheduler = load_base(str(run.root / "base"), resolution=None)
    schedule = NoiseSchedule.from_scheduler(scheduler)
    images = torch.from_numpy(load_images(FaceImages(faces, 1, int(base.config.sample_size))).images)
    curve = measure_gap(base, schedule, images.permute(0, 3, 1, 2), timesteps=TIMESTEPS)
    bar_T = schedule.alphas_cumprod.double()
    return {
        t: float(error * bar_T[t] / (1 - bar_T[t]) * images[0].numel())
        for t, error in zip(curve.timesteps, curve.error, strict=True)
    }


def speed(run: RunDirectory) -> float:
    """Images per second of stage 1: the median of its log."""
    lines = [json.loads(line) for line in (run.root / "metrics.jsonl").read_text().splitlines()]
    found = sorted(line["images_per_second"] for line in lines if line.get("stage") == "base")
    return float(found[len(found) // 2])


def main() -> None:
    """Train what is missing, judge all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/budget"))
    parser.add_argument("--images", type=int, default=25_600, help="of each training")
    parser.add_argument("--faces", type=int, default=512, help="that the errors are measured on")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for batch, rate in ARMS:
        run = RunDirectory(options.folder / f"{batch}-{rate:g}")
        if not run.finished:
            train(settings(batch, rate, options), run.root)
        found = {"batch": batch, "learning_rate": rate, "images_per_second": speed(run)}
        rows.append({**found, "errors": noise_errors(run, options.faces)})
        print(run.root.name, rows[-1]["errors"], flush=True)
    shown = [[row["batch"], row["learning_rate"], row["images_per_second"], *row["errors"].values()] for row in rows]
    print(render(["batch", "learning rate", "images/s", *(f"t = {t}" for t in TIMESTEPS)], shown))
    if options.out is not None:
        facts = collect(torch.device("cpu" if options.device == "auto" else options.device))
        facts["command"] = (
            f"python -m benchmarks.experiments.base_budget --images {options.images} --faces {options.faces}"
        )
        write(options.out, {**facts, "what": "error of the base by batch and learning rate", "rows": rows})


if __name__ == "__main__":
    main()
