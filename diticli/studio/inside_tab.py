"""The tab that looks inside: features by chunk, nearest pictures, what chunks move."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.data.faces_word import parse_faces
from diticli.editing.inputs import slug
from diticli.editing.results import decibels
from diticli.errors import DataError
from diticli.pictures.metadata import provenance
from diticli.reading import shortened
from diticli.studio.parts import (
    EXAMPLES,
    Changes,
    PageOptions,
    as_argument,
    chooser,
    follow_changes,
    named,
    picture_out,
    safe,
    shown,
    source_of,
    strongest_moves,
)
from diticli.studio.workbench import Picture, Stale, Workbench

_BUTTONS = ["download", "fullscreen"]


def inside_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes, tab: gr.Tab) -> None:
    """All of the tab."""
    image, word = chooser("Picture", EXAMPLES[0][0], prefix="inside-")
    with gr.Row():
        original = picture_out("Original", "inside-original")
        rec = picture_out("Decoded", "inside-rec")
    facts = gr.Markdown("", elem_id="inside-facts")
    bars = gr.Image(
        label="Features by chunk (root mean square)",
        format="png",
        interactive=False,
        elem_id="inside-bars",
        elem_classes=["titled"],
        buttons=_BUTTONS,
    )
    inputs, outputs = [image, word], [original, rec, facts, bars]
    if options.neighbours is not None:
        spec = gr.Textbox(
            "", label="Nearest by these chunks only (empty: all)", max_length=500, elem_id="nearest-chunks"
        )
        near = gr.Dataframe(headers=["picture", "distance"], label="Nearest neighbours", elem_id="nearest")
        inputs.append(spec)
        outputs.append(near)
    command = gr.Textbox(
        label="The same on the command line", interactive=False, buttons=["copy"], elem_id="inside-command"
    )
    outputs.append(command)

    def show(stale: Stale, file: str | None, text: str, spec: str = "") -> Iterator[list[Any]]:
        from diticli.studio.charts import feature_bars

        picture = bench.picture(*source_of(file, text), stale=stale)
        said = f"Reconstruction {decibels(picture.psnr)} at {bench.settings.decode_steps} steps; "
        said += f"{layout.latent_dim} features in {layout.chunks} chunks."
        said += "".join(f" **{safe(text)}**" for text in bench.warnings(picture))
        line, name = inside_command(picture, options), slug(picture.name)
        pictures = {f"{name}_original": picture.original, f"{name}_reconstruction": picture.reconstruction}
        metadata = provenance(bench.model.known_as, line)
        found: list[Any] = [*shown(pictures, metadata), said]
        found += shown({f"{name}_features": feature_bars(bench.by_chunk(picture))}, metadata)
        if options.neighbours is not None:
            chosen = layout.parse(spec) if spec.strip() else range(layout.chunks)
            dims = np.flatnonzero(layout.dim_mask(tuple(chosen)))
            found.append(
                [[named(name), round(far, 3)] for name, far in options.neighbours.find(picture.latents.z[0], dims)]
            )
        yield [*found, line]

    follow_changes("inside", changes, inputs, outputs, show, tab.select)
    if options.effects:
        gr.Markdown(_effects_table(options))
    for title, path in options.heatmaps:
        gr.Image(
            _heatmap(path),
            label=title,
            format="png",
            interactive=False,
            elem_classes=["titled"],
            buttons=_BUTTONS,
        )


def _heatmap(path: Path) -> Image.Image:
    """A picture of an evaluation or a probe, read here: Gradio hands out no file of another folder.

    Raises:
        DataError: when it is no PNG, or of far too many pixels.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"Cannot show {path}: {shortened(error)}.", remedy="Make it again, or remove it.") from error


def inside_command(picture: Picture, options: PageOptions) -> str:
    """Commands that repeat the reconstruction and the features, and the call that opens this page."""
    name, model = as_argument(picture.name), ["--model", options.model]
    face = parse_faces(picture.name)
    row = "" if face is None or face.number is None else f"  # the features are row {face.number}"
    if face is not None and face.number is not None:
        seed = "" if face.seed is None else f":{face.seed}"
        encoded = f"faces:{face.number + 1}{seed}"
    else:
        encoded = name
    lines = [
        shlex.join(["diti", "edit", name, "--reconstruct", "--noise", "keep", *model]),
        shlex.join(["diti", "encode", encoded, "-o", "feats.npy", *model]) + row,
    ]
    if options.features is not None:
        lines.append(shlex.join(["diti", "studio", "--features", options.features, *model]))
    return "\n".join(lines)


def _effects_table(options: PageOptions) -> str:
    """Markdown: what each group of chunks moves most."""
    head = "| chunks | moves (transfer rate of the attribute) |\n|---|---|\n"
    moves = {f"{group[0]}-{group[-1]}": strongest_moves(group[0], options, most=4) for group in options.groups}
    rows = [f"| {group} | {safe(text)} |" for group, text in moves.items() if text]
    others = "" if len(rows) == len(moves) else "\n\nNo other chunks move anything by 0.1 or more."
    return (
        "### What exchanging chunks moves\n\nMeasured by `diti evaluate --atlas`.\n\n" + head + "\n".join(rows) + others
    )
