"""`diti edit`: exchange chunks between two images."""

from __future__ import annotations

import math
import re
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diticli.commands.options import BatchSizeOption, DeviceOption, JsonOption, ModelOption, SeedOption
from diticli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from diticli.analysis.edit import EditResult
    from diticli.chunks import ChunkLayout
    from diticli.models.pipeline import DiTiPipeline

OVERVIEW_ROWS = 4


def edit(
    a: Annotated[str, typer.Argument(metavar="A", help="An image file, or faces:INDEX[:SEED].", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    chunks: Annotated[
        list[str] | None,
        typer.Option(
            help="Chunks to exchange, inclusive and zero-based: 10-20, or 0-3,8. Repeat it for more rows. "
            "Default: the quarters of all chunks, from fine to coarse.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The strip, a PNG.")] = Path("edit.png"),
    model: ModelOption = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="DDIM steps of inversion and decoding. Default: 100.", show_default=False)
    ] = None,
    invert_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of inversion alone.", show_default=False)
    ] = None,
    decode_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of decoding alone.", show_default=False)
    ] = None,
    alphas: Annotated[
        str,
        typer.Option(help="How far to go from own (0) to other (1): start:stop:count, or a list 0,0.5,1."),
    ] = "0:1:5",
    noise: Annotated[
        str | None,
        typer.Option(
            help="Noise that edits start from: keep (own; the default), slerp (towards the other's), swap, random.",
            show_default=False,
        ),
    ] = None,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="Sample as the official code does: 1000 steps of inversion and 100 of decoding unless given, noise "
            "slerp unless given, the shift in the score form, the estimated image clamped in both directions.",
        ),
    ] = False,
    separate: Annotated[
        Path | None, typer.Option(help="Also write single images into this folder.", show_default=False)
    ] = None,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show A with B's chunks, and B with A's.

    Both images are encoded and inverted to noise; then the features of the chosen chunks are mixed with
    the other image's and decoded. Low chunks hold fine detail, high chunks what survives most noise.

    Example: diti edit anna.jpg ben.jpg --chunks 10-20 -o out.png

    Example: diti edit a.png b.png --model diti64 --official --chunks 16-23 --alphas 0:1:5

    Example: diti edit faces:3 faces:8 --chunks 0-3 --chunks 8-15 --alphas 0,0.5,1 --separate singles
    """
    from diticli.analysis.edit import EditSettings, edit_pair
    from diticli.analysis.edit_pictures import edit_strip, write_separate
    from diticli.analysis.mixing import parse_alphas
    from diticli.commands.console import emit_json, reporter, say
    from diticli.models.locate import load_pipeline
    from diticli.pictures.grids import save_png

    strengths = parse_alphas(alphas)
    given = {
        "noise": noise,
        "invert_steps": invert_steps or steps,
        "decode_steps": decode_steps or steps,
        "batch_size": batch_size,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = (EditSettings.like_official if official else EditSettings)(seed=seed, **chosen)
    for source in (a, b):
        _check_source(source)
    _check_output(out, (a, b), separate)
    pipeline = load_pipeline(model, device)
    result = edit_pair(
        pipeline,
        _read(a, pipeline, seed),
        _read(b, pipeline, seed),
        [pipeline.chunks.parse(spec) for spec in chunks] if chunks else _quarters(pipeline.chunks),
        strengths,
        settings=settings,
        names=(_name(a), _name(b)),
        reporter=reporter(),
    )
    save_png(edit_strip(result), out, result.to_metadata())
    singles = write_separate(result, separate) if separate else []
    if as_json:
        emit_json(_summary(result, out, singles))
        return
    say(f"Wrote {out} (reconstruction {', '.join(_decibels(value) for value in result.psnr)}).")
    if singles:
        say(f"Wrote {len(singles)} single images to {separate}.")


def _face(source: str) -> re.Match[str] | None:
    """The parts of faces:INDEX[:SEED]; a file of that name comes first."""
    return None if Path(source).exists() else re.fullmatch(r"faces:(\d{1,18})(?::(\d{1,19}))?", source)


def _check_source(source: str) -> None:
    """Fail before a model is loaded."""
    if _face(source) or Path(source).is_file():
        return
    if source == "faces" or source.startswith("faces:"):
        raise ConfigError(f"Cannot read the face {source!r}.", remedy="Write faces:INDEX or faces:INDEX:SEED.")
    what = "is a folder, not an image" if Path(source).is_dir() else "does not exist"
    raise DataError(f"{source} {what}.", remedy="Give an image file, or a built-in face such as faces:3.")


def _check_output(out: Path, sources: tuple[str, str], separate: Path | None) -> None:
    """Fail before a model is loaded; make the missing folders."""
    if out.is_dir():
        raise DataError(f"-o names a folder: {out}.", remedy="Name a file: -o out.png.")
    if out.suffix.lower() != ".png":
        remedy = f"Write -o {out.with_suffix('.png')}."
        raise ConfigError(f"The strip is a PNG, but -o names {out}.", remedy=remedy)
    if out.exists() and any(Path(source).exists() and out.samefile(source) for source in sources):
        raise ConfigError(f"{out} is one of the images to edit.", remedy="Give -o another name.")
    for folder in (out.parent, separate):
        if folder is not None:
            _check_folder(folder)


def _check_folder(folder: Path) -> None:
    """Minutes of sampling should not end at a full or protected disk: try it now."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DataError(f"Cannot write to {folder}: {error.strerror}.", remedy="Choose another place.") from error


def _read(source: str, pipeline: DiTiPipeline, seed: int) -> Image.Image:
    from PIL import Image

    if face := _face(source):
        from diticli.data.faces import render_face, sample_factors

        factors = sample_factors(int(face[2] or seed), [int(face[1])])
        return Image.fromarray(render_face(factors[0], pipeline.resolution))
    from diticli.data.images import decode_image

    return Image.fromarray(decode_image(Path(source), pipeline.resolution, crop=pipeline.crop))


def _name(source: str) -> str:
    return source if _face(source) else Path(source).name


def _quarters(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """All chunks in (up to) four consecutive sets, so that a first look shows which do what."""
    rows = min(OVERVIEW_ROWS, layout.chunks)
    cuts = [layout.chunks * row // rows for row in range(rows + 1)]
    return [tuple(range(low, high)) for low, high in pairwise(cuts)]


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def _summary(result: EditResult, out: Path, singles: list[Path]) -> dict[str, Any]:
    return {
        "out": str(out),
        "separate": [str(path) for path in singles],
        "images": list(result.names),
        "chunks": [list(chunks) for chunks in result.chunk_sets],
        "alphas": list(result.alphas),
        "noise": result.settings.noise,
        "invert_steps": result.settings.invert_steps,
        "decode_steps": result.settings.decode_steps,
        "official": result.settings.official,
        "psnr_db": [round(value, 3) if math.isfinite(value) else None for value in result.psnr],
        "model_hash": result.model_hash,
    }
