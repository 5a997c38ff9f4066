"""`diti compare`: models and baselines under one protocol."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diticli.commands.failure import keeps
from diticli.commands.options import (
    DEFAULT_BATCH,
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    SeedOption,
    ValueRangeOption,
    WorkersOption,
)
from diticli.commands.outputs import OverwriteOption, check_folder, this_command
from diticli.comparison.settings import DEFAULT_DATA
from diticli.config import Precision
from diticli.config_groups import parse_value_range

if TYPE_CHECKING:
    from diticli.comparison.entry_specs import EntrySpec
    from diticli.comparison.run import Comparison
    from diticli.comparison.settings import CompareSettings

USUAL = "pixels,pca,untrained"
PIXEL_SIDE, BENCHMARK_SIDE = 32, 16
SPARE = ["MSE", "p", "dims", "over", "I", "C"]
"""Columns that narrow terminals do without."""


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN]...",
            help="Run directories of any kind, pipeline folders, Hub ids, shipped, feature files (.npy, .npz, "
            ".safetensors, .parquet) or folders of shards. NAME=RUN gives one a name; with --benchmark, runs of one "
            "NAME are runs of one method. The others are compared with the first. Default: as --model elsewhere.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Images, as for `diti encode`; repeat for several. Default: built-in faces that training did not see, "
            f"{DEFAULT_DATA}; with --labels alone, the images that the feature files name.",
            show_default=False,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Their labels, as for `diti probe`; built-in faces bring their own.", show_default=False),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="File name and group (a person, a scene) per line; no group crosses splits, and whole groups are "
            "resampled.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(help="File name and part per line, as for `diti probe`. Default: random.", show_default=False),
    ] = None,
    value_range: ValueRangeOption = None,
    baselines: Annotated[
        str | None,
        typer.Option(
            help="Built-in entries: some of pixels, pca, untrained and base[:T[:BLOCK]], with commas between, or "
            "none. base: features of the frozen base of the first RUN that has one, as `diti encode --features`; "
            "without T validation images choose it, and the block. Default: pixels, pca, untrained; with --benchmark, "
            "base as well.",
            show_default=False,
        ),
    ] = None,
    untrained: Annotated[int, typer.Option(min=1, help="Untrained encoders, of as many seeds.")] = 1,
    pixel_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=128,
            help="Larger images are reduced to so many pixels a side for raw pixels. Default: 32; with --benchmark 16, "
            "since it measures at most 1,024 dims.",
            show_default=False,
        ),
    ] = None,
    benchmark: Annotated[
        bool,
        typer.Option(
            "--benchmark",
            help="Also FactorVAE, DCI, MIG, SAP, TAD and InfoMEC over several seeds, with intervals, on dims and on "
            "the first principal component of each chunk.",
        ),
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Seeds of --benchmark: splits and draws.")] = 3,
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics/--no-metrics", help="Also measure disentanglement, probes of each chunk, and how features vary."
        ),
    ] = True,
    edits: Annotated[
        bool, typer.Option("--edits", help="Also measure the transfer rates of exchanged chunks; takes minutes.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=4, help="Pairs of images that --edits exchanges.")] = 64,
    learn: Annotated[int, typer.Option(min=200, help="Images that the classifier of --edits learns from.")] = 12_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of that classifier over them.")] = 4,
    shown: Annotated[int, typer.Option(min=0, help="Pairs of test images whose edits the report shows.")] = 2,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of inversion and decoding. Default: 20.", show_default=False)
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Judge --edits even by bad reconstructions, or unreadable attributes."),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html, compare.json, commands.sh and all features.")
    ] = Path("comparison"),
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    precision: Annotated[
        Precision, typer.Option(help="Arithmetic of encoding; auto takes bf16 where the hardware computes in it.")
    ] = "auto",
    batch_size: BatchSizeOption = DEFAULT_BATCH,
    workers: WorkersOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be compared and what is still to be encoded; write nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare models, and baselines that are built in, under one protocol.

    The same images, the same split, the same linear probe and the same seed for all: DiTi, PDAE and
    self-supervised runs, features made by anyone, raw pixels, PCA of them (fitted on training images only, with
    as many dims as the first entry) and an untrained encoder. One table with 95 % intervals, paired
    differences to the first entry, and one page with pictures and the commands that repeat it.

    Features and results are kept in OUT by the hash of weights, images and settings: after an interruption, or
    with one more RUN, only what is missing is made. Several processes share the work (torchrun, accelerate
    launch).

    Example: diti compare runs/demo runs/pdae

    Example: diti compare diti=runs/celeba pdae=runs/b --data celeba/ --labels list_attr_celeba.txt
    --groups identity_CelebA.txt -o comparison

    Example: diti compare --benchmark diti=runs/s0 diti=runs/s1 diti=runs/s2 pdae=runs/p0 pdae=runs/p1

    Example: diti compare ours.npy theirs.npy --labels labels.csv

    Example: torchrun --nproc-per-node 8 --no-python diti compare runs/a runs/b --data @tars.txt --labels labels.csv
    """
    from diticli.commands.console import emit_json, reporter, say
    from diticli.comparison.entry_specs import parse_baselines, parse_entries
    from diticli.comparison.report import COMMANDS, DATA, REPORT, write_comparison
    from diticli.comparison.run import FEATURES, RESULTS
    from diticli.comparison.run import compare as run_comparison
    from diticli.comparison.settings import CompareSettings
    from diticli.pictures.metadata import made_by, provenance
    from diticli.sampling import DEFAULT_STEPS

    if not dry_run:
        check_folder(out, DATA, ("entries", "contenders"), (REPORT, COMMANDS), overwrite=overwrite)
    taken = () if runs else (_default_model(),)
    images = tuple(data or (() if labels else (DEFAULT_DATA,)))
    settings = CompareSettings(
        data=images,
        labels=labels,
        groups=groups,
        split=split,
        value_range=None if value_range is None else parse_value_range(value_range),
        seed=seed,
        precision=precision,
        batch_size=batch_size or DEFAULT_BATCH,
        workers=workers,
        pixel_side=pixel_side or (BENCHMARK_SIDE if benchmark else PIXEL_SIDE),
        metrics=metrics,
        benchmark=seeds if benchmark else 0,
        shown=shown,
        edits=edits,
        pairs=pairs,
        learn=learn,
        epochs=epochs,
        steps=steps or DEFAULT_STEPS,
        force=force,
    )
    if not images:
        say("No images are named (--data), so there are no built-in entries.")
    usual = f"{USUAL},base" if benchmark else USUAL
    chosen = parse_baselines(baselines or usual) if images else ()
    specs = parse_entries(runs or taken, chosen, untrained=untrained, seed=seed, several=benchmark)
    if all(spec.kind != "model" for spec in specs) and "untrained" in chosen:
        say("Only features are named, and no run shows the architecture of an untrained encoder: it is left out.")
        absent = ("untrained",) if baselines else ("untrained", "base")
        specs = tuple(spec for spec in specs if spec.kind not in absent)
    if dry_run:
        _print_plan(specs, settings, out, device, as_json)
        return
    keeps(out / FEATURES, out / RESULTS)
    result = run_comparison(specs, settings, out, device=device, reporter=reporter())
    if result is None:
        return
    command = this_command(*taken)
    models = "; ".join(spec.source for spec in specs if spec.kind == "model")
    with made_by(provenance(models, command)):
        written = write_comparison(result, out, shlex.split(command))
    if as_json:
        emit_json(written)
        return
    _show(result)
    say(f"Wrote {out}: {REPORT}, {DATA} and {COMMANDS}.")


def _default_model() -> str:
    """The model that is compared with the baselines where none is named, said on stderr."""
    from diticli.commands.console import say
    from diticli.models.load import locate

    located = locate(None)
    say(f"Model: {located.describe()}.")
    return located.name


def _print_plan(
    specs: tuple[EntrySpec, ...], settings: CompareSettings, out: Path, device: str | None, as_json: bool
) -> None:
    from diticli.commands.console import emit_json, show_table
    from diticli.comparison.run import plan
    from diticli.distributed import Rank

    if not Rank.from_environment().is_main:
        return  # one of several processes says it
    planned = plan(specs, settings, out, device=device)
    if as_json:
        facts = [
            {"name": p.entry.name, "about": p.entry.describe(), "dims": p.entry.dims, "to_encode": p.images}
            for p in planned
        ]
        emit_json({"out": str(out), "entries": facts})
        return
    rows = [[p.entry.name, p.entry.describe(), str(p.entry.dims), _state(p.images)] for p in planned]
    show_table("Would be compared", ["entry", "what it is", "dims", "features"], rows)


def _state(images: int) -> str:
    return f"{images:,} images to encode" if images else "here"


def _show(result: Comparison) -> None:
    from diticli.commands.console import show_table
    from diticli.comparison.tables import benchmark_table, difference_table, score_table, swap_table

    found = result.benchmark
    over = f"means and half 95 % intervals, {len(found.seeds)} seeds" if found else ""
    units = {"dims": "dims as units", "chunks": "first principal components of chunks as units"}
    benchmarks = [(f"Benchmark, {text}: {over}", benchmark_table(found, kind)) for kind, text in units.items() if found]

    for title, (columns, rows) in (
        ("Linear probes: means over attributes on test images, 95 % intervals", score_table(result)),
        (f"Differences to {result.entries[0].name}, on the same resamples", difference_table(result)),
        *benchmarks,
        (f"Exchanged chunks: transfer rates, {_pairs(result)} pairs", swap_table(result)),
    ):
        if rows:
            show_table(title, columns, [[_text(cell) for cell in row] for row in rows], spare=SPARE)


def _pairs(result: Comparison) -> int:
    return max((found["images"] // 2 for found in result.swaps.values()), default=0)


def _text(cell: Any) -> str:
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
