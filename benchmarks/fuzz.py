"""A fuzz of the command line: random combinations of options, each of which is valid for itself.

    python -m benchmarks.fuzz --runs 200 --seed 0 --out benchmarks/results/fuzz.json

Every run is `diti train`, `encode`, `probe` or `edit` (with the name of a sub-command or without) at the smallest
size, called within one process as the command itself is called, in its own copy of the same working directory. It must
work (status 0, and JSON on stdout where --json is given) or be refused in one line with a
remedy; a traceback, a refusal without a remedy, or broken JSON is a fault. The arguments of every run follow from
(seed, number) alone: `--only 17` repeats the seventeenth. Left out are --compile, which costs minutes, and --help.

--out is written after every run, and the same command goes on from there: Ctrl-C or a SIGTERM, which ends the command
under way with status 130 or 143, ends the fuzz too, and that run is not recorded. --only replaces what is recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from benchmarks import facts
from benchmarks.fuzz_options import (
    ARGUMENTS,
    CHANCE,
    CHANCES,
    DRAWN,
    IMAGES,
    OPTIONS,
    SHORT,
    SHORT_MIXED,
    SMALL,
    WRONG,
    WRONG_CHANCE,
)
from benchmarks.table import render

Outcome = Literal["works", "refused", "fault"]
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Status of a command that was told to stop: no word on its arguments."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of one command.

    Attributes:
        number: with the seed, what its arguments follow from.
        arguments: behind `diti`.
        outcome: "works", "refused" or "fault".
        status: exit status.
        says: the refusal with its remedy, or what the fault is.
        seconds: that it took.
    """

    number: int
    arguments: tuple[str, ...]
    outcome: Outcome
    status: int
    says: str
    seconds: float = field(compare=False)


def main() -> int:
    """Parse, run all, print and write; the exit status is 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", default=None, help="only these runs")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    about = facts.collect(torch.device("cpu")) | {"command": " ".join(["python -m benchmarks.fuzz", *sys.argv[1:]])}
    out = options.out and options.out.resolve()
    done = {} if out is None else recorded(out, options.seed)
    numbers = [n for n in range(options.runs) if n not in done] if options.only is None else options.only
    stopped = 0
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("prepared").mkdir()
        with contextlib.chdir("prepared"):
            prepare()
        for number in numbers:
            with tempfile.TemporaryDirectory(dir=".") as own:
                shutil.copytree("prepared", own, dirs_exist_ok=True)
                with contextlib.chdir(own):
                    run = attempt(number, arguments_of(options.seed, number))
            if run.status in INTERRUPTED:
                stopped = run.status
                break
            done[number] = run
            print(f"{number}: {run.outcome}, {run.seconds:.1f} s", file=sys.stderr, flush=True)
            if out is not None:
                runs = [asdict(done[n]) for n in sorted(done)]
                facts.write(out, {"facts": about, "seed": options.seed, "runs": runs})
    print(render(["command", "works", "refused", "fault"], summary(list(done.values()))))
    faults = [run for run in done.values() if run.outcome == "fault"]
    for run in faults:
        print(f"\n{run.number}: diti {' '.join(run.arguments)}\n{run.says}")
    return stopped or int(bool(faults))


def recorded(path: Path, seed: int) -> dict[int, Run]:
    """Runs that the file holds, by number; none where it does not exist.

    Raises:
        SystemExit: when its runs are of another seed.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["seed"] != seed:
        raise SystemExit(f"{path} holds runs of seed {found['seed']}: give another --out, or --seed {found['seed']}.")
    return {run["number"]: Run(**run | {"arguments": tuple(run["arguments"])}) for run in found["runs"]}


def arguments_of(seed: int, number: int) -> tuple[str, ...]:
    """Arguments of a run; the same for the same (seed, number)."""
    chance = random.Random(f"{seed} {number}")
    command = chance.choice(DRAWN)
    words, options = command.split(), OPTIONS[command]
    if command == SHORT:
        command = chance.choice([name for name in ARGUMENTS if name.startswith("edit ")])
        words, mixed = ["edit"], chance.random() < SHORT_MIXED
        options = options if mixed else OPTIONS[command]
    given = list(chance.choice(ARGUMENTS[command]))
    if words == ["edit"] and command == "edit reconstruct":
        given += ["--reconstruct"]
    for option, values in options.items():
        if option != "--reconstruct" and chance.random() < CHANCES.get(option, CHANCE):
            wrong = WRONG.get(option, ())
            value = chance.choice(wrong) if wrong and chance.random() < WRONG_CHANCE else chance.choice(values)
            given += [option] if value is None else [option, value]
    if command == "train":
        given = [*(part for setting in SMALL for part in ("--set", setting)), *given]
        if "--out" not in given:
            given += ["--out", f"trained/{number}"]
    return (*words, *given)


def prepare() -> None:
    """Write what the commands read into the working directory: pictures, labels, a run, features, a probe."""
    for folder in ("photos", "more"):
        Path(folder).mkdir()
    draws = np.random.default_rng(0)
    names = [f"{i:04d}.png" for i in range(IMAGES)]
    for folder, name in [*(("photos", name) for name in names), ("more", "0000.png")]:
        Image.fromarray(draws.integers(0, 256, (18, 21, 3), dtype=np.uint8)).save(Path(folder) / name)
    with tarfile.open("photos.tar", "w") as archive:
        archive.add("photos")
    labels = [(name, i % 2, 20 + i % 7, ("ok", "sad", "?")[i % 3]) for i, name in enumerate(names)]
    Path("labels.csv").write_text("file,hat,age,mood\n" + "".join(f"{','.join(map(str, row))}\n" for row in labels))
    Path("labels.json").write_text(json.dumps([dict(zip(("file", "hat", "age"), row, strict=False)) for row in labels]))
    Path("persons.txt").write_text("".join(f"{name} {i % 9}\n" for i, name in enumerate(names)))
    Path("parts.txt").write_text("".join(f"{name} {i % 3}\n" for i, name in enumerate(names)))
    Path("list.txt").write_text("photos\nmore\n")
    Path("pairs.csv").write_text("a,b\nphotos/0001.png,faces:2\nfaces:3,photos/0004.png\n")
    Path("small.toml").write_text("log_every = 5\n[features]\nbatch_size = 4\n")
    settings = [part for setting in SMALL for part in ("--set", setting)]
    for arguments in (
        ("train", *settings, "--data", "photos", "--device", "cpu", "--precision", "fp32", "--out", "run"),
        ("encode", "photos", "-o", "feats.npy", "--model", "run", "--device", "cpu"),
        ("encode", "photos", "-o", "feats", "--shard-size", "16", "--model", "run", "--device", "cpu"),
        ("probe", "feats.npy", "--labels", "labels.csv", "--mask-dims", "2", "--mask-steps", "10", "--device", "cpu"),
    ):
        run = attempt(-1, arguments)
        if run.outcome != "works":
            raise RuntimeError(f"diti {' '.join(arguments)}: {run.says}")


def attempt(number: int, arguments: Sequence[str]) -> Run:
    """One command, and whether what came of it is as it should be."""
    started = time.monotonic()
    outcome, status, says = _judged(arguments)
    return Run(
        number=number,
        arguments=tuple(arguments),
        outcome=outcome,
        status=status,
        says=says,
        seconds=round(time.monotonic() - started, 2),
    )


def _judged(arguments: Sequence[str]) -> tuple[Outcome, int, str]:
    from typer.testing import CliRunner

    from diticli.commands.app import app

    with _environment():
        result = CliRunner().invoke(app, list(arguments))
    shown, status = result.stderr, result.exit_code
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        return "fault", status, "".join(traceback.format_exception(error))[-3000:]
    if "Traceback (most recent call last)" in shown:
        return "fault", status, shown[-3000:]
    if status == 0:
        if "--json" in arguments and not _is_json(result.stdout):
            return "fault", status, f"no JSON on stdout: {result.stdout[:500]!r}"
        return "works", status, ""
    said = " ".join(shown[shown.rfind("Error") :].split())
    refused = status == 2 if "Usage:" in shown else "Error: " in shown and "\n  -> " in shown
    return ("refused", status, said[:300]) if refused else ("fault", status, f"no remedy: {shown[-1500:]}")


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Without a model or a network from outside, and with the global random generators as they were."""
    before = {name: os.environ.get(name) for name in ("DITI_MODEL", "HF_HUB_OFFLINE")}
    os.environ.pop("DITI_MODEL", None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def summary(runs: Sequence[Run]) -> list[list[Any]]:
    """Command, and how many of its runs had each outcome."""
    counts = Counter((command_of(run.arguments), run.outcome) for run in runs)
    outcomes: tuple[Outcome, ...] = ("works", "refused", "fault")
    return [[command, *(counts[command, outcome] for outcome in outcomes)] for command in OPTIONS]


def command_of(arguments: Sequence[str]) -> str:
    """The key of `OPTIONS` that these arguments were drawn for."""
    if arguments[0] != "edit":
        return arguments[0]
    return name if (name := " ".join(arguments[:2])) in OPTIONS else SHORT


if __name__ == "__main__":
    sys.exit(main())
