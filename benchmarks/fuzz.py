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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from benchmarks import facts
from benchmarks.table import render

Outcome = Literal["works", "refused", "fault"]
Values = Mapping[str, Sequence[str | None]]
"""Option -> values that it may have; None for a flag."""

IMAGES = 40
CHANCE = 0.15
"""Of each option to be given."""
SMALL = (
    *("data.resolution=16", "unet.channels=8,16", "unet.norm_groups=4", "unet.attention_sizes=[8]"),
    *(
        "encoder.widths=32,32",
        "encoder.attention_size=8",
        "chunks.count=4",
        "chunks.partition=uniform",
        "chunks.latent_dim=16",
    ),
    *("base.images=16", "base.batch_size=8", "base.warmup_images=8", "features.images=16"),
    *("features.batch_size=8", "features.warmup_images=8", "sample_every=0", "compile=false"),
)
LEFT_OUT = frozenset({"--compile", "--no-compile", "--help", "-h"})

_FLAG = (None,)
_PRECISION = ("auto", "fp32", "bf16")
_MODELS = ("run", "run/model")
_SEEDS = ("0", "1", "12345")

TRAIN: Values = {
    "--data": ("photos", "faces:20", "faces:20:3", "photos.tar", "{photos,more}"),
    "--resolution": ("8", "16", "24", "32"),
    "--crop": ("center", "celeba"),
    "--channels": ("1", "3"),
    "--value-range": ("0,255",),
    "--out": ("run", "other"),
    "--preset": ("faces32", "faces64", "celeba64", "bedroom128", "ffhq128"),
    "--base": ("run/base", "run/model/unet"),
    "--chunks": ("1", "2", "4", "16"),
    "--latent-dim": ("4", "16", "17"),
    "--partition": ("uniform", "staged", "quadratic", "auto"),
    "--stage-ends": ("500,1000", "50,100,300,500,1000"),
    "--stage-dims": ("8,8", "1,2,10,2,1"),
    "--modular": _FLAG,
    "--visible": ("prefix", "all"),
    "--gradient": ("cumulative", "detached", "dual"),
    "--weighting": ("pdae", "uniform", "gap"),
    "--bottleneck": ("0", "0.032", "5"),
    "--ssl": ("none", "simclr", "simsiam"),
    "--ssl-weight": ("0", "0.01"),
    "--ssl-start-step": ("0", "1"),
    "--ssl-only": _FLAG,
    "--base-images": ("1", "8", "20"),
    "--images": ("1", "8", "20"),
    "--batch-size": ("1", "3", "8", "64", "auto"),
    "--lr": ("1e-3", "1e-5"),
    "--precision": _PRECISION,
    "--device": ("cpu",),
    "--workers": ("0", "1", "2"),
    "--seed": _SEEDS,
    "--config": ("run/config.json", "small.toml"),
    "--set": ("features.ema_decay=0.999", "sample_every=1", "log_every=1", "checkpoint_every=1"),
    "--minutes": ("0.1",),
    "--dry-run": _FLAG,
    "--json": _FLAG,
}
ENCODE: Values = {
    "--out": ("new.npy", "new.npz", "new.safetensors", "new.parquet", "shards"),
    "--shard-size": ("1", "7", "100"),
    "--value-range": ("0,255",),
    "--overwrite": _FLAG,
    "--format": ("npy", "parquet"),
    "--model": _MODELS,
    "--crop": ("center", "celeba"),
    "--batch-size": ("1", "5", "64"),
    "--device": ("cpu",),
    "--precision": _PRECISION,
    "--workers": ("0", "1", "2"),
    "--no-resume": _FLAG,
    "--json": _FLAG,
    "--features": ("base", "base:50", "base:100:mid", "encoder"),
}
PROBE: Values = {
    "--overwrite": _FLAG,
    "--labels": ("labels.csv", "labels.json", "persons.txt"),
    "--groups": ("persons.txt",),
    "--split": ("parts.txt",),
    "--mask-dims": ("1", "4", "16"),
    "--mask-steps": ("10", "20"),
    "--metrics": _FLAG,
    "--atlas": _FLAG,
    "--out": ("probe", "probed/deep"),
    "--device": ("cpu",),
    "--seed": _SEEDS,
    "--json": _FLAG,
}
_SAMPLING: Values = {
    "--model": _MODELS,
    "--solver": ("dpm", "ddim"),
    "--steps": ("1", "2", "5"),
    "--invert-steps": ("1", "3"),
    "--decode-steps": ("1", "3"),
    "--precision": _PRECISION,
    "--official": _FLAG,
    "--difference": _FLAG,
    "--separate": ("singles",),
    "--no-metadata": _FLAG,
    "--overwrite": _FLAG,
    "--value-range": ("0,255",),
    "--batch-size": ("1", "2", "64"),
    "--seed": _SEEDS,
    "--device": ("cpu",),
    "--json": _FLAG,
}
_STRIP: Values = {"--out": ("edit.png", "deep/edit.png")}
_CHUNKS: Values = {
    "--chunks": ("0", "0-1", "1,3"),
    "--grid": _FLAG,
    "--noise": ("keep", "random", "mean"),
    "--animate": ("move.webp", "move.gif"),
}
_ALPHAS: Values = {"--alphas": ("0:1:2", "0.5,1", "1", "-1:2:3")}
_BETWEEN: Values = {"--noise": ("keep", "random", "mean", "slerp", "swap")}
PAIR: Values = {**_CHUNKS, **_BETWEEN, **_ALPHAS, **_STRIP, **_SAMPLING}
ATTRIBUTE: Values = {
    "--attribute": ("hat", "age", "mood=sad"),
    "--amount": ("-0.5:0.5:2", "1"),
    "--also": ("hat=0.2", "age=-0.5"),
    "--probe": ("probe",),
    "--dims": ("2",),
    "--along": ("pattern", "weight"),
    **_CHUNKS,
    **_STRIP,
    **_SAMPLING,
}
RECONSTRUCT: Values = {"--noise": ("keep", "random", "mean", "keep,random"), **_STRIP, **_SAMPLING}
TABLE: Values = {
    **_CHUNKS,
    **_BETWEEN,
    **_ALPHAS,
    **_SAMPLING,
    "--animate": ("webp", "gif"),
    "--out": ("edits", "deep/edits"),
    "--dry-run": _FLAG,
}
SHORT = "edit images"
"""The hidden command that `diti edit` without a sub-command goes to: it knows the options of all of them."""
OPTIONS: Mapping[str, Values] = {
    "train": TRAIN,
    "encode": ENCODE,
    "probe": PROBE,
    "edit pair": PAIR,
    "edit attribute": ATTRIBUTE,
    "edit reconstruct": RECONSTRUCT,
    "edit table": TABLE,
    SHORT: {**TABLE, **RECONSTRUCT, **ATTRIBUTE, **PAIR, "--reconstruct": _FLAG},
}
DRAWN = (
    ("train", "encode", "probe") * 3 + ("edit pair", "edit attribute", "edit reconstruct", "edit table") + (SHORT,) * 4
)
SHORT_MIXED = 0.15
"""Chance of the short spelling to have the options of all sub-commands; else it has those of one that it means."""
WRONG: Mapping[str, Sequence[str]] = {
    "--data": ("nowhere", "photos/0003.png", "feats.npy"),
    "--resolution": ("0", "17", "x"),
    "--base": ("run", "nowhere", "photos"),
    "--chunks": ("1000", "3-1", "7", "all"),
    "--latent-dim": ("1", "-3"),
    "--stage-ends": ("10,5", "x"),
    "--stage-dims": ("x", "0,0"),
    "--bottleneck": ("nan", "-1"),
    "--ssl-weight": ("-1", "inf"),
    "--ssl-start-step": ("50",),
    "--lr": ("0", "nan", "-1"),
    "--config": ("labels.csv", "nowhere.toml", "photos"),
    "--set": ("nothing=1", "seed=x", "unet.channels=0", "encoder.widths=16,16", "data=1", "novalue"),
    "--out": ("feats.npy/x", "photos/0000.png", "new.txt", "edit.jpg", ""),
    "--model": ("nowhere", "photos", "feats.npy"),
    "--features": ("base:5000", "middle"),
    "--labels": ("nowhere.csv", "photos/0000.png", "photos", "pairs.csv", "folder"),
    "--groups": ("nowhere.txt", "labels.csv"),
    "--split": ("persons.txt", "labels.csv"),
    "--mask-dims": ("17", "0"),
    "--alphas": ("x", "0:1:0", "1:2"),
    "--noise": ("fog", ""),
    "--attribute": ("height", "mood"),
    "--amount": ("x", "nan"),
    "--probe": ("nowhere", "photos"),
    "--dims": ("99",),
    "--along": ("across",),
    "--solver": ("euler",),
    "--steps": ("0", "1001"),
    "--separate": ("feats.npy",),
    "--animate": ("move.mp4", "mp4"),
    "--device": ("cuda", "tpu", "cuda:9"),
    "--workers": ("-1",),
    "--seed": ("-1", "99999999999999999999999"),
}
"""Values that no command takes, or not in every place."""
WRONG_CHANCE = 0.04
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Status of a command that was told to stop: no word on its arguments."""
CHANCES: Mapping[str, float] = {
    **{"--labels": 0.9, "--model": 0.95, "--dry-run": 0.1, "--official": 0.04, "--precision": 0.3},
    **{
        "--attribute": 0.95,
        "--grid": 0.05,
        "--noise": 0.1,
        "--shard-size": 0.1,
        "--format": 0.1,
        "--mask-steps": 0.1,
        "--stage-ends": 0.05,
    },
    **{"--stage-dims": 0.05, "--ssl-only": 0.05, "--preset": 0.05},
}
"""Of an option to be given, where it is not `CHANCE`: most of these go with others only."""
_SOURCES = (("photos",), ("faces:9:1",), ("photos.tar",), ("@list.txt",), ("photos/0001.png", "more"))
_PAIRS = (("faces:3", "faces:8"), ("photos/0001.png", "faces:2:5"), ("photos/0001.png", "photos/0007.png"))
_IMAGES = (("photos/0002.png",), ("faces:3",), *_PAIRS)
ARGUMENTS: Mapping[str, Sequence[tuple[str, ...]]] = {
    "train": ((),),
    "encode": (*_SOURCES, *_SOURCES, ("nowhere",), ("feats.npy",)),
    "probe": (*(("feats.npy",), ("feats",)) * 6, ("nowhere.npy",), ("photos",)),
    "edit pair": (*_PAIRS * 4, ("photos/0002.png",), ("photos", "faces:1")),
    "edit attribute": (*_IMAGES * 4, ("nowhere.png",)),
    "edit reconstruct": (*_IMAGES * 4, ("photos/0002.png", "feats.npy")),
    "edit table": (*(("pairs.csv",),) * 5, ("labels.csv",)),
}
"""What stands before the options."""


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
