"""DiTi, `--modular` and PDAE on photographs: one base, one budget, and people whom no training saw.

    python -m benchmarks.experiments.real_data --celeba DIR --lfw DIR --cmu DIR --out benchmarks/results/NAME.json

The people of CelebA are split 70 / 15 / 15. The base and all encoders are trained on the first two parts, then probed,
as `diti compare` does beside raw pixels, PCA and an untrained encoder: 40 attributes of CelebA (average precision),
73 scores of LFW (Pearson r and MSE, people apart), and four factors of CMU's faces, which all people share (accuracy,
DCI, MIG). Finished runs and features are kept. The pages with pictures lie in FOLDER/celeba, lfw and cmu; the JSON has
scores only.

CelebA's folder has images/, list_attr_celeba.txt and identity_CelebA.txt; LFW's images/ (NAME_0001.jpg) and
attributes.csv; CMU's images/ and labels.csv.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments.baselines import markdown
from benchmarks.facts import collect, write
from diticli.comparison.entry_specs import BASELINES, parse_entries
from diticli.comparison.report import write_comparison
from diticli.comparison.run import compare
from diticli.comparison.settings import CompareSettings
from diticli.comparison.tables import difference_table, metric_table, score_table
from diticli.config import RunConfig
from diticli.config_groups import MODULAR
from diticli.data.labels import read_groups, read_labels
from diticli.data.splits import split_rows
from diticli.errors import DiTiError
from diticli.settings import build_config
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

MODELS: dict[str, dict[str, Any]] = {
    "diti": {},
    "modular": MODULAR,
    "pdae": {"chunks.count": 1, "chunks.partition": "uniform"},
}
"""What differs from the preset."""
PARTS = ("train", "val", "test")
KEPT = ("name", "about", "dims", "chunks", "means", "differences")
"""Of each entry in `compare.json`, beside what `kept` adds."""


@dataclass(frozen=True)
class Photographs:
    """A data set to probe, and which people are in which part of it."""

    name: str
    images: Path
    labels: Path
    groups: Path | None = None
    split: Path | None = None
    metrics: bool = False


def celeba(folder: Path, out: Path) -> tuple[Photographs, Path]:
    """CelebA with its people split, and the list of the images that may be trained on; both are written to `out`."""
    people = read_groups(folder / "identity_CelebA.txt")
    names = sorted(people)
    split = split_rows(len(names), groups=[people[name] for name in names], seed=0)
    parts = {names[row]: part for part in PARTS for row in getattr(split, part)}
    _write_rows(out / "celeba-parts.csv", ["filename", "part"], sorted(parts.items()))
    seen = out / "seen.txt"
    seen.write_text("".join(f"{(folder / 'images' / n).absolute()}\n" for n, part in parts.items() if part != "test"))
    found = Photographs(
        "celeba",
        folder / "images",
        folder / "list_attr_celeba.txt",
        folder / "identity_CelebA.txt",
        out / "celeba-parts.csv",
    )
    return found, seen


def lfw(folder: Path, out: Path) -> Photographs:
    """LFW, whose file names tell the person; the list of people is written to `out`."""
    names = sorted(path.name for path in (folder / "images").iterdir())
    _write_rows(out / "lfw-people.csv", ["filename", "person"], [(name, name.rpartition("_")[0]) for name in names])
    return Photographs("lfw", folder / "images", folder / "attributes.csv", out / "lfw-people.csv")


def cmu(folder: Path) -> Photographs:
    """CMU's faces, split at random: the person is one of their factors."""
    return Photographs("cmu", folder / "images", folder / "labels.csv", metrics=True)


def settings(model: str, seen: Path, base: Path | None, options: argparse.Namespace) -> RunConfig:
    """Settings of one training; without `base`, of the run that makes it."""
    chosen = {"data.source": f"@{seen.absolute()}", "data.crop": "celeba", "sample_every": 0, "seed": options.seed}
    chosen |= {"device": options.device} | MODELS[model]
    chosen |= {"features.images": options.images} if options.images else {}
    chosen |= {"base_model": str(base.absolute())} if base else {}
    return build_config(options.preset, options=chosen, assignments=options.set)


def train_missing(seen: Path, options: argparse.Namespace) -> list[str]:
    """NAME=RUN of every model, the finished ones as they are. The first one makes the base."""
    base: Path | None = None
    named = []
    for model in options.models:
        run = RunDirectory(options.folder / model)
        if not run.finished:
            print(f"training {run.root}", flush=True)
            train(settings(model, seen, base, options), run.root)
        base = base or run.root / "base"
        named.append(f"{model}={run.root}")
    return named


def judge(photographs: Photographs, runs: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Scores of all models and baselines on one data set; prints its tables."""
    chosen = CompareSettings(
        data=(str(photographs.images),),
        labels=str(photographs.labels),
        groups=photographs.groups,
        split=photographs.split,
        metrics=photographs.metrics,
        seed=options.seed,
    )
    entries = parse_entries(runs, BASELINES, seed=options.seed)
    out = options.folder / photographs.name
    result = compare(entries, chosen, out, device=None if options.device == "auto" else options.device)
    if result is None:
        return {}
    written = write_comparison(result, out, ["python", "-m", "benchmarks.experiments.real_data"])
    print(f"\n{photographs.name}: {result.protocol.describe()}")
    for table in (score_table(result), difference_table(result), *([metric_table(result)] if chosen.metrics else [])):
        print(markdown(table), end="\n\n")
    return {"protocol": written["protocol"], "entries": [kept(found) for found in written["entries"]]}


def kept(found: dict[str, Any]) -> dict[str, Any]:
    """An entry of `compare.json` without the intervals of single attributes and the scores of single factors."""
    attributes = {
        name: {metric: score["value"] for metric, score in metrics.items()}
        for name, metrics in found["attributes"].items()
    }
    metrics = {k: v for k, v in (found["probe"].get("disentanglement") or {}).items() if k != "factors"}
    return {key: found[key] for key in KEPT} | {"attributes": attributes, "disentanglement": metrics}


def main() -> None:
    """Train what is missing, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--celeba", type=Path, required=True)
    parser.add_argument("--lfw", type=Path, default=None)
    parser.add_argument("--cmu", type=Path, default=None)
    parser.add_argument("--folder", type=Path, default=Path("runs/real"))
    parser.add_argument("--preset", default="faces32", help="of all trainings")
    parser.add_argument("--images", type=int, default=0, help="of each stage 2; 0: the preset's")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--set", action="append", default=[], help="any setting, for all trainings")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--train-only", action="store_true", help="leave the comparison to a later call")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        faces, seen = celeba(options.celeba, options.folder)
        sets = [faces]
        sets += [lfw(options.lfw, options.folder)] if options.lfw else []
        sets += [cmu(options.cmu)] if options.cmu else []
        for found in sets:
            read_labels(found.labels)  # a wrong folder shows here, not after the training
        runs = train_missing(seen, options)
        if options.train_only:
            return
        results = {found.name: judge(found, runs, options) for found in sets}
    except (DiTiError, OSError) as error:
        parser.exit(1, f"{error}\n")
    if options.out is not None:
        facts = collect(torch.device("cpu" if options.device == "auto" else options.device))
        facts["command"] = " ".join(
            ["python -m benchmarks.experiments.real_data", *(f"--{name} DIR" for name in results), *_told(options)]
        )
        write(options.out, {**facts, "what": "models of one base and one budget on photographs", "results": results})


def _told(options: argparse.Namespace) -> list[str]:
    """The options that matter to the figures."""
    told = ["--preset", options.preset, "--images", str(options.images), "--models", *options.models]
    return [*told, *(part for value in options.set for part in ("--set", value)), "--seed", str(options.seed)]


def _write_rows(path: Path, header: list[str], rows: list[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
