"""The tab of attributes: a slider for each, by a probe's directions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from diticli.chunks import ChunkLayout
from diticli.editing.mixing import alpha_text
from diticli.pictures.grids import save_png
from diticli.pictures.strips import captioned_strip
from diticli.pictures.tiles import Pixels
from diticli.studio.parts import (
    AT_ONCE,
    CLICK,
    EXAMPLES,
    ON_MODEL,
    PRIVATE,
    Changes,
    PageOptions,
    as_argument,
    chooser,
    download_button,
    enlarged,
    follow_changes,
    named,
    picture_out,
    provenance,
    safe,
    said_in_words,
    scratch,
    source_of,
)
from diticli.studio.workbench import Picture, Workbench


def attribute_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes, tab: gr.Tab) -> None:
    """All of the tab."""
    if bench.directions is None:
        gr.Markdown(
            "No probe is loaded. Train one and start the studio with it:\n\n"
            "    diti faces data -n 3000 --size 32\n    diti encode data -o feats.npy\n"
            "    diti probe feats.npy --labels data/labels.csv -o probe\n    diti studio --probe probe"
        )
        return
    ranked = sorted(bench.directions.attributes, key=lambda name: (-options.scores.get(name, -math.inf), name))
    image, word = chooser("Picture", EXAMPLES[0][0], prefix="attribute-")
    with gr.Row():
        with gr.Column():
            sliders = [
                gr.Slider(-1.5, 1.5, 0, step=0.05, label=_slider_label(name, options), elem_id=f"slider-{at}")
                for at, name in enumerate(ranked)
            ]
        with gr.Column():
            with gr.Row():
                before = picture_out("Reconstruction", "attribute-before")
                after = picture_out("Edited", "attribute-after")
            changed = gr.Markdown("", elem_id="also-changed")
            chunks = gr.Textbox(
                "", label="Only in these chunks (empty: all)", max_length=500, elem_id="attribute-chunks"
            )
            learned = gr.Checkbox(
                False, label="Only the dims of the learned masks", visible=bench.directions.masked is not None
            )
            command = gr.Textbox(
                label="The same on the command line (one attribute)",
                interactive=False,
                buttons=["copy"],
                elem_id="attribute-command",
            )
            reset = gr.Button("Reset", elem_id="attribute-reset")
            png, png_file = download_button("Download PNG", "attribute-download")
    inputs = [image, word, chunks, learned, *sliders]
    outputs = [before, after, changed, command]

    def read(values: Sequence[Any], **how: Any) -> tuple[Picture, Pixels, dict[str, float], str]:
        file, text, spec, only, *amounts = values
        picture = bench.picture(*source_of(file, text), stale=how.get("stale"))
        wanted = {name: float(amount) for name, amount in zip(ranked, amounts, strict=True) if amount}
        chosen = layout.parse(spec) if spec.strip() else None
        moved = bench.move(picture, wanted, chosen, learned=only, **how)
        return picture, moved, wanted, attribute_command(picture, wanted, spec, options)

    def show(stale: Callable[[], bool], *asked: Any) -> Iterator[list[Any]]:
        for preview in (True, False):
            picture, moved, wanted, line = read(asked, preview=preview, stale=stale)
            words = _also_changed(bench, moved, picture, ranked, wanted)
            yield [enlarged(picture.reconstruction), enlarged(moved), words, line]

    def make_png(*values: Any) -> str:
        picture, moved, wanted, line = read(values)
        path = scratch("attribute.png")
        title = ", ".join(f"{name} {alpha_text(amount)}" for name, amount in wanted.items()) or "no change"
        strip = captioned_strip(
            [[picture.original, picture.reconstruction, moved]],
            row_captions=[picture.name],
            column_captions=["original", "reconstruction", "edited"],
            title=title,
        )
        save_png(strip, path, provenance(bench, line))
        return str(path)

    follow_changes("attribute", changes, inputs, outputs, show, tab.select)
    reset.click(lambda: [0.0] * len(sliders), None, sliders, **AT_ONCE)
    done = png.click(said_in_words(make_png), inputs, png_file, **ON_MODEL, **PRIVATE)
    done.success(js=CLICK.format("attribute-download-file"))


def attribute_command(picture: Picture, amounts: Mapping[str, float], chunks: str, options: PageOptions) -> str:
    """The commands of `diti edit` that repeat attribute moves, one an attribute; "" where nothing moves."""
    lines = []
    for name, amount in amounts.items():
        words = [
            "diti",
            "edit",
            as_argument(picture.name),
            "--attribute",
            name,
            f"--amount={alpha_text(amount)}",
            "--probe",
            options.probe or "probe",
            "--model",
            options.model,
        ]
        lines.append(shlex.join([*words, *(["--chunks", chunks] if chunks.strip() else [])]))
    return "\n".join(lines)


def _slider_label(name: str, options: PageOptions) -> str:
    score = options.scores.get(name)
    return named(name) if score is None else f"{named(name)} (probe score {score:.2f})"


def _also_changed(
    bench: Workbench, moved: Pixels, picture: Picture, ranked: Sequence[str], wanted: Mapping[str, float]
) -> str:
    """What the probe reads differently from the edited picture, beside what was moved."""
    assert bench.directions is not None
    if not wanted:
        return ""
    before, after = bench.read_attributes(picture.reconstruction), bench.read_attributes(moved)
    spread = {name: after[name] - before[name] for name in ranked}
    others = sorted((name for name in ranked if name not in wanted), key=lambda name: -abs(spread[name]))[:4]
    told = ", ".join(f"{safe(name)} {spread[name]:+.2f}" for name in others)
    own = ", ".join(f"{safe(name)} {spread[name]:+.2f}" for name in wanted)
    return f"Read again from the edited picture by the probe: **{own}**. What else changed: {told}."
