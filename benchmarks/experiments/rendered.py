"""The benchmark of `diti compare` on pictures with known factors that a package rendered which nobody here wrote.

    python -m benchmarks.experiments.rendered --folder runs/rendered

`disent` (MIT) draws `XYObjectShaded`: one square of seven sizes at 23 x 23 places, in six colours and four shades, on
black: 88,872 pictures. Each seed trains one base, and on it DiTi, PDAE (one chunk) and DiTi with `--modular`, and the
encoder alone by SimCLR and SimSiam, on pictures that are not scored. Then `diti compare --benchmark` scores all of
them, the base's own features, an untrained encoder, PCA and pixels. What is finished is not made again.

`disent` is installed by pip into a temporary environment in front of this one (it needs torchvision and lightning).
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.children import run_python
from benchmarks.experiments.disent_scores import environment
from diticli.training.rundir import RunDirectory

SIDE = 32
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
RENDER = """
import sys, numpy as np
from benchmarks.children import run_python
from benchmarks.experiments.disent_scores import usable_torchvision
usable_torchvision()
from disent.dataset.data import XYObjectShadedData
side, count, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
data = XYObjectShadedData(grid_size=side, grid_spacing=1, min_square_size=side // 8, max_square_size=side // 3,
                          square_size_spacing=max(1, (side // 3 - side // 8) // 4), palette="rainbow_4")
rows = np.sort(np.random.default_rng(0).permutation(len(data))[:count])
images = np.stack([data[int(row)] for row in rows])
factors = np.stack([data.idx_to_pos(int(row)) for row in rows])
np.savez(out, images=images, labels=factors, names=np.array(data.factor_names))
print(f"{len(rows):,} of {len(data):,} pictures, factors {dict(zip(data.factor_names, data.factor_sizes))}")
"""
"""Runs where disent is installed."""
METHODS = {
    "diti": [],
    "pdae": ["--set", "chunks.count=1", "--set", "chunks.partition=uniform"],
    "modular": ["--modular"],
    "simclr": ["--ssl", "simclr", "--ssl-only"],
    "simsiam": ["--ssl", "simsiam", "--ssl-only"],
}
"""Options of each training, behind those of all: of two `--set`, the last one counts."""


def render(options: argparse.Namespace) -> None:
    """Write train.npz, test.npz and labels.csv of the latter, unless they are there."""
    if (options.folder / "labels.csv").is_file():
        return
    from diticli.files import write_atomically

    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        python, _ = environment(Path(place) / "env")
        drawn = Path(place) / "drawn.npz"
        count = options.train + options.images
        arguments = ["-c", RENDER, str(SIDE), str(count), str(drawn.resolve())]
        run_python(arguments, python=python, check=True, shown=True)
        with np.load(drawn, allow_pickle=False) as data:
            images, factors, names = data["images"], data["labels"], data["names"].tolist()
    order = np.random.default_rng(1).permutation(len(images))
    parts = {"train": order[: options.train], "test": np.sort(order[options.train :])}
    for part, rows in parts.items():
        np.savez_compressed(options.folder / f"{part}.npz", images=images[rows])
    lines = [",".join(["file_name", *names])]
    for number, row in enumerate(factors[parts["test"]]):
        cells = [COLOURS[value] if name == "color" else str(value) for name, value in zip(names, row, strict=True)]
        lines.append(",".join([f"{number:06d}", *cells]))
    write_atomically(options.folder / "labels.csv", "labels", "\n".join(lines) + "\n")


def train_missing(options: argparse.Namespace) -> list[str]:
    """Runs of all methods and seeds, as `diti compare --benchmark` takes them; finished ones as they are."""
    runs = []
    for seed, method in itertools.product(range(options.seeds), options.methods):
        out = options.folder / f"{method}-{seed}"
        runs.append(f"{method}={out}")
        if RunDirectory(out).finished:
            continue
        own, base = METHODS[method], ["--base", str(options.folder / f"diti-{seed}" / "base")]
        if "--ssl-only" in own:
            base = []
        elif method == "diti":
            base = ["--base-images", str(options.budget)]
        settings = [word for each in ("sample_every=0", *options.set) for word in ("--set", each)]
        data = ["--data", str(options.folder / "train.npz"), "-o", str(out), "--seed", str(seed)]
        diti("train", *data, "--preset", "faces32", *base, "--images", str(options.budget), *settings, *own)
    return runs


def diti(*words: str) -> None:
    """A command of this environment's diti, shown first."""
    print(shlex.join(["diti", *words]), flush=True)
    run_python(["-m", "diticli", *words], folder=Path.cwd(), check=True, shown=True)


def main() -> None:
    """Render, train and compare what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/rendered"), help="of pictures, runs and comparison")
    parser.add_argument("--train", type=int, default=20_000, help="pictures to train on")
    parser.add_argument("--images", type=int, default=4_000, help="other pictures, whose features are scored")
    parser.add_argument("--budget", type=int, default=80_000, help="images of each stage of each training")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the bases are diti's")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each method, and splits")
    parser.add_argument("--pixel-side", type=int, default=16, help="pixels a side of raw pixels and their PCA")
    parser.add_argument("--baselines", default="pixels,pca,untrained,base", help="as of diti compare")
    parser.add_argument("--set", action="append", default=[], help="a setting of all trainings, as of diti train")
    options = parser.parse_args()
    render(options)
    runs = train_missing(options)
    scored = ["--data", str(options.folder / "test.npz"), "--labels", str(options.folder / "labels.csv")]
    out = ["-o", str(options.folder / "comparison"), "--shown", "0", "--no-metrics"]
    entries = [*runs, "--baselines", options.baselines, "--pixel-side", str(options.pixel_side)]
    diti("compare", "--benchmark", "--seeds", str(options.seeds), *entries, *scored, *out)


if __name__ == "__main__":
    main()
