"""The tab of attributes: a slider for each, by a probe's directions."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from diticli.chunks import ChunkLayout
from diticli.editing.contact_sheet import attribute_sheet, edit_strip
from diticli.editing.mixing import alpha_text
from diticli.editing.results import AttributeResult, decibels
from diticli.pictures.grids import save_png
from diticli.pictures.metadata import provenance
from diticli.pictures.tiles import Pixels
from diticli.studio.parts import (
    AT_ONCE,
    EXAMPLES,
    Changes,
    PageOptions,
    as_argument,
    chooser,
    download,
    follow_changes,
    in_bold,
    named,
    picture_out,
    resized,
    safe,
    scratch,
    shown,
    source_of,
)
from diticli.studio.workbench import Picture, Stale, Workbench

_MOST = 1.5
"""Of a slider; 0.3 is a clear change, 1 a strong one."""


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
        outs = [
            picture_out("Original", "attribute-original"),
            picture_out("Decoded", "attribute-before"),
            picture_out("Edited", "attribute-after"),
        ]
    changed = gr.Markdown("", elem_id="also-changed")
    with gr.Row():
        with gr.Column():
            sliders = [
                gr.Slider(-_MOST, _MOST, 0, step=0.05, label=_slider_label(name, options), elem_id=f"slider-{at}")
                for at, name in enumerate(ranked)
            ]
        with gr.Column():
            reset = gr.Button("Reset", elem_id="attribute-reset")
            chunks = gr.Textbox(
                "", label="Only in these chunks (empty: all)", max_length=500, elem_id="attribute-chunks"
            )
            learned = gr.Checkbox(
                False,
                label=_mask_label(bench, ranked),
                visible=bench.directions.masked is not None,
                elem_id="attribute-masks",
            )
            command = gr.Textbox(
                label="The same on the command line", interactive=False, buttons=["copy"], elem_id="attribute-command"
            )

    def read(stale: Stale, values: Sequence[Any], preview: bool) -> tuple[Picture, AttributeResult, str]:
        file, text, spec, only, *amounts = values
        picture = bench.picture(*source_of(file, text), stale=stale)
        wanted = {name: float(amount) for name, amount in zip(ranked, amounts, strict=True) if amount}
        chosen = layout.parse(spec) if spec.strip() else None
        result = bench.move(picture, wanted, chosen, learned=only, preview=preview, stale=stale)
        return picture, result, attribute_command(picture, result, spec.strip(), options)

    def show(stale: Stale, *values: Any) -> Iterator[list[Any]]:
        for preview in (True, False):
            picture, result, line = read(stale, values, preview)
            (moved,) = result.edits.values()
            words = _also_changed(bench, moved, picture, ranked, result) + (" Preview ..." if preview else "")
            rows = attribute_sheet(result).rows
            named = {cell.stem: cell.picture for cell in rows[0].cells}
            yield [*shown(named, {**result.to_metadata(), **provenance(bench.model.known_as, line)}), words, line]

    def make_png(stale: Stale, *values: Any) -> str:
        picture, result, line = read(stale, values, preview=False)
        sheet = replace(attribute_sheet(result), warnings=tuple(bench.move_warnings(picture, result)))
        path = scratch(f"{sheet.rows[0].cells[-1].stem}.png")
        save_png(edit_strip(sheet), path, {**sheet.metadata, **provenance(bench.model.known_as, line)})
        return str(path)

    inputs = [image, word, chunks, learned, *sliders]
    follow_changes("attribute", changes, inputs, [*outs, changed, command], show, tab.select)
    reset.click(lambda: [0.0] * len(sliders), None, sliders, **AT_ONCE)
    download(changes, "Download PNG", "attribute-download", make_png, inputs)


def attribute_command(picture: Picture, result: AttributeResult, chunks: str, options: PageOptions) -> str:
    """The command of `diti edit` that repeats attribute moves."""
    ((_, first, _, amount),) = result.edits
    if not amount:
        return shlex.join(
            ["diti", "edit", as_argument(picture.name), "--reconstruct", "--noise", "keep", "--model", options.model]
        )
    words = ["diti", "edit", as_argument(picture.name), "--attribute", first, f"--amount={alpha_text(amount)}"]
    for name, other in result.also.items():
        words += ["--also", f"{name}={alpha_text(other)}"]
    words += ["--dims", str(result.learned_dims)] if result.learned_dims is not None else []
    words += ["--chunks", chunks] if chunks else []
    return shlex.join([*words, "--probe", options.probe or "probe", "--model", options.model])


def _mask_label(bench: Workbench, ranked: Sequence[str]) -> str:
    """With how many dims the masks have; all masks of a probe have the same."""
    if bench.directions is None or bench.directions.masked is None:
        return ""
    return f"Only the {len(bench.directions.learned_dims(ranked[0]))} dims of each attribute's learned mask"


def _slider_label(name: str, options: PageOptions) -> str:
    score = options.scores.get(name)
    return named(name) if score is None else f"{named(name)} (probe score {score:.2f})"


def _also_changed(
    bench: Workbench, moved: Pixels, picture: Picture, ranked: Sequence[str], result: AttributeResult
) -> str:
    """What the probe reads differently from the edited picture, beside what was moved; then what spoils edits."""
    warnings = in_bold(bench.move_warnings(picture, result))
    quality = f"Reconstruction: {decibels(picture.psnr)}.{resized(picture)}{warnings}"
    wanted = [name for (_, name, _, amount) in result.edits if amount] + list(result.also)
    if not wanted:
        return quality
    before, after = bench.read_attributes(picture.reconstruction), bench.read_attributes(moved)
    spread = {name: after[name] - before[name] for name in ranked}
    others = sorted((name for name in ranked if name not in wanted), key=lambda name: -abs(spread[name]))[:4]
    own, rest = (", ".join(f"{safe(name)} {spread[name]:+.2f}" for name in names) for names in (wanted, others))
    beside = f" What else changed: {rest}." if rest else ""
    return f"{quality} Read again from the edited picture by the probe: **{own}**.{beside}"
