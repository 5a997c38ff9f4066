"""`diti encode`: images to a feature file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.options import BatchSizeOption, CropOption, DeviceOption, JsonOption, ModelOption, WorkersOption
from diticli.commands.train_options import Precision

DEFAULT_BATCH = 128


def encode(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SRC...",
            help="Folders and images, .tar files, an LMDB, or faces[:COUNT[:SEED]].",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The feature file: .npy, .npz, .safetensors or .parquet."),
    ] = Path("feats.npy"),
    model: ModelOption = None,
    crop: CropOption = None,
    batch_size: BatchSizeOption = DEFAULT_BATCH,
    device: DeviceOption = None,
    precision: Annotated[
        Precision,
        typer.Option(help="Arithmetic; auto takes bf16 where the hardware computes in it. The file is float32."),
    ] = Precision.auto,
    workers: WorkersOption = None,
    no_resume: Annotated[
        bool, typer.Option("--no-resume", help="Start again even where an interrupted run left its rows.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn images into features, one row per image.

    Writes OUT, float32 [N, d], and a .json of the same name that tells the file of each row and the
    dimensions of each chunk. Images that cannot be read get no row and are listed there. After an
    interruption the same command goes on where it stopped.

    Example: diti encode photos/ -o feats.npy

    Example: diti encode 'shards/{000..012}.tar' -o feats.npy

    Example: diti encode faces:5000:1 -o faces.parquet --model runs/demo
    """
    from diticli.analysis.encode import encode_with
    from diticli.commands.console import emit_json, reporter, say
    from diticli.data.feature_formats import check_suffix
    from diticli.data.images import open_images
    from diticli.models.locate import load_pipeline

    check_suffix(out)
    pipeline = load_pipeline(model, device)
    source = open_images(sources, pipeline.resolution, crop=crop.value if crop else pipeline.crop)
    result = encode_with(
        pipeline,
        source,
        out,
        precision=precision.value,
        batch_size=batch_size or DEFAULT_BATCH,
        workers=workers,
        resume=not no_resume,
        reporter=reporter(),
    )
    if as_json:
        emit_json({"out": str(out), "model": pipeline.model_id} | result.to_dict())
        return
    speed = f"{result.seconds:.1f} s, {result.images_per_second:,.0f} images/s"
    say(f"Wrote {result.rows:,} rows of {result.dim} features to {out} ({speed}).")
