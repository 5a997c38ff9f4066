"""The comparison of docs/results.md on built-in faces: `diti demo --full` and its rivals, on one budget and protocol.

    python -m benchmarks.experiments.baselines --demo runs/demo --folder runs --out benchmarks/results/NAME.json

Trains PDAE (K = 1, on the demo's base), SimCLR and SimSiam (the encoder alone) with the demo's stage 2 budget unless
they are there, then does what `diti compare --edits` does: probes of faces that no training saw, and what exchanged
chunks carry over, with 95 % intervals and paired differences to the demo. The page with pictures lies in
FOLDER/comparison.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write
from diticli.comparison.entry_specs import BASELINES, parse_entries
from diticli.comparison.report import write_comparison
from diticli.comparison.run import compare
from diticli.comparison.settings import CompareSettings
from diticli.comparison.tables import Table, difference_table, score_table, swap_table
from diticli.errors import DiTiError
from diticli.pictures.report import Cell
from diticli.settings import build_config
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

RIVALS: dict[str, dict[str, Any]] = {
    "pdae": {"chunks.count": 1, "chunks.partition": "uniform"},
    "simclr": {"ssl.method": "simclr", "ssl.only": True},
    "simsiam": {"ssl.method": "simsiam", "ssl.only": True},
}
"""What differs from the demo's settings."""
KEPT = ("name", "about", "dims", "chunks", "model_hash", "means", "differences", "attributes", "by_attribute", "swaps")
"""Of each entry in `compare.json`."""


def settings(rival: str, options: argparse.Namespace) -> dict[str, Any]:
    """Options of one rival's training, over the preset `faces32`."""
    chosen = {"data.source": "faces", "sample_every": 0, "device": options.device, "seed": options.seed}
    chosen |= RIVALS[rival] | ({"features.images": options.images} if options.images else {})
    return chosen if "ssl.only" in RIVALS[rival] else chosen | {"base_model": str(options.demo.absolute() / "base")}


def train_missing(options: argparse.Namespace) -> list[str]:
    """Runs of all rivals, those that are finished as they are."""
    runs = []
    for rival in RIVALS:
        run = RunDirectory(options.folder / rival)
        if not run.finished:
            print(f"training {run.root}", flush=True)
            train(build_config("faces32", options=settings(rival, options)), run.root)
        runs.append(str(run.root))
    return runs


def markdown(table: Table) -> str:
    """As a README shows it."""
    columns, rows = table
    lines = [columns, ["---"] * len(columns), *[[_text(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: Cell) -> str:
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def main() -> None:
    """Train what is missing, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="the run of `diti demo --full`")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="of the rivals' runs")
    parser.add_argument("--images", type=int, default=0, help="of each training; 0: the demo's budget")
    parser.add_argument("--pairs", type=int, default=64, help="of faces whose chunks are exchanged")
    parser.add_argument("--learn", type=int, default=12_000, help="faces that the reader of exchanges learns from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    try:
        runs = [str(options.demo), *train_missing(options)]
        chosen = CompareSettings(edits=True, pairs=options.pairs, learn=options.learn, seed=options.seed)
        entries = parse_entries(runs, BASELINES, seed=options.seed)
        device = None if options.device == "auto" else options.device
        result = compare(entries, chosen, options.folder / "comparison", device=device)
    except DiTiError as error:
        parser.exit(1, f"{error}\n")
    if result is None:
        return
    own = ["python", "-m", "benchmarks.experiments.baselines", *sys.argv[1:]]
    written = write_comparison(result, options.folder / "comparison", own)
    for table in (score_table(result), difference_table(result), swap_table(result)):
        print(markdown(table), end="\n\n")
    if options.out is not None:
        facts = collect(torch.device(device or "cpu")) | {"command": " ".join(own)}
        kept = [{key: found[key] for key in KEPT} for found in written["entries"]]
        protocol = {key: written[key] for key in ("data", "protocol", "notes", "compared_with")}
        write(options.out, {**facts, "what": "the demo and its rivals, built-in faces", **protocol, "entries": kept})


if __name__ == "__main__":
    main()
