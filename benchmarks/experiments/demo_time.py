"""How long `diti demo` takes, beside that of an earlier checkout on the same machine.

    python -m benchmarks.experiments.demo_time --old ../old --out benchmarks/results/demo-time.json
    python -m benchmarks.experiments.demo_time --old ../old --new-seconds 428    # of a demo that was timed before

Compared are processor seconds of all threads, which depend little on what else the machine does; on idle cores both
demos keep them busy. The earlier demo had a fixed number of images in both stages. Its time is therefore the number of
images of each stage, divided by the images per processor second at which the earlier code trains: measured before and
after a whole demo of today. What the earlier demo did after training (probes, edits, report) is left out, which
favours it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write

STEPS = 10
"""Timed steps of each stage, each time."""
RATES = f"""
import json, time, types, diticli
from diticli.settings import build_config
from diticli.training import plan
plan.TIMED_STEPS, plan.time = {STEPS}, types.SimpleNamespace(perf_counter=time.process_time)
found = plan.make_plan(build_config("faces32"))
stages = {{s.name: {{"images": s.images, "images_per_processor_second": s.images_per_second}} for s in found.stages}}
print(json.dumps({{"file": diticli.__file__, "stages": stages}}))
"""


def old_seconds(checkout: Path) -> dict[str, Any]:
    """Rates of the earlier code, and the processor seconds that its demo would train for at them."""
    paths = os.pathsep.join(str(path) for path in (checkout, checkout / "kernels"))
    command = [sys.executable, "-c", RATES]
    environment = {**os.environ, "PYTHONPATH": paths}
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=checkout, env=environment)
    found = json.loads(run.stdout.splitlines()[-1])
    if not Path(found["file"]).is_relative_to(checkout):
        raise SystemExit(f"{found['file']} was imported, not the code of {checkout}.")
    stages = found["stages"]
    seconds = sum(stage["images"] / stage["images_per_processor_second"] for stage in stages.values())
    return {"stages": stages, "processor_seconds": seconds}


def new_seconds() -> float:
    """Processor seconds of a whole demo, from the start of the process to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "diticli", "demo", "-o", str(Path(folder, "demo"))]
        subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--new-seconds", type=float, help="processor seconds of a demo of today. Default: run one")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    facts = collect(torch.device("cpu")) | {"command": "python -m benchmarks.experiments.demo_time --old OLD"}
    checkout = options.old.resolve()
    first = old_seconds(checkout)
    new = options.new_seconds or new_seconds()
    old = [first, old_seconds(checkout)]
    ratios = [found["processor_seconds"] / new for found in old]
    print(f"processor seconds: today's demo {new:.0f}; the earlier one's training, before and after:")
    for found, ratio in zip(old, ratios, strict=True):
        print(f"  {found['processor_seconds']:.0f}, {ratio:.1f} times as long")
    if options.out:
        write(options.out, {**facts, "old": old, "new_processor_seconds": new, "ratios": ratios})


if __name__ == "__main__":
    main()
