"""The tab of two pictures: chunks on a time axis, exchanged live."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any, NamedTuple

import gradio as gr

from diticli.chunks import ChunkLayout, spell_chunks
from diticli.editing.contact_sheet import (
    chunks_stem,
    edit_stem,
    edit_strip,
    pair_sheet,
    write_animation,
    write_separate,
)
from diticli.editing.inputs import image_stems
from diticli.editing.mixing import alpha_text
from diticli.editing.results import EditResult, decibels
from diticli.editing.settings import Noise
from diticli.editing.stages import grouped, stages
from diticli.pictures.differences import difference_gain, difference_map
from diticli.pictures.grids import save_png
from diticli.pictures.metadata import provenance
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
    on_click,
    picture_out,
    resized,
    safe,
    scratch,
    shown,
    source_of,
    strongest_moves,
)
from diticli.studio.workbench import Picture, Stale, Workbench

STRIP_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ANIMATION_ALPHAS = tuple(round(step / 8, 3) for step in range(9))
_NOISES = {"keep": "its own", "slerp": "between both", "swap": "the other's"}
_OUTPUTS = {
    "a": "A",
    "rec-a": "A decoded",
    "edit-a": "A with B's",
    "b": "B",
    "rec-b": "B decoded",
    "edit-b": "B with A's",
}


class Asked(NamedTuple):
    """The inputs of the tab."""

    file_a: str | None
    word_a: str
    file_b: str | None
    word_b: str
    chunks: str
    alpha: float
    noise: Noise
    difference: bool

    def pictures(self, bench: Workbench, stale: Stale) -> tuple[Picture, Picture]:
        """A and B."""
        a, b = source_of(self.file_a, self.word_a), source_of(self.file_b, self.word_b)
        return bench.picture(*a, stale=stale), bench.picture(*b, stale=stale)


def pair_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes, page: gr.Blocks) -> None:
    """All of the tab."""
    with gr.Row():
        a, a_word = chooser("A", EXAMPLES[0][0])
        b, b_word = chooser("B", EXAMPLES[0][1])
    pairs = gr.Dropdown(
        [f"{one} and {two}" for one, two in EXAMPLES], value=None, label="Pairs of built-in faces", elem_id="pairs"
    )
    start = spell_chunks(range(layout.chunks // 8, layout.chunks // 3 + 1))
    bar = chunk_bar(layout, start, options)
    with gr.Row():
        chunks = gr.Textbox(start, label=f"Chunks to exchange, 0-{layout.chunks - 1}", elem_id="chunks", max_length=500)
        presets = gr.Dropdown(_presets(layout), value=None, label="Presets", elem_id="presets")
        alpha = gr.Slider(0, 1, 1, step=0.05, label="Alpha (0: own chunks, 1: the other's)", elem_id="alpha")
        noise = gr.Dropdown(
            [(f"{name}: {text}", name) for name, text in _NOISES.items()], value="keep", label="Noise", elem_id="noise"
        )
    difference = gr.Checkbox(
        False, label="Show what changed (difference from the reconstruction)", elem_id="difference"
    )
    outs = []
    for side in "ab":
        with gr.Row():
            outs += [picture_out(title, f"out-{name}") for name, title in _OUTPUTS.items() if name[-1] == side]
    status = gr.Markdown("", elem_id="status")
    command = gr.Textbox(label="The same on the command line", interactive=False, buttons=["copy"], elem_id="command")

    def show(stale: Stale, *values: Any) -> Iterator[list[Any]]:
        asked = Asked(*values)
        one, two = asked.pictures(bench, stale)
        chosen = layout.parse(asked.chunks)
        line = pair_command(one, two, spell_chunks(chosen), [asked.alpha], asked, options.model)
        quality = f"Reconstructions: A {decibels(one.psnr)}, B {decibels(two.psnr)}.{resized(one, two)}"
        warnings = in_bold(bench.warnings(one, two))
        for preview in (True, False):
            result = bench.exchange(one, two, chosen, [asked.alpha], asked.noise, preview=preview, stale=stale)
            note = " Preview ..." if preview else ""
            metadata = {**result.to_metadata(), **provenance(bench.model.known_as, line)}
            yield [*shown(_named(result, asked.difference), metadata), quality + warnings + note, line]

    inputs = [a, a_word, b, b_word, chunks, alpha, noise, difference]
    follow_changes("pair", changes, inputs, [*outs, status, command], show, page.load, api_name="exchange")
    last = {"trigger_mode": "always_last", **AT_ONCE}
    bar.input(lambda text: text, bar, chunks, **last)
    presets.input(lambda text: (text, text), presets, [chunks, bar], **last)
    chunks.submit(lambda text: text, chunks, bar, **last)
    pairs.input(lambda text: [*text.split(" and "), None, None], pairs, [a_word, b_word, a, b], **last)
    _outputs(bench, options, layout, changes, inputs)


def _outputs(
    bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes, inputs: Sequence[Any]
) -> None:
    """The buttons below: strip, animation, downloads."""

    def made(stale: Stale, values: Sequence[Any], alphas: Sequence[float] | None = None, *extra: str) -> Any:
        asked = Asked(*values)
        one, two = asked.pictures(bench, stale)
        chosen = layout.parse(asked.chunks)
        result = bench.exchange(one, two, chosen, alphas or [asked.alpha], asked.noise, stale=stale)
        line = pair_command(one, two, spell_chunks(chosen), result.alphas, asked, options.model, *extra)
        stem = f"{'_'.join(image_stems(result.names))}_chunks{chunks_stem(chosen, layout)}"
        sheet = replace(pair_sheet(result), warnings=tuple(bench.warnings(one, two)))
        return sheet, stem, line, asked.difference

    def make_strip(stale: Stale, *values: Any) -> list[Any]:
        sheet, stem, line, differ = made(stale, values, STRIP_ALPHAS)
        path = scratch(f"{stem}_strip.png")
        save_png(
            edit_strip(sheet, difference=differ), path, {**sheet.metadata, **provenance(bench.model.known_as, line)}
        )
        return [gr.Image(str(path), visible=True), gr.Textbox(line, visible=True)]

    def make_animation(stale: Stale, *values: Any) -> list[Any]:
        sheet, stem, line, _ = made(stale, values, ANIMATION_ALPHAS, "--animate", "edit.webp")
        path = scratch(f"{stem}.webp")
        write_animation(sheet, path, provenance(bench.model.known_as, line))
        return [gr.Image(str(path), visible=True, format="webp"), gr.Textbox(line, visible=True)]

    def make_png(stale: Stale, *values: Any) -> str:
        sheet, stem, line, differ = made(stale, values)
        path = scratch(f"{stem}_alpha{alpha_text(float(values[5]))}.png")
        save_png(
            edit_strip(sheet, difference=differ), path, {**sheet.metadata, **provenance(bench.model.known_as, line)}
        )
        return str(path)

    def make_singles(stale: Stale, *values: Any) -> str:
        import zipfile

        sheet, stem, line, _ = made(stale, values, None, "--separate", "singles")
        path = scratch(f"{stem}_alpha{alpha_text(float(values[5]))}.zip")
        with zipfile.ZipFile(path, "w") as archive:
            for single in write_separate(sheet, path.parent, provenance(bench.model.known_as, line)):
                archive.write(single, single.name)
        return str(path)

    with gr.Row():
        strip = gr.Button("Strip over alphas", elem_id="make-strip")
        animation = gr.Button("Animation", elem_id="make-animation")
        download(changes, "Download PNG", "download-png", make_png, inputs)
        download(changes, "Download single pictures", "download-singles", make_singles, inputs)
    wide = gr.Image(
        label="Strip or animation",
        format="png",
        interactive=False,
        visible=False,
        elem_id="wide",
        buttons=["download", "fullscreen"],
    )
    line = gr.Textbox(
        label="The strip or animation on the command line",
        interactive=False,
        visible=False,
        buttons=["copy"],
        elem_id="wide-command",
    )
    on_click(changes, strip, make_strip, inputs, [wide, line])
    on_click(changes, animation, make_animation, inputs, [wide, line])


def _named(result: EditResult, differ: bool) -> dict[str, Any]:
    """The six pictures of the tab by their file names: originals, reconstructions, edits or what changed in them."""
    edits = list(result.edits.values())
    names = [edit_stem(edit, result.layout) for edit in result.edits]
    if differ:
        gain = difference_gain(list(zip(edits, result.reconstructions, strict=True)))
        edits = [difference_map(edit, back, gain) for edit, back in zip(edits, result.reconstructions, strict=True)]
        names = [f"{name}_difference" for name in names]
    return {
        name: pixels
        for at, side in enumerate("ab")
        for name, pixels in (
            (f"{side}_original", result.originals[at]),
            (f"{side}_reconstruction", result.reconstructions[at]),
            (names[at], edits[at]),
        )
    }


def chunk_bar(layout: ChunkLayout, value: str, options: PageOptions) -> gr.HTML:
    """The time axis: one cell a chunk, fine to the left; below, what the chunks move."""
    labels = []
    for chunk, (low, end) in enumerate(zip(layout.timestep_starts, layout.timestep_ends, strict=True)):
        moves = strongest_moves(chunk, options)
        labels.append(safe(f"Chunk {chunk}, timesteps {low} to {end - 1}" + (f", moves {moves}" if moves else "")))
    own = files("diticli.studio")
    return gr.HTML(
        value,
        html_template=(own / "chunk_bar.html").read_text(encoding="utf-8"),
        js_on_load=(own / "chunk_bar.js").read_text(encoding="utf-8"),
        cells=labels,
        moves=[[len(group), safe(strongest_moves(group[0], options))] for group in options.groups],
        elem_id="chunk-bar",
        label="Chunks",
    )


def pair_command(
    a: Picture, b: Picture, chunks: str, alphas: Sequence[float], asked: Asked, model: str, *extra: str
) -> str:
    """The command of `diti edit` that repeats an exchange."""
    words = ["diti", "edit", as_argument(a.name), as_argument(b.name), "--chunks", chunks]
    words += ["--alphas", ",".join(alpha_text(alpha) for alpha in alphas)]
    words += ["--noise", asked.noise] if asked.noise != "keep" else []
    words += ["--difference"] if asked.difference else []
    return shlex.join([*words, *extra, "--model", model])


def _presets(layout: ChunkLayout) -> list[tuple[str, str]]:
    every = spell_chunks(range(layout.chunks))
    quarters = [spell_chunks(group) for group in grouped(layout, 4)]
    found = [spell_chunks(group) for group in stages(layout)]
    return [
        (f"all: {every}", every),
        *((f"quarter {at + 1}: {text}", text) for at, text in enumerate(quarters)),
        *((f"stage {at + 1}: {text}", text) for at, text in enumerate(found) if text not in quarters),
    ]
