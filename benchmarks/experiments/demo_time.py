"""How long `diti demo` takes, beside that of an earlier checkout on the same machine under the same load.

    python -m benchmarks.experiments.demo_time --old ../old --out benchmarks/results/demo-time.json

The earlier demo had a fixed number of images in both stages. Its time is therefore the number of images of each stage
divided by the rate that the earlier code trains at, measured in turns with a whole demo of today: old, new, old, for
each round. What the earlier demo did after training (probes, edits, report) is left out, in its favour.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write

STEPS = 12
"""Timed steps of each stage, each time."""
RATES = f"""
import json, diticli
from diticli.settings import build_config
from diticli.training import plan
plan.TIMED_STEPS = {STEPS}
found = plan.make_plan(build_config("faces32"))
stages = {{s.name: {{"images": s.images, "images_per_second": s.images_per_second}} for s in found.stages}}
print(json.dumps({{"file": diticli.__file__, "stages": stages}}))
"""


def old_seconds(checkout: Path) -> dict[str, Any]:
    """Rates of the earlier code, and the seconds that its demo would train for at them."""
    paths = os.pathsep.join(str(path) for path in (checkout, checkout / "kernels"))
    command = [sys.executable, "-c", RATES]
    environment = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout, env=environment)
    found = json.loads(run.stdout.splitlines()[-1])
    if not Path(found["file"]).is_relative_to(checkout):
        raise SystemExit(f"{found['file']} was imported, not the code of {checkout}.")
    stages = found["stages"]
    return {"stages": stages, "seconds": sum(s["images"] / s["images_per_second"] for s in stages.values())}


def new_seconds() -> float:
    """Seconds of a whole demo, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "diticli", "demo", "-o", str(Path(folder, "demo"))],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        return time.perf_counter() - began


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = collect(torch.device("cpu")) | {"command": "python -m benchmarks.experiments.demo_time --old OLD"}
    old, new = [old_seconds(options.old.resolve())], []
    for _ in range(options.rounds):
        new.append(new_seconds())
        old.append(old_seconds(options.old.resolve()))
        around = (old[-2]["seconds"] + old[-1]["seconds"]) / 2
        print(f"old {around / 60:.1f} min, new {new[-1] / 60:.1f} min, ratio {around / new[-1]:.1f}")
    if options.out:
        write(options.out, {**facts, "old": old, "new_seconds": new})


if __name__ == "__main__":
    main()
