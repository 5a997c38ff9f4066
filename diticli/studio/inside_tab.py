"""The tab that looks inside: features by chunk, nearest pictures, what chunks move."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np

from diticli.chunks import ChunkLayout
from diticli.studio.parts import (
    EXAMPLES,
    ON_MODEL,
    PRIVATE,
    PageOptions,
    chooser,
    decibel_text,
    enlarged,
    named,
    picture_out,
    safe,
    said_in_words,
    source_of,
    strongest_moves,
)
from diticli.studio.workbench import Workbench


def inside_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, tab: gr.Tab) -> None:
    """All of the tab."""
    image, word = chooser("Picture", EXAMPLES[0][0], prefix="inside-")
    with gr.Row():
        original = picture_out("As the model sees it", "inside-original")
        rec = picture_out("Reconstruction", "inside-rec")
    facts = gr.Markdown("", elem_id="inside-facts")
    bars = gr.Image(
        label="Features by chunk (root mean square)", format="png", interactive=False, elem_id="inside-bars"
    )
    inputs, outputs = [image, word], [original, rec, facts, bars]
    if options.neighbours is not None:
        spec = gr.Textbox(
            "", label="Nearest by these chunks only (empty: all)", max_length=500, elem_id="nearest-chunks"
        )
        near = gr.Dataframe(headers=["picture", "distance"], label="Nearest neighbours", elem_id="nearest")
        inputs.append(spec)
        outputs.append(near)
    if options.effects:
        gr.Markdown(_effects_table(options))

    def show(file: str | None, text: str, spec: str = "") -> list[Any]:
        from diticli.studio.charts import feature_bars

        picture = bench.picture(*source_of(file, text))
        said = f"Reconstruction {decibel_text(picture.psnr)} at {bench.settings.decode_steps} steps; "
        said += f"{layout.latent_dim} features in {layout.chunks} chunks."
        shown = [
            enlarged(picture.original),
            enlarged(picture.reconstruction),
            said,
            feature_bars(bench.by_chunk(picture)),
        ]
        if options.neighbours is not None:
            chosen = layout.parse(spec) if spec.strip() else range(layout.chunks)
            dims = np.flatnonzero(layout.dim_mask(tuple(chosen)))
            shown.append(
                [[named(name), round(far, 3)] for name, far in options.neighbours.find(picture.latents.z[0], dims)]
            )
        return shown

    gr.on(
        [tab.select, *(part.change for part in inputs)],
        said_in_words(show),
        inputs,
        outputs,
        **ON_MODEL,
        **PRIVATE,
    )


def _effects_table(options: PageOptions) -> str:
    """Markdown: what each group of chunks moves most."""
    head = "| chunks | moves (transfer rate of the attribute) |\n|---|---|\n"
    rows = []
    for group in options.groups:
        moves = strongest_moves(group[0], options, most=4)
        rows.append(f"| {group[0]}-{group[-1]} | {safe(moves) or 'nothing that was measured'} |")
    return "### What exchanging chunks moves\n\nMeasured by `diti evaluate --atlas`.\n\n" + head + "\n".join(rows)
