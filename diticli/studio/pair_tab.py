"""The tab of two pictures: chunks on a time axis, exchanged live."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any

import gradio as gr

from diticli.chunks import ChunkLayout, spell_chunks
from diticli.editing.mixing import alpha_text
from diticli.editing.stages import grouped, stages
from diticli.pictures.animation import save_animation
from diticli.pictures.differences import difference_gain, difference_map
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
    decibel_text,
    download_button,
    enlarged,
    follow_changes,
    picture_out,
    provenance,
    quality_text,
    safe,
    said_in_words,
    scratch,
    source_of,
    strongest_moves,
)
from diticli.studio.workbench import Picture, Workbench

STRIP_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ANIMATION_ALPHAS = tuple(round(step / 8, 3) for step in range(9))
_NOISES = {"keep": "each picture's own", "slerp": "between both", "swap": "the other picture's"}


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
            [(text, name) for name, text in _NOISES.items()], value="keep", label="Noise", elem_id="noise"
        )
    difference = gr.Checkbox(
        False, label="Show what changed (difference from the reconstruction)", elem_id="difference"
    )
    with gr.Row():
        shown = {
            name: picture_out(title, f"out-{name}")
            for name, title in (
                ("rec-a", "A reconstructed"),
                ("a", "A with B's chunks"),
                ("b", "B with A's chunks"),
                ("rec-b", "B reconstructed"),
            )
        }
    status = gr.Markdown("", elem_id="status")
    command = gr.Textbox(label="The same on the command line", interactive=False, buttons=["copy"], elem_id="command")
    with gr.Row():
        strip = gr.Button("Strip over alphas", elem_id="make-strip")
        animation = gr.Button("Animation", elem_id="make-animation")
        png, png_file = download_button("Download PNG", "download-png")
        singles, singles_file = download_button("Download single pictures", "download-singles")
    wide = gr.Image(
        label="Strip or animation",
        format="png",
        interactive=False,
        visible=False,
        elem_id="wide",
        buttons=["download", "fullscreen"],
    )

    inputs = [a, a_word, b, b_word, chunks, alpha, noise, difference]
    outputs = [*shown.values(), status, command]

    def show(stale: Callable[[], bool], *asked: Any) -> Iterator[list[Any]]:
        file_a, word_a, file_b, word_b, spec, strength, mode, differ = asked
        one = bench.picture(*source_of(file_a, word_a), stale=stale)
        two = bench.picture(*source_of(file_b, word_b), stale=stale)
        chosen = layout.parse(spec)
        line = pair_command(one, two, spell_chunks(chosen), [strength], mode, options.model)
        for preview in (True, False):
            left, right = bench.exchange(one, two, chosen, [strength], mode, preview=preview, stale=stale)
            pictures = [one.reconstruction, left[0], right[0], two.reconstruction]
            if differ:
                gain = difference_gain([(left[0], one.reconstruction), (right[0], two.reconstruction)])
                pictures[1] = difference_map(left[0], one.reconstruction, gain)
                pictures[2] = difference_map(right[0], two.reconstruction, gain)
            quality = f"Reconstructions: A {decibel_text(one.psnr)}, B {decibel_text(two.psnr)}."
            yield [*map(enlarged, pictures), quality_text(quality, one, two, preview), line]

    follow_changes("pair", changes, inputs, outputs, show, page.load, api_name="exchange")
    last = {"trigger_mode": "always_last", **AT_ONCE}
    bar.input(lambda text: text, bar, chunks, **last)
    presets.input(lambda text: (text, text), presets, [chunks, bar], **last)
    chunks.submit(lambda text: text, chunks, bar, **last)
    pairs.input(lambda text: [*text.split(" and "), None, None], pairs, [a_word, b_word, a, b], **last)

    def made(alphas: Sequence[float], *values: Any) -> tuple[Picture, Picture, str, Any, Any, dict[str, str]]:
        file_a, word_a, file_b, word_b, spec, _, mode, _ = values
        one, two = bench.picture(*source_of(file_a, word_a)), bench.picture(*source_of(file_b, word_b))
        chosen = layout.parse(spec)
        left, right = bench.exchange(one, two, chosen, alphas, mode)
        named = spell_chunks(chosen)
        return (
            one,
            two,
            named,
            left,
            right,
            provenance(bench, pair_command(one, two, named, alphas, mode, options.model)),
        )

    def make_strip(*values: Any) -> Any:
        one, two, named, left, right, metadata = made(STRIP_ALPHAS, *values)
        path = scratch("strip.png")
        save_png(_pair_strip(one, two, named, STRIP_ALPHAS, left, right), path, metadata)
        return gr.Image(str(path), visible=True)

    def make_animation(*values: Any) -> Any:
        _, _, named, left, right, metadata = made(ANIMATION_ALPHAS, *values)
        frames = [
            captioned_strip(
                [[left[at], right[at]]],
                row_captions=[""],
                column_captions=[f"A with B's {named}", f"B with A's {named}"],
                title=f"alpha {alpha_text(alpha)}",
            )
            for at, alpha in enumerate(ANIMATION_ALPHAS)
        ]
        path = scratch("animation.webp")
        save_animation(frames, path, metadata)
        return gr.Image(str(path), visible=True, format="webp")

    def make_png(*values: Any) -> str:
        strength = float(values[5])
        one, two, named, left, right, metadata = made([strength], *values)
        path = scratch("edit.png")
        save_png(_pair_strip(one, two, named, [strength], left, right), path, metadata)
        return str(path)

    def make_singles(*values: Any) -> str:
        import zipfile

        strength = float(values[5])
        one, two, _, left, right, metadata = made([strength], *values)
        folder = scratch("singles.zip").parent
        pictures = {
            "a_original": one.original,
            "a_reconstruction": one.reconstruction,
            "a_edited": left[0],
            "b_original": two.original,
            "b_reconstruction": two.reconstruction,
            "b_edited": right[0],
        }
        with zipfile.ZipFile(folder / "singles.zip", "w") as archive:
            for name, pixels in pictures.items():
                archive.write(save_png(pixels, folder / f"{name}.png", metadata), f"{name}.png")
        return str(folder / "singles.zip")

    work = {**ON_MODEL, **PRIVATE}
    strip.click(said_in_words(make_strip), inputs, wide, **work)
    animation.click(said_in_words(make_animation), inputs, wide, **work)
    png.click(said_in_words(make_png), inputs, png_file, **work).success(js=CLICK.format("download-png-file"))
    singles.click(said_in_words(make_singles), inputs, singles_file, **work).success(
        js=CLICK.format("download-singles-file")
    )


_CELL = """${cells.map((label, at) => {
  const on = String(value || "").split(",").some((part) => {
    const ends = part.split("-").map(Number);
    return at >= ends[0] && at <= ends[ends.length - 1];
  });
  return `<button type="button" data-chunk="${at}" class="${on ? "on" : ""}" aria-pressed="${on}" aria-label="${label}"
    title="${label}" tabindex="${at ? -1 : 0}">${at}</button>`;
}).join("")}"""


def chunk_bar(layout: ChunkLayout, value: str, options: PageOptions) -> gr.HTML:
    """The time axis: one cell a chunk, fine to the left; below, what the chunks move."""
    labels = []
    for chunk, (low, end) in enumerate(zip(layout.timestep_starts, layout.timestep_ends, strict=True)):
        moves = strongest_moves(chunk, options)
        labels.append(safe(f"Chunk {chunk}, timesteps {low} to {end - 1}" + (f", moves {moves}" if moves else "")))
    below = "".join(
        f'<span style="flex:{len(group)} 1 0">{safe(strongest_moves(group[0], options))}</span>'
        for group in options.groups
    )
    static = files("diticli.studio")
    return gr.HTML(
        value,
        html_template='<div class="chunk-bar" role="group" aria-label="Chunks, from fine to coarse">'
        f'<div class="cells">{_CELL}</div><div class="moves">{below}</div><div class="ends">'
        "<span>fine detail (small timesteps)</span><span>coarse structure (large timesteps)</span></div></div>",
        css_template=(static / "studio.css").read_text(encoding="utf-8"),
        js_on_load=(static / "chunk_bar.js").read_text(encoding="utf-8"),
        cells=labels,
        elem_id="chunk-bar",
        label="Chunks",
    )


def pair_command(a: Picture, b: Picture, chunks: str, alphas: Sequence[float], noise: str, model: str) -> str:
    """The command of `diti edit` that repeats an exchange."""
    words = [
        "diti",
        "edit",
        as_argument(a.name),
        as_argument(b.name),
        "--chunks",
        chunks,
        "--alphas",
        ",".join(alpha_text(alpha) for alpha in alphas),
    ]
    return shlex.join([*words, *(["--noise", noise] if noise != "keep" else []), "--model", model])


def _presets(layout: ChunkLayout) -> list[tuple[str, str]]:
    every = spell_chunks(range(layout.chunks))
    quarters = [spell_chunks(group) for group in grouped(layout, 4)]
    found = [spell_chunks(group) for group in stages(layout)]
    return [
        (f"all: {every}", every),
        *((f"quarter {at + 1}: {text}", text) for at, text in enumerate(quarters)),
        *((f"stage {at + 1}: {text}", text) for at, text in enumerate(found) if text not in quarters),
    ]


def _pair_strip(
    a: Picture, b: Picture, chunks: str, alphas: Sequence[float], left: Sequence[Pixels], right: Sequence[Pixels]
) -> Any:
    moved = [at for at, alpha in enumerate(alphas) if alpha != 0]
    rows = [
        [a.original, a.reconstruction, *(left[at] for at in moved), b.original],
        [b.original, b.reconstruction, *(right[at] for at in moved), a.original],
    ]
    columns = ["original", "reconstruction", *(f"alpha {alpha_text(alphas[at])}" for at in moved), "chunks from"]
    return captioned_strip(
        rows,
        row_captions=[f"A: {a.name}", f"B: {b.name}"],
        column_captions=columns,
        title=f"Chunks {chunks} exchanged",
        mark={(0, 0), (1, 0)},
    )
