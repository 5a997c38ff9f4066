"""`diti demo`: edits, a training and a report on built-in data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.completion import presets
from diticli.commands.console import emit_json, reporter, say, show_table
from diticli.commands.failure import keeps
from diticli.commands.options import DeviceOption, JsonOption, SeedOption
from diticli.errors import ConfigError
from diticli.sampling.defaults import DEFAULT_STEPS
from diticli.settings import build_config

PRESET = "faces32"


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory.")] = Path("runs/demo"),
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            help="Time for the whole demo, or with --full for its training. Default: 3.5; with --full what it takes.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Train both stages from nothing, half an hour on two cores; probe raw pixels too."),
    ] = False,
    preset: Annotated[str, typer.Option(help="Preset to train with --full.", autocompletion=presets)] = PRESET,
    base_images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 1, with --full; fewer is quicker and worse.", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 2, with --full; fewer is quicker and worse.", show_default=False),
    ] = None,
    held_out: Annotated[int, typer.Option(min=200, help="Held-out faces to encode and probe.")] = 2000,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps each way for edits.")] = DEFAULT_STEPS,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Edit two pairs of faces with the model that comes with diti, train one for two minutes, and compare them.

    The first pictures are there after seconds; the report, runs/demo/report.html, after 4 minutes on two
    processor cores. It needs no data and no download. Afterwards `diti encode` and `diti edit` take the model that
    was trained here, and --model shipped the other. Stopped with Ctrl-C, the same command goes on.

    Example: diti demo

    Example: diti demo --minutes 10

    Example: diti demo --full
    """
    started = time.perf_counter()
    _check(full, minutes, preset, base_images, images)
    options = {
        "base.images": base_images,
        "features.images": images,
        "minutes": minutes if full else minutes or 3.5,
        "seed": seed,
        "device": device,
    }
    settings = build_config(preset, options={k: v for k, v in options.items() if v is not None})
    from diticli.demo import run_demo
    from diticli.training.rundir import RunDirectory

    keeps(*RunDirectory(out).trained)
    result = run_demo(settings, out, full=full, held_out=held_out, steps=steps, reporter=reporter(), started=started)
    if as_json:
        emit_json(result.to_dict())
        return
    kinds = list(result.means)
    rows = [
        [label, *(f"{result.means[kind][key]:.3f}" for kind in kinds)]
        for key, label in (("r2", "10 numbers (mean R2)"), ("average_precision", "3 yes or no (mean AP)"))
    ]
    show_table("What a linear probe reads from the features of held-out faces; 1 is perfect", ["of", *kinds], rows)
    for name, measured in result.models.items():
        say(f"Reconstruction by the {name}: {measured.psnr:.1f} dB")
    say(f"Report: {result.report}")


def _check(full: bool, minutes: float | None, preset: str, base_images: int | None, images: int | None) -> None:
    given = {"--preset": preset != PRESET, "--base-images": base_images is not None, "--images": images is not None}
    if useless := [name for name, is_given in given.items() if is_given and not full]:
        raise ConfigError(f"{useless[0]} is for --full.", remedy="Add --full, or plan the time: --minutes 10.")
    if minutes is not None and (base_images is not None or images is not None):
        raise ConfigError("--minutes plans the images, and images are given.", remedy="Give one of them.")
