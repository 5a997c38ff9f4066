"""How long `diti demo` takes, beside that of an earlier checkout on the same machine.

    python -m benchmarks.experiments.demo_time --old ../old --out benchmarks/results/demo-time.json

Wall time of whole demos on a machine that does nothing else. The earlier demo had 80,000 images in each stage, half an
hour; it is run whole with 2,560 and with 7,680 images a stage, and the line through both says what 80,000 take: probes,
edits and report cost the same whatever the number of images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.children import run_python
from benchmarks.facts import collect, write

FEW, MORE = 2_560, 7_680
"""Images in each stage of the two shortened demos."""
ALL = 80_000
"""Images in each stage of the earlier demo."""


def seconds(checkout: Path, *options: str) -> float:
    """Wall time of `diti demo` with `options`, run with the code of `checkout`, from the command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["-m", "diticli", "demo", *options, "-o", str(Path(folder, "demo"))]
        started = time.perf_counter()
        run_python(arguments, packages=(checkout, checkout / "kernels"), folder=folder, check=True)
        return time.perf_counter() - started


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    given = "measured before, instead of running it"
    parser.add_argument("--old-seconds", type=float, nargs=2, metavar=("FEW", "MORE"), help=f"of both, {given}")
    parser.add_argument("--new-seconds", type=float, help=f"of today's demo, {given}")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = collect(torch.device("cpu")) | {"command": "python -m benchmarks.experiments.demo_time --old OLD"}
    new = options.new_seconds or seconds(Path(__file__).resolve().parents[2])
    few, more = options.old_seconds or (
        seconds(options.old.resolve(), "--base-images", str(images), "--images", str(images)) for images in (FEW, MORE)
    )
    old = few + (more - few) / (MORE - FEW) * (ALL - FEW)
    print(f"Today's demo: {new:.1f} s. The earlier one: {few:.1f} s with {FEW:,} images a stage, {more:.1f} s with")
    print(f"{MORE:,}, so {old:.0f} s with its {ALL:,}: {old / new:.1f} times as long.")
    if options.out:
        measured = {"new_seconds": new, "old_seconds": {str(FEW): few, str(MORE): more}, "old_seconds_of_all": old}
        write(options.out, {**facts, **measured, "ratio": old / new})


if __name__ == "__main__":
    main()
