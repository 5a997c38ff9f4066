"""Faults put into real runs: how many tries of each lost something, and how far two processes are from one.

python -m benchmarks.faults --out benchmarks/results/faults.json

Every try is a `diti` command in a process of its own on the CPU, disturbed, then repeated. It survived when the result
is that of the undisturbed command, bit for bit, or when the fault was refused in words with everything kept.
`--long` adds 2,000 training steps under a watch of memory.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import facts
from benchmarks.table import render
from tests.faults import injections
from tests.faults.catalogue import FAULTS, Fault
from tests.faults.processes import run, run_world
from tests.faults.settings import Bench, losses, train_command, weights


def main() -> int:
    """Parse, put all faults in, print and write; the exit status is 1 where something was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name has this")
    parser.add_argument("--long", action="store_true", help="also watch the memory of 2,000 training steps")
    options = parser.parse_args()
    about = facts.collect(torch.device("cpu")) | {"command": " ".join(["python -m benchmarks.faults", *sys.argv[1:]])}
    found: dict[str, Any] = {"facts": about, "faults": []}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for fault in FAULTS:
            if options.only in fault.name:
                found["faults"].append(put(fault, bench, options.seed))
                print(f"{fault.name}: {found['faults'][-1]['survived']} of {fault.tries}", file=sys.stderr)
        if not options.only:
            found["two_processes"] = compare_two_processes(bench)
        if options.long:
            found["memory"] = watch_memory(bench)
    print(render(["fault", "tries", "survived", "lost"], [_row(entry) for entry in found["faults"]]))
    print(json.dumps({key: found[key] for key in ("two_processes", "memory") if key in found}, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(entry["losses"] for entry in found["faults"]))


def put(fault: Fault, bench: Bench, seed: int) -> dict[str, Any]:
    """All tries of a fault; what was lost is kept in words."""
    lost = []
    for number in range(fault.tries):
        try:
            fault.put(bench, random.Random(f"{seed} {fault.name} {number}"))
        except (AssertionError, TimeoutError, OSError, KeyError) as error:
            lost.append(f"try {number}: {type(error).__name__}: {str(error)[-2000:]}")
    return {"name": fault.name, "tries": fault.tries, "survived": fault.tries - len(lost), "losses": lost}


def compare_two_processes(bench: Bench) -> dict[str, float]:
    """Largest differences of losses and weights between one process and two at the same global batch, in float32."""
    folder = bench.folder()
    ended = run_world(train_command(folder / "run"), 2, folder)
    if any(end.status for end in ended):
        raise RuntimeError(ended[0].text)
    one, two = losses(bench.run), losses(folder / "run")
    before, after = weights(bench.run), weights(folder / "run")
    return {
        "steps": len(one),
        "loss": max(abs(two[step] - loss) / abs(loss) for step, loss in one.items()),
        "weight": max(float((after[name] - value).abs().max()) for name, value in before.items()),
    }


def watch_memory(bench: Bench, steps: int = 2000) -> dict[str, Any]:
    """Resident memory in KiB, after every hundredth step."""
    folder = bench.folder()
    more = ("base.images=8", f"features.images={8 * steps}", "checkpoint_every=200", "log_every=10")
    inject = partial(injections.watch_memory, folder / "memory", 100)
    command = train_command(folder / "run", *more)
    ended = run(command, folder / "log", inject=inject, seconds=3600.0)
    if ended.status:
        raise RuntimeError(ended.text)
    kilobytes = [int(line) for line in (folder / "memory").read_text().split()]
    return {"steps": steps, "kib": kilobytes, "growth_kib_after_step_500": max(kilobytes[-5:]) - max(kilobytes[5:10])}


def _row(entry: dict[str, Any]) -> list[Any]:
    return [entry["name"], entry["tries"], entry["survived"], len(entry["losses"])]


if __name__ == "__main__":
    sys.exit(main())
