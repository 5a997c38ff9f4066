"""`diti demo`: the whole path on built-in data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.console import emit_json, reporter, say, show_table
from diticli.commands.options import DeviceOption, JsonOption, SeedOption
from diticli.sampling.defaults import DEFAULT_STEPS
from diticli.settings import build_config


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Run directory.")] = Path("runs/demo"),
    preset: Annotated[str, typer.Option(help="Preset to train.")] = "faces32",
    base_images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 1; fewer is quicker and worse.", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 2; fewer is quicker and worse.", show_default=False),
    ] = None,
    held_out: Annotated[int, typer.Option(min=200, help="Held-out faces to encode and probe.")] = 4000,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps each way for edits.")] = DEFAULT_STEPS,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the built-in faces, encode, probe all 13 factors, edit two pairs, and write a report.

    Takes under 20 minutes on two processor cores. Afterwards `diti encode` and `diti edit` find the model by
    themselves. Stopped with Ctrl-C, the same command goes on.

    Example: diti demo
    """
    options = {"base.images": base_images, "features.images": images, "seed": seed, "device": device}
    settings = build_config(preset, options={k: v for k, v in options.items() if v is not None})
    from diticli.demo import run_demo

    result = run_demo(settings, out, held_out=held_out, steps=steps, reporter=reporter())
    if as_json:
        emit_json(result.to_dict())
        return
    kinds = list(result.means)
    rows = [
        [label, *(f"{result.means[kind][key]:.3f}" for kind in kinds)]
        for key, label in (
            ("r2", "mean R2, 10 numeric factors"),
            ("average_precision", "mean AP, 3 binary factors"),
        )
    ]
    show_table("Linear probes on held-out faces", ["score", *kinds], rows)
    say(f"Reconstruction of held-out faces: {result.psnr:.1f} dB")
    say(f"Report: {result.report}")
