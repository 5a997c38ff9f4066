"""How long `diti edit` of one pair starts, and how long it then edits.

    python -m benchmarks.startup --model runs/demo --out benchmarks/results/startup.json

Every round starts two fresh processes in a random order: one reads the model as the command does, without diffusers,
the other as a diffusers pipeline. Without --model they read a faces32 model with random weights. Wall seconds depend
on what else runs on the machine, processor seconds (of all threads) less.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import run_python
from benchmarks.facts import collect, write
from benchmarks.table import ratio_text, render
from benchmarks.timing import median_interval, quantile

WAYS = ("plain", "diffusers")
CLOCKS = ("wall", "processor")
EDITING = "editing"
Phases = dict[str, list[float]]


def random_model(folder: Path) -> str:
    """A faces32 model with random weights, saved."""
    from diffusers import DDIMScheduler

    from diticli.models.build import build_encoder, build_unet
    from diticli.models.pipeline import DiTiPipeline
    from diticli.models.shift_decoder import ShiftDecoder
    from diticli.settings import build_config

    config = build_config("faces32")
    unet = build_unet(config.unet, config.data.resolution)
    layout = config.layout()
    shift = ShiftDecoder.for_unet(unet, layout.latent_dim)
    DiTiPipeline(unet, build_encoder(config), shift, DDIMScheduler(), layout.to_dict()).save_pretrained(folder)
    return str(folder)


def one_run(way: str, model: str) -> Phases:
    """Wall and processor seconds of the phases of one fresh process."""
    model = str(Path(model).resolve()) if Path(model).exists() else model  # else a word, or an id on the Hub
    arguments = ["-m", "benchmarks.startup_side", way, model, str(time.monotonic())]
    found: Phases = json.loads(run_python(arguments, check=True).stdout)
    return found


def measure(model: str, rounds: int, seed: int = 0) -> dict[str, list[Phases]]:
    """The phases of every way in every round, after one round that fills the disk's cache."""
    order, chance = list(WAYS), random.Random(seed)
    for way in order:
        one_run(way, model)
    runs: dict[str, list[Phases]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        chance.shuffle(order)
        for way in order:
            runs[way].append(one_run(way, model))
    return runs


def summary(runs: dict[str, list[Phases]]) -> dict[str, Any]:
    """Medians of the phases, and ratios per round, by each clock."""
    return {clock: _by_clock(runs, position) for position, clock in enumerate(CLOCKS)}


def _by_clock(runs: dict[str, list[Phases]], position: int) -> dict[str, Any]:
    starts = {way: [_starting(found, position) for found in runs[way]] for way in WAYS}
    edits = {way: [found[EDITING][position] for found in runs[way]] for way in WAYS}
    medians = {
        way: {phase: _median([found[phase][position] for found in runs[way]]) for phase in runs[way][0]}
        | {"starting": _median(starts[way])}
        for way in WAYS
    }
    ratios = {f"starting / editing, {way}": _ratios(starts[way], edits[way]) for way in WAYS}
    ratios["starting, diffusers / plain"] = _ratios(starts["diffusers"], starts["plain"])
    return {"seconds": medians, "ratios": ratios}


def _starting(found: Phases, position: int) -> float:
    return sum(seconds[position] for phase, seconds in found.items() if phase != EDITING)


def _median(values: Sequence[float]) -> float:
    return quantile(values, 0.5)


def _ratios(above: Sequence[float], below: Sequence[float]) -> Any:
    return median_interval([a / b for a, b in zip(above, below, strict=True)])


def table(found: dict[str, Any]) -> str:
    """The phases of both ways by both clocks, then the ratios."""
    columns = [(way, clock) for way in WAYS for clock in CLOCKS]
    phases = list(found["wall"]["seconds"]["diffusers"])
    rows = [[phase, *(found[clock]["seconds"][way].get(phase) for way, clock in columns)] for phase in phases]
    ratios = [
        [name, *(ratio_text(found[clock]["ratios"][name]) for clock in CLOCKS)] for name in found["wall"]["ratios"]
    ]
    seconds = render(["seconds", *(f"{way}, {clock}" for way, clock in columns)], rows)
    return f"{seconds}\n\n{render(['ratio', *CLOCKS], ratios)}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a trained model; default: faces32 with random weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = collect(torch.device("cpu")) | {"command": " ".join(["python -m benchmarks.startup", *sys.argv[1:]])}
        runs = measure(options.model or random_model(Path(folder)), options.rounds)
    found = summary(runs)
    print(table(found))
    if options.out is not None:
        for by_clock in found.values():
            by_clock["ratios"] = {name: ratio.to_dict() for name, ratio in by_clock["ratios"].items()}
        write(options.out, facts | found | {"runs": runs})


if __name__ == "__main__":
    main()
