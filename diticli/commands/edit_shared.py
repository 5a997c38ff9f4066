"""What the kinds of `diti edit` share: settings, inputs, and writing what came out."""

from __future__ import annotations

import math
import shlex
import sys
from typing import TYPE_CHECKING, Any

from diticli._version import __version__
from diticli.commands.edit_options import DDIM_STEPS
from diticli.commands.edit_request import Request

if TYPE_CHECKING:
    from PIL import Image

    from diticli.chunks import ChunkLayout
    from diticli.editing.contact_sheet import Sheet
    from diticli.editing.settings import EditSettings
    from diticli.models.model import DiTiModel


def settings_of(request: Request) -> EditSettings:
    """How to sample, from the options."""
    from diticli.editing.settings import EditSettings

    steps = DDIM_STEPS if request.solver == "ddim" and not request.official else None
    given = {
        "noise": None if request.kind == "reconstruct" else request.noise,
        "solver": request.solver,
        "invert_steps": request.invert_steps or steps,
        "decode_steps": request.decode_steps or steps,
        "precision": request.precision,
        "batch_size": request.batch_size,
        "compile": request.compile,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if request.kind == "attribute" and request.official:
        chosen.setdefault("noise", "keep")
    return (EditSettings.like_official if request.official else EditSettings)(seed=request.seed, **chosen)


def load(request: Request) -> DiTiModel:
    """The model, said on stderr."""
    from diticli.commands.console import say_model
    from diticli.models.locate import load_model

    model = load_model(request.model, request.device)
    say_model(model)
    return model


def tell_steps(settings: EditSettings, timesteps: int) -> None:
    """Say how many steps will run, where they are not those asked for."""
    from diticli.commands.console import say

    if settings.steps_run(timesteps) != (settings.invert_steps, settings.decode_steps):
        say(
            f"Steps: {settings.describe_steps(timesteps)}; {settings.solver} goes in equal strides over "
            f"{timesteps:,} timesteps, and runs as many steps as asked for where they divide it."
        )


def chunk_sets(request: Request, layout: ChunkLayout) -> list[tuple[int, ...]]:
    """The sets that were asked for; none for the default."""
    from diticli.editing.stages import stages

    if request.grid:
        return list(dict.fromkeys([*stages(layout), tuple(range(layout.chunks))]))
    return [layout.parse(spec) for spec in request.chunks]


def read_images(request: Request, pipeline: DiTiModel) -> list[Image.Image]:
    """All images, as the model sees them."""
    from diticli.editing.inputs import read_source

    return [read_source(s, pipeline.resolution, pipeline.crop, seed=request.seed) for s in request.sources]


def names_of(request: Request) -> list[str]:
    """What to call them."""
    from diticli.editing.inputs import source_name

    return [source_name(source) for source in request.sources]


def finish(
    request: Request,
    sheet: Sheet,
    settings: EditSettings,
    facts: dict[str, Any],
    timesteps: int,
    quality: tuple[float, ...],
    *,
    strip: Sheet | None = None,
) -> None:
    """Write all pictures, and say so.

    Args:
        request: says where.
        sheet: what to show.
        settings: how it was made.
        facts: of this kind of edit, for --json.
        timesteps: T of the model.
        quality: PSNR of the reconstructions.
        strip: for the strip, when it is laid out in another way.
    """
    from diticli.commands.console import emit_json, say
    from diticli.editing.contact_sheet import edit_strip, write_animation, write_separate
    from diticli.editing.results import decibels
    from diticli.pictures.grids import save_png

    metadata = provenance()
    out = request.target
    save_png(edit_strip(strip or sheet, difference=request.difference), out, {**sheet.metadata, **metadata})
    singles = write_separate(sheet, request.separate, metadata) if request.separate else []
    if request.animate:
        write_animation(sheet, request.animate, metadata)
    if request.as_json:
        invert, decode = settings.steps_run(timesteps)
        written = {
            "out": str(out),
            "separate": [str(path) for path in singles],
            "animation": str(request.animate) if request.animate else None,
            "solver": settings.solver,
            "precision": settings.precision,
            "compile": settings.compile,
            "invert_steps": settings.invert_steps,
            "decode_steps": settings.decode_steps,
            "invert_steps_run": invert,
            "decode_steps_run": decode,
            "official": settings.official,
        }
        emit_json(written | facts)
        return
    known = f" (reconstruction {', '.join(decibels(value) for value in quality[:4])})" if quality else ""
    say(f"Wrote {out}{known}.")
    if request.animate:
        say(f"Wrote {request.animate}.")
    if singles:
        say(f"Wrote {len(singles)} single images to {request.separate}.")


def provenance() -> dict[str, str]:
    """The exact command line, and by which version."""
    return {"diti:version": __version__, "diti:command": shlex.join(["diti", *sys.argv[1:]])}


def number(value: float) -> float | None:
    """A PSNR for JSON, which has no infinity."""
    return round(value, 3) if math.isfinite(value) else None
