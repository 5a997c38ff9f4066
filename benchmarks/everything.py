"""All measurements, each part in a process of its own and within a time limit, so that no part can cost the others.

    python -m benchmarks all --official ~/DiTi --out benchmarks/results

Takes under 23 minutes on a GPU and, with smaller sizes, under 24 on two processor cores, by its limits. It leaves
DATE-DEVICE-PART.json for every part and DATE-DEVICE-tables.md in the folder. A part that fails or runs out of time is
named at the end, and the exit status is 1; what it had finished by then is kept.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from benchmarks.children import started_python
from benchmarks.facts import device_name
from diticli.errors import ConfigError
from diticli.models.device import resolve_device

DEFAULT_OUT = Path("benchmarks/results")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process.

    Attributes:
        name: of its files.
        arguments: of `python -m benchmarks`.
        limit: seconds after which it is ended.
        official: whether it takes --official.
        device: whether it takes --device.
    """

    name: str
    arguments: tuple[str, ...]
    limit: float
    official: bool = True


def _part(name: str, limit: float, *texts: str, official: bool = True) -> Part:
    return Part(name=name, arguments=tuple(" ".join(texts).split()), limit=limit, official=official)


# A training part's own limits leave its process some 20 s to start in, and the rest to trace and compare both sides.
GPU = (
    _part(
        "train-celeba64",
        400,
        "train --cases celeba64:128 --brief --compile-limit 200 --build 90 --budget 18 --rounds 12",
    ),
    _part("train-features", 120, "train --cases celeba64:128 --compile off --eager --budget 14 --rounds 12"),
    _part(
        "train-ffhq128",
        400,
        "train --cases ffhq128:64 --brief --eager --compile-limit 200 --build 60 --budget 10 --rounds 12",
    ),
    _part("forward", 120, "forward --cases celeba64:128 --budget 4"),
    _part("encode", 90, "encode --cases celeba64:1024 --budget 5 --jpegs 2048"),
    _part("edit", 120, "edit --cases celeba64 --scale 0.1 --budget 30 --rounds 8"),
    _part("kernels", 110, "kernels --budget 80", official=False),
)
CPU = (
    _part("train-small64", 120, "train --cases small64:16 --budget 45 --rounds 12"),
    _part("train-celeba64", 250, "train --cases celeba64:4 --brief --budget 60 --rounds 8"),
    _part(
        "train-compiled",
        420,
        "train --cases small64:4 --brief --compile on --compiled --compile-limit 120 --build 250",
        "--budget 20 --rounds 12",
    ),
    _part("forward", 180, "forward --cases celeba64:4 --budget 30"),
    _part("encode", 90, "encode --cases celeba64:64 --budget 8 --jpegs 512"),
    _part("edit", 110, "edit --cases small64 --scale 0.02 --budget 45 --rounds 8 --images 2"),
    _part("kernels", 230, "kernels --budget 180", official=False),
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended; `problem` is empty when all went well."""

    part: Part
    seconds: float
    problem: str


def run_part(part: Part, command: list[str], log: Path) -> Outcome:
    """Run one part, showing its output and adding it to `log`."""
    started = time.monotonic()
    shown = " ".join(command[1:])
    print(f"\n## {part.name}: python {shown}", flush=True)
    with log.open("a") as file:
        file.write(f"\n## {part.name}\n\n`python {shown}`\n\n")
        file.flush()
        with started_python(command[1:]) as (process, output):
            problem = _follow(process, output, part.limit, file)
        file.write(f"\n{problem}\n" if problem else "")
    return Outcome(part, time.monotonic() - started, problem)


def _follow(process: subprocess.Popen[str], output: IO[str], limit: float, file: object) -> str:
    """Copy the output until the process ends or its time is up."""
    import threading

    def copy() -> None:
        for line in output:
            print(line, end="", flush=True)
            file.write(line)  # type: ignore[attr-defined]

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    problem = ""
    try:
        if status := process.wait(timeout=limit):
            problem = f"ended with status {status}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        problem = f"ran out of its {limit:.0f} s"
    reader.join(timeout=5)
    return problem


def command_of(part: Part, options: argparse.Namespace, device: torch.device, out: Path) -> list[str]:
    """The command line of a part, whose paths hold in any folder."""
    command = [sys.executable, "-m", "benchmarks", *part.arguments, "--device", device.type]
    command += ["--out", str(out.resolve())]
    if part.official and options.official is not None:
        command += ["--official", str(options.official.resolve())]
    if part.name == "edit" and options.model is not None:
        there = Path(options.model).exists()  # else a word, or an id on the Hub
        command += ["--model", str(Path(options.model).resolve()) if there else options.model]
    return command


def chosen(parts: Sequence[Part], only: Sequence[str] | None) -> list[Part]:
    """The parts that are named, in their own order; all of them when `only` is None.

    Raises:
        ConfigError: for a name that is none of theirs.
    """
    names = [part.name for part in parts]
    for name in only or ():
        if name not in names:
            raise ConfigError(f"There is no part {name!r} here.", remedy=f"Choose from {', '.join(names)}.")
    return [part for part in parts if only is None or part.name in only]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --official, --device and --out."""
    parser.add_argument("--model", default=None, help="a trained model, for the quality of both ways of editing")
    parser.add_argument("--only", nargs="+", default=None, metavar="PART", help="some of the parts, by name")


def main(options: argparse.Namespace) -> None:
    """Run the parts of this device one after the other.

    Raises:
        ConfigError: when --only names no part of this device.
        SystemExit: with status 1 when a part failed.
    """
    device = resolve_device(options.device)
    parts = chosen(GPU if device.type == "cuda" else CPU, options.only)
    out = options.out or DEFAULT_OUT
    out.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.date.today().isoformat()}-{_slug(device)}"
    log = out / f"{stem}-tables.md"
    log.write_text(f"# Benchmarks on {device_name(device)}, {datetime.date.today().isoformat()}\n")
    outcomes = [
        run_part(part, command_of(part, options, device, out / f"{stem}-{part.name}.json"), log) for part in parts
    ]
    print(f"\n{sum(o.seconds for o in outcomes):.0f} s in all; results in {out}/{stem}-*")
    failed = [o for o in outcomes if o.problem]
    for outcome in failed:
        print(f"{outcome.part.name} {outcome.problem}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _slug(device: torch.device) -> str:
    """`cpu`, or the GPU's name in lower case with dashes."""
    if device.type == "cpu":
        return "cpu"
    words = device_name(device).lower().replace("nvidia", "").split()
    return "-".join(words)
