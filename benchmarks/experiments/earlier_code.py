"""Today's code beside an earlier checkout's: rates of training and encoding, start-up, and the way of one request.

    git worktree add ../old 0c98ef0
    python -m benchmarks.experiments.earlier_code --old ../old --out benchmarks/results/paired.json

Three processes live side by side on one core with one thread: the earlier code, the earlier code once more, and
today's. A round asks each of them, in a new random order, for the same piece of work, and counts the processor seconds
that it took; so what else the machine does matters little. The figure is the median of the ratio per round. The second
process of the earlier code is the control: where it differs from the first by more than 2 %, rounds were too few.
Commands are timed likewise, each in a fresh process, from bytecode, as an installed package runs. Where the machine is
too loaded for a ratio, the operators that both sides hand to PyTorch, with the shapes and strides of their arguments,
are compared: they do not depend on it.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.encode import write_jpegs
from benchmarks.facts import collect, write
from benchmarks.table import ratio_text, render
from benchmarks.timing import TWIN, Side, Timings, measure

WORKS = (
    "train faces32 8 base",
    "train faces32 8 features",
    "train faces64 2 base",
    "train faces64 2 features",
    "encode faces32",
    "encode faces64",
    "files",
)
COUNTED = ("train", "encode")
"""Kinds of work that are operators of PyTorch, most of all."""
FILES = 1024
"""So many that what a run costs once, such as the hash of the weights, does not matter."""
EDIT = ("edit", "faces:3", "faces:8", "--chunks", "10-20", "--steps", "2", "-o", "x.png")
"""Two steps each way: mostly start-up."""
WHOLE_EDIT = ("edit", "faces:3", "faces:8", "--chunks", "10-20", "-o", "x.png")
ENCODE = ("encode", "faces:1", "-o", "x.npy")
COMMANDS = (("--help",), EDIT, WHOLE_EDIT, ENCODE)
OLD, NEW = "old", "new"
HERE = Path(__file__).resolve().parents[2]
SIDE = Path(__file__).with_name("earlier_side.py")


@dataclass
class ProcessorClock:
    """Seconds that the asked processes have spent on work."""

    seconds: float = 0.0

    def __call__(self) -> float:
        """For `benchmarks.timing.measure`."""
        return self.seconds


class Checkout:
    """The packages of a checkout, copied, so that nothing is written into it and later changes of it do not count.

    Args:
        source: the checkout.
        root: where the copy is put.
    """

    def __init__(self, source: Path, root: Path) -> None:
        for name in ("diticli", "kernels"):
            shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(root, quiet=2)
        self.root = root
        paths = os.pathsep.join(str(path) for path in (root, root / "kernels"))
        self.environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def call(self, *words: str, folder: Path) -> str:
        """What the side's script prints."""
        command = [sys.executable, "-P", str(SIDE), *words]
        run = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder, env=self.environment, timeout=600
        )
        return run.stdout

    def diti(self, *words: str, folder: Path) -> float:
        """Processor seconds of a command of `diti` in a fresh process."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-P", "-m", "diticli", *words]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=self.environment, timeout=600)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    def start(self, *words: str, folder: Path) -> Worker:
        """The side's script, kept running."""
        command = [sys.executable, "-P", str(SIDE), "work", *words]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=folder, env=self.environment)
        worker = Worker(process)
        self.check(json.loads(worker.line()))
        return worker

    def check(self, found: dict[str, Any]) -> dict[str, Any]:
        """What a side says of itself is of this checkout.

        Raises:
            SystemExit: when other code was imported.
        """
        if not Path(found.pop("of")).is_relative_to(self.root):
            raise SystemExit(f"Other code was imported than that of {self.root}.")
        return found


class Worker:
    """A running side."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def line(self) -> str:
        """The next line that it prints.

        Raises:
            SystemExit: when it has ended.
        """
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise SystemExit("A side ended; its error is above.")
        return line

    def ask(self, method: str, work: str) -> Any:
        """What a method of the side's `Works` gives for a piece of work."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{method} {work}\n")
        self.process.stdin.flush()
        return json.loads(self.line())

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def paired(runs: dict[str, Callable[[], float]], *, rounds: int, seconds: float) -> Timings:
    """The sides in turn, by the processor seconds that each call returns; the second old one is the control."""
    clock = ProcessorClock()

    def side(name: str, run: Callable[[], float]) -> Side:
        def timed() -> None:
            clock.seconds += run()

        return Side(name=name, run=timed)

    sides = [side(name, run) for name, run in runs.items()]
    found = measure(sides, rounds=rounds, budget_seconds=seconds, clock=clock)
    return Timings(seconds=found.seconds, control=OLD, failures=found.failures)


def rates(
    old: Checkout, new: Checkout, works: Sequence[str], folder: Path, **limits: Any
) -> tuple[dict[str, Timings], dict[str, dict[str, int]]]:
    """Pieces of work, in processes that live throughout: their times, and the operators of both sides compared."""
    model, pictures = folder / "model", folder / "pictures"
    old.call("save", str(model), folder=folder)
    write_jpegs(pictures, FILES)
    places = [str(model), str(pictures)]
    workers = {name: side.start(*places, folder=folder) for name, side in _sides(old, new).items()}
    try:
        found: dict[str, Timings] = {}
        operators: dict[str, dict[str, int]] = {}
        for work in works:
            runs = {name: _asking(worker, work) for name, worker in workers.items()}
            found[work] = paired(runs, **limits)
            print(_row(work, found[work]), flush=True)
            if work.split()[0] in COUNTED:
                operators[work] = compared(*(workers[name].ask("operators", work) for name in (OLD, NEW)))
                print(f"operators of {work}: {operators[work]}", flush=True)
        return found, operators
    finally:
        for worker in workers.values():
            worker.end()


def compared(old: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    """Operators that one run takes in all, and how many of them only one side runs."""
    before, after = Counter(old), Counter(new)
    return {
        "old": before.total(),
        "new": after.total(),
        "only_old": (before - after).total(),
        "only_new": (after - before).total(),
    }


def _asking(worker: Worker, work: str) -> Callable[[], float]:
    return lambda: float(worker.ask("run", work))


def commands(old: Checkout, new: Checkout, folder: Path, **limits: Any) -> dict[str, Timings]:
    """Whole commands, each in a fresh process; the model is the same one, saved by the earlier code."""
    found = {}
    for words in COMMANDS:
        model = [] if words == ("--help",) else ["--model", str(folder / "model")]
        runs = {name: _commanding(side, [*words, *model], folder) for name, side in _sides(old, new).items()}
        work = " ".join(["diti", *words])
        found[work] = paired(runs, **limits)
        print(_row(work, found[work]), flush=True)
    return found


def _commanding(side: Checkout, words: Sequence[str], folder: Path) -> Callable[[], float]:
    return lambda: side.diti(*words, folder=folder)


def _sides(old: Checkout, new: Checkout) -> dict[str, Checkout]:
    return {OLD: old, OLD + TWIN: old, NEW: new}


def _row(work: str, timings: Timings) -> str:
    control = timings.control_ratio
    assert control is not None
    seconds = {name: timings.quantiles(name)[1] for name in (OLD, NEW)}
    headers = ["work", "seconds, old", "seconds, new", "new / old", "control"]
    row = [work, seconds[OLD], seconds[NEW], ratio_text(timings.ratio(NEW, OLD)), ratio_text(control)]
    return render(headers, [row]).splitlines()[-1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", type=Path, required=True, help="checkout of the earlier version")
    parser.add_argument("--works", nargs="*", default=WORKS, help=f"none or some of: {', '.join(WORKS)}")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=120.0, help="processor seconds of each piece of work at most")
    parser.add_argument("--core", type=int, help="the one core to run on. Default: any")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    facts = collect(torch.device("cpu")) | {"command": "python -m benchmarks.experiments.earlier_code --old OLD"}
    found: dict[str, Timings] = {}
    operators: dict[str, dict[str, int]] = {}
    walks: dict[str, dict[str, Any]] = {}

    def keep() -> None:
        if options.out:
            works = {work: {**t.to_dict(), "new_by_old": t.ratio(NEW, OLD).to_dict()} for work, t in found.items()}
            write(options.out, {**facts, "works": works, "operators": operators, "walk": walks})

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        old, new = Checkout(options.old, folder / OLD), Checkout(HERE, folder / NEW)
        limits = {"rounds": options.rounds, "seconds": options.seconds}
        timed, counted = rates(old, new, options.works, folder, **limits)
        found |= timed
        operators |= counted
        keep()
        words = [*EDIT, "--model", str(folder / "model")]
        for side, checkout in ((OLD, old), (NEW, new)):
            walks[side] = checkout.check(json.loads(checkout.call("walk", *words, folder=folder)))
            print(f"{' '.join(EDIT[:3])}, {side}: {walks[side]}", flush=True)
        found |= commands(old, new, folder, **limits)
    keep()


if __name__ == "__main__":
    main()
