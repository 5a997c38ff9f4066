"""`diti encode`: images to a feature file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from diticli.commands.failure import keeps
from diticli.commands.lazy import import_torch
from diticli.commands.options import (
    DEFAULT_BATCH,
    BatchSizeOption,
    CropOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    ValueRangeOption,
    WorkersOption,
)
from diticli.commands.outputs import OverwriteOption, check_features
from diticli.config import Precision
from diticli.config_groups import parse_value_range
from diticli.errors import ConfigError, FeatureFileError

if TYPE_CHECKING:
    from diticli.distributed import Rank


def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders and images, .tar files, an LMDB, or faces[:COUNT[:SEED]]; @LIST reads names from a file, "
            "one a line, - from stdin.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="The feature file: .npy, .npz, .safetensors or .parquet. A name without suffix is a folder of shards.",
        ),
    ] = Path("feats.npy"),
    shard_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images per shard of a folder, the unit of work. Default: 100,000.", show_default=False
        ),
    ] = None,
    shard_format: Annotated[
        Literal["npy", "parquet"] | None,
        typer.Option("--format", help="Format of a folder's shards. Default: npy.", show_default=False),
    ] = None,
    model: ModelOption = None,
    features: Annotated[
        str,
        typer.Option(
            metavar="encoder|base[:T[:BLOCK]]",
            help="What the rows are: the encoder's features, or, as a baseline without training, averaged activations "
            "of a block of the frozen base on the image noised to timestep T. Default T: 5 % of all; blocks: mid, "
            "down0, ..., up0, ...",
        ),
    ] = "encoder",
    crop: CropOption = None,
    value_range: ValueRangeOption = None,
    batch_size: BatchSizeOption = DEFAULT_BATCH,
    device: DeviceOption = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic; auto takes bf16 where the hardware computes in it. The file is float32."),
    ] = "auto",
    workers: WorkersOption = None,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Start again even where an interrupted run left its rows.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn images into features, one row per image.

    Writes OUT, float32 [N, d], and a .json of the same name with the file of each row and the
    dimensions of each chunk. Images that cannot be read get no row and are listed there. After an
    interruption the same command goes on where it stopped. A feature file that is there already is replaced.

    OUT may be a folder: then every SHARD_SIZE images become a shard with the names of its rows beside it, and
    features.json, the manifest, appears when all are there. diti probe takes the folder. Memory stays that of
    one shard, and several processes share the shards (torchrun, accelerate launch); each may be killed and
    started again, in another number as well.

    Example: diti encode photos/ -o feats.npy

    Example: diti encode 'shards/{000..012}.tar' -o feats.npy

    Example: torchrun --nproc-per-node 8 --no-python diti encode @tars.txt -o feats --shard-size 100000

    Example: diti encode faces:5000:1 -o faces.parquet --model runs/demo

    Example: diti encode photos/ -o base.npy --features base:50
    """
    import_torch()
    from diticli.commands.console import emit_json, reporter, say, say_model
    from diticli.data.folder_images import FolderImages
    from diticli.data.images import open_images
    from diticli.data.sources import how_read
    from diticli.distributed import Rank
    from diticli.editing.quality import SEEN, photo_warning
    from diticli.encoding.encode import DEFAULT_SHARD, encode_with
    from diticli.encoding.inputs import input_warnings
    from diticli.models.base_features import parse_base
    from diticli.models.load import load_model
    from diticli.progress import SilentReporter

    rank = Rank.from_environment()
    sharded = _is_folder(out, asked=shard_size is not None or shard_format is not None)
    _check_rank(rank, sharded, sources)
    base = None if features == "encoder" else parse_base(features)
    if not sharded:
        check_features(out, overwrite=overwrite)
    keeps(out if sharded else out.with_name(f"{out.name}.partial.json"))
    pipeline = load_model(model, rank.device(device))
    say_model(pipeline)
    progress = reporter() if rank.is_main else SilentReporter()
    if value_range is not None:
        pipeline.value_range = parse_value_range(value_range)
    reading = pipeline.reading | ({} if crop is None else {"crop": crop})
    source = open_images(sources, pipeline.resolution, reporter=progress, **reading)
    if seen := how_read(source):
        say(seen)
    warnings = input_warnings(pipeline, source) if base is None and len(source) else []
    if isinstance(source, FolderImages):
        first = [str(source.path(index)) for index in range(min(len(source), SEEN))]
        warnings = [*filter(None, [photo_warning(first, pipeline)]), *warnings]
    for warning in warnings:
        progress.warn(warning)
    result = encode_with(
        pipeline,
        source,
        out,
        precision=precision,
        base=base,
        warnings=warnings,
        shard_size=(shard_size or DEFAULT_SHARD) if sharded else None,
        suffix=f".{shard_format or 'npy'}",
        rank=rank,
        batch_size=batch_size or DEFAULT_BATCH,
        workers=workers,
        resume=not no_resume,
        reporter=progress,
    )
    if as_json:
        said = {"warnings": warnings, "out": str(out), "model": pipeline.model_id, "model_origin": pipeline.origin}
        emit_json(said | {"crop": source.crop, "inputs": seen} | result.to_dict())
        return
    what = (
        f"{result.rows:,} {'row' if result.rows == 1 else 'rows'} of {result.dim} features"
        if result.complete
        else f"{result.own:,} images, this part,"
    )
    where = f"{out}, {result.units:,} shards" if sharded and result.complete else str(out)
    say(f"Wrote {what} to {where} ({result.seconds:.1f} s, {result.images_per_second:,.0f} images/s).")


def _is_folder(out: Path, *, asked: bool) -> bool:
    """Whether OUT is a folder of shards; `asked`: an option says so.

    Raises:
        FeatureFileError: for a file of no known format, or of one where a folder is asked for.
    """
    from diticli.features.formats import READERS, check_suffix

    if out.is_dir() or not out.suffix or (asked and out.suffix.lower() not in READERS):
        return True
    check_suffix(out)
    if asked:
        raise FeatureFileError(f"{out} is one file, not a folder of shards.", remedy="Name a folder, e.g. -o feats.")
    return False


def _check_rank(rank: Rank, sharded: bool, sources: Sequence[str]) -> None:
    if rank.count == 1:
        return
    if not sharded:
        raise ConfigError(
            f"{rank.count} processes cannot write one file.",
            remedy="Name a folder, e.g. -o feats, or start one process.",
        )
    if "-" in sources:
        raise ConfigError(
            f"{rank.count} processes cannot share one stdin.", remedy="Write the names to a file and give @FILE."
        )
