"""`diti faces`: write the built-in cartoon faces and their ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.options import JsonOption
from diticli.errors import ConfigError


def faces(
    folder: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OUT]",
            help="Folder for the pictures and labels.csv; made when missing.",
            show_default=False,
        ),
    ] = None,
    option: Annotated[
        Path | None, typer.Option("--out", "-o", help="The same, as in other commands.", show_default=False)
    ] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many faces.")] = 1000,
    size: Annotated[int, typer.Option(help="Side of the pictures in pixels, 16 to 512.")] = 64,
    seed: Annotated[int, typer.Option(help="Which faces: the same seed draws the same faces.")] = 0,
    start: Annotated[int, typer.Option(help="Index of the first face, e.g. to draw a held-out set.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also write into a folder that holds other things.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Draw cartoon faces with 13 known factors, and write them with their labels.csv.

    Writes OUT/000000.png, OUT/000001.png, ... and OUT/labels.csv. The other commands draw the same faces
    themselves when given the word faces; write them out to look at them, or to probe against labels.csv.

    Example: diti faces shapes -n 1000 --size 64 --seed 0
    """
    named = [*(folder or ()), *([option] if option else [])]
    if len(named) > 1 and str(named[1]).isdecimal():
        raise ConfigError(f"{named[1]} is no folder.", remedy=f"Write diti faces {named[0]} -n {named[1]}.")
    if len(named) != 1:
        text = f"{len(named)} folders are named." if named else "No folder is named for the faces."
        raise ConfigError(text, remedy="Write diti faces OUT, or diti faces -o OUT.")
    (out,) = named
    from diticli.commands.console import emit_json, reporter, say
    from diticli.data.faces import write_faces

    labels = write_faces(out, count, size, seed, start, overwrite, reporter())
    if as_json:
        emit_json({"out": str(out), "labels": str(labels), "faces": count, "size": size, "seed": seed, "start": start})
        return
    say(f"Wrote {count:,} faces of {size}x{size} pixels to {out}, their factors to {labels}.")
