"""What makes chunks modular, and what it costs: settings of stage 2 on one base, the same images and the same judges.

    python -m benchmarks.evidence --base runs/demo --folder runs/evidence --out benchmarks/results/NAME.json

--base is a run of `diti demo --full`. Every arm is a training run of the built-in faces under --folder, of so many
--images; arms that are finished are kept, arms that another process trains are left to it. On faces that no training
saw: a linear probe and disentanglement scores of the features ("knows"), the swap atlas ("does") with its modularity,
and whether chunks act in the order in which noise hides the factors. --out gets all rows; the table is their mean over
--seeds and half their range. The swap atlas of each run is drawn in its folder, atlas.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence_judges import Judges, halves
from benchmarks.evidence_picture import atlas_picture
from benchmarks.evidence_table import COLUMNS, perfect, table, when
from benchmarks.facts import collect, write
from diticli.config import RunConfig
from diticli.errors import ConfigError, DiTiError
from diticli.settings import build_config
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

_ALL = ("chunks.visible=all", "gradient=detached", "modularity.weighting=gap")
ARMS: dict[str, tuple[str, ...]] = {
    "PDAE": ("chunks.count=1", "chunks.partition=uniform"),
    "uniform, cumulative": ("chunks.partition=uniform", "gradient=cumulative"),
    "uniform, detached": ("chunks.partition=uniform", "gradient=detached"),
    "uniform, dual": ("chunks.partition=uniform", "gradient=dual"),
    "staged, cumulative": ("chunks.partition=staged", "gradient=cumulative"),
    "staged, detached": ("chunks.partition=staged", "gradient=detached"),
    "auto, cumulative": ("chunks.partition=auto", "gradient=cumulative"),
    "auto, detached": ("chunks.partition=auto", "gradient=detached"),
    "auto, detached, gap": ("chunks.partition=auto", "gradient=detached", "modularity.weighting=gap"),
    "auto, detached, gap, 0.032": (
        "chunks.partition=auto",
        "gradient=detached",
        "modularity.weighting=gap",
        "modularity.bottleneck=0.032",
    ),
    "uniform, detached, gap, 0.032": (
        "chunks.partition=uniform",
        "gradient=detached",
        "modularity.weighting=gap",
        "modularity.bottleneck=0.032",
    ),
    "uniform, detached, gap, 0.024, all": ("chunks.partition=uniform", *_ALL, "modularity.bottleneck=0.024"),
    "uniform, detached, gap, 0.032, all": ("chunks.partition=uniform", *_ALL, "modularity.bottleneck=0.032"),
    "uniform, detached, gap, 0.064, all": ("chunks.partition=uniform", *_ALL, "modularity.bottleneck=0.064"),
    "uniform, detached, gap, 0.096, all": ("chunks.partition=uniform", *_ALL, "modularity.bottleneck=0.096"),
    "auto, detached, gap, 0.032, all": ("chunks.partition=auto", *_ALL, "modularity.bottleneck=0.032"),
}
"""Partition, gradient mode, loss weight and bottleneck of each arm, and whether all is visible; the second is the
published method."""


def settings(arm: str, seed: int, options: argparse.Namespace) -> RunConfig:
    """Settings of one run."""
    fixed = {
        "data.source": "faces",
        "base_model": str(options.base.absolute()),
        "features.images": options.images,
        "chunks.count": 16,
        "seed": seed,
        "sample_every": 0,
        "device": options.device,
    }
    return build_config("faces32", options=fixed, assignments=(*ARMS[arm], *options.set))


def run_of(arm: str, seed: int, folder: Path) -> RunDirectory:
    """Where an arm's run lies."""
    return RunDirectory(folder / f"{arm.replace(', ', '-')}-{seed}")


def complete(arm: str, seed: int, options: argparse.Namespace, judges: Judges) -> None:
    """Train and judge one arm, unless it is done or another process is at it."""
    run = run_of(arm, seed, options.folder)
    found = run.root / "evidence.json"
    if found.is_file():
        return
    try:
        if not run.finished:
            train(settings(arm, seed, options), run.root)
    except ConfigError as error:
        print(f"{run.root.name}: left out. {error}", flush=True)
        return
    scores = judges.judge(run.root)
    row = {"arm": arm, "seed": seed, "images": options.images, **scores}
    write(found, row)
    atlas_picture(run.root / "atlas.png", row, judges.lost)
    print(run.root.name, {key: scores[key] for key in COLUMNS if key in scores}, flush=True)


def rows(options: argparse.Namespace, lost: dict[str, float]) -> list[dict[str, Any]]:
    """What is there of the arms and seeds that were asked for."""
    places = [
        run_of(arm, seed, options.folder).root / "evidence.json" for arm in options.arms for seed in options.seeds
    ]
    found = [json.loads(place.read_text()) for place in places if place.is_file()]
    return [{**row, **when(row["atlas"], lost)} for row in found]


def short(row: dict[str, Any]) -> dict[str, Any]:
    """A row without intervals and disentanglement of single dims, which each run's evidence.json has."""
    atlas = row["atlas"]
    kept = {key: value for key, value in row.items() if key not in ("atlas", "disentanglement", "told_by_chunk")}
    if "told_by_chunk" in row:
        kept["told_by_chunk"] = {n: " ".join(f"{r2:.2f}" for r2 in found) for n, found in row["told_by_chunk"].items()}
    shares = {name: " ".join(f"{share['value']:.4f}" for share in found) for name, found in atlas["shares"].items()}
    return kept | {"shares_by_chunk": shares, "shares_together": {n: s["value"] for n, s in atlas["together"].items()}}


def main() -> None:
    """Train and judge what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a run directory, for its base")
    parser.add_argument("--folder", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--images", type=int, default=80_000, help="of each stage 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM")
    parser.add_argument("--set", action="append", default=[], help="any setting, for all arms")
    parser.add_argument("--pairs", type=int, default=48, help="of faces whose chunks are exchanged")
    parser.add_argument("--learn", type=int, default=12_000, help="faces that the readers learn from")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.base = options.base / "base" if (options.base / "base").is_dir() else options.base
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.table:
        try:
            judges = Judges.prepare(options.folder, options.base, learn=options.learn, pairs=options.pairs)
            for seed in options.seeds:
                for arm in options.arms:
                    complete(arm, seed, options, judges)
        except DiTiError as error:
            parser.exit(1, f"{error}\n")
    lost = json.loads((options.folder / "lost.json").read_text())
    found = rows(options, halves(lost))
    print(table([*found, perfect(halves(lost), found)] if found else found))
    if options.out is not None:
        facts = collect(torch.device("cpu" if options.device == "auto" else options.device))
        facts["command"] = f"python -m benchmarks.evidence --images {options.images} --pairs {options.pairs}"
        kept = [short(row) for row in found]
        write(options.out, {**facts, "what": "modularity by settings of stage 2", "lost": lost["half"], "rows": kept})


if __name__ == "__main__":
    main()
