"""The page: what is on it, and what a change of each part does.

Texts that a visitor brings (file names) never reach HTML or Markdown unescaped.
"""

from __future__ import annotations

import html
import math
import shlex
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np

from diticli._version import __version__
from diticli.chunks import ChunkLayout, spell_chunks
from diticli.data.images import UnreadableImageError
from diticli.editing.mixing import alpha_text
from diticli.editing.stages import grouped, stages
from diticli.errors import DiTiError
from diticli.pictures.animation import save_animation
from diticli.pictures.captions import clean
from diticli.pictures.differences import difference_gain, difference_map
from diticli.pictures.grids import save_png
from diticli.pictures.strips import captioned_strip
from diticli.pictures.tiles import Pixels, magnified
from diticli.studio.neighbours import Neighbours
from diticli.studio.workbench import Picture, SupersededError, Workbench

STRIP_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)
ANIMATION_ALPHAS = tuple(round(step / 8, 3) for step in range(9))
EXAMPLES = (("faces:3", "faces:8"), ("faces:0:1", "faces:5:1"), ("faces:11", "faces:42"))

_SIDE = 288
_NOISES = {"keep": "each picture's own", "slerp": "between both", "swap": "the other picture's"}
_MAX_NAME = 60
_NOW = "(...values) => [...values.slice(0, -1), performance.now()]"
_CLICK = "() => setTimeout(() => document.querySelector('#{0}').click(), 100)"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """What the page shows beside the model.

    Attributes:
        title: what to call the model.
        effects: attribute -> [groups] transfer rate of each group of chunks, of `diti evaluate --atlas`.
        groups: the groups of chunks of `effects`.
        scores: attribute -> probe score, by which the sliders are sorted.
        probe: how `--probe` was given, for the command that repeats a picture.
        model: how `--model` is to be given there.
        neighbours: search in features; None without `--features`.
    """

    title: str
    model: str
    effects: Mapping[str, Sequence[float]]
    groups: Sequence[Sequence[int]]
    scores: Mapping[str, float]
    probe: str | None = None
    neighbours: Neighbours | None = None


class Changes:
    """When each visitor changed something last, by the clock of the visitor's page: older work can end early."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def note(self, session: str, place: str, when: float) -> None:
        """Something was changed at `place`; requests may arrive in another order than they were sent."""
        with self._lock:
            self._last[session, place] = max(when, self._last.get((session, place), when))

    def is_stale(self, session: str, place: str, when: float) -> bool:
        """Whether something was changed since."""
        with self._lock:
            return self._last.get((session, place), when) > when

    def forget(self, session: str) -> None:
        """The visitor has left."""
        with self._lock:
            for key in [key for key in self._last if key[0] == session]:
                del self._last[key]


def build_page(bench: Workbench, options: PageOptions) -> gr.Blocks:
    """All tabs.

    Args:
        bench: the model.
        options: what is known of it.
    """
    layout = bench.model.chunks
    changes = Changes()
    with gr.Blocks(title="diti studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# diti studio\n{html.escape(options.title)}")
        with gr.Tabs():
            with gr.Tab("Two pictures"):
                _pair_tab(bench, options, layout, changes)
            with gr.Tab("Attributes") as tab:
                _attribute_tab(bench, options, layout, changes, tab)
            with gr.Tab("Look inside") as tab:
                _inside_tab(bench, options, layout, tab)
        page.unload(_forgetting(changes))
    return page


def _forgetting(changes: Changes) -> Callable[[gr.Request], None]:
    def leave(request: gr.Request) -> None:
        changes.forget(str(request.session_hash))

    return leave


# ---------------------------------------------------------------- two pictures


def _pair_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes) -> None:
    with gr.Row():
        a, a_word = _chooser("A", EXAMPLES[0][0])
        b, b_word = _chooser("B", EXAMPLES[0][1])
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
            name: _picture(title, f"out-{name}")
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
        png, png_file = _download("Download PNG", "download-png")
        singles, singles_file = _download("Download single pictures", "download-singles")
    wide = gr.Image(
        label="Strip or animation",
        format="png",
        interactive=False,
        visible=False,
        elem_id="wide",
        buttons=["download", "fullscreen"],
    )

    stamp = gr.Number(0, visible=False)
    inputs = [a, a_word, b, b_word, chunks, alpha, noise, difference, stamp]
    outputs = [*shown.values(), status, command]

    def note(request: gr.Request, *asked: Any) -> None:
        changes.note(str(request.session_hash), "pair", asked[-1])

    def show(session: str, *asked: Any) -> Iterator[list[Any]]:
        stale = partial(changes.is_stale, session, "pair", asked[-1])
        if stale():
            return
        file_a, word_a, file_b, word_b, spec, strength, mode, differ, _ = asked
        one = bench.picture(*_source(file_a, word_a), stale=stale)
        two = bench.picture(*_source(file_b, word_b), stale=stale)
        chosen = layout.parse(spec)
        line = pair_command(one, two, spell_chunks(chosen), [strength], mode, options.model)
        for preview in (True, False):
            left, right = bench.exchange(one, two, chosen, [strength], mode, preview=preview, stale=stale)
            pictures = [one.reconstruction, left[0], right[0], two.reconstruction]
            if differ:
                gain = difference_gain([(left[0], one.reconstruction), (right[0], two.reconstruction)])
                pictures[1] = difference_map(left[0], one.reconstruction, gain)
                pictures[2] = difference_map(right[0], two.reconstruction, gain)
            quality = f"Reconstructions: A {_decibels(one.psnr)}, B {_decibels(two.psnr)}."
            yield [*map(_enlarged, pictures), _status(quality, one, two, preview), line]

    show_, note_ = _kept_running(show, len(outputs)), note
    for component, event in (
        (a, "change"),
        (a_word, "change"),
        (b, "change"),
        (b_word, "change"),
        (chunks, "change"),
        (alpha, "change"),
        (noise, "change"),
        (difference, "change"),
    ):
        trigger = getattr(component, event)
        trigger(note_, inputs, None, js=_NOW, queue=False, show_progress="hidden", api_visibility="private")
        trigger(
            show_,
            inputs,
            outputs,
            js=_NOW,
            show_progress="minimal",
            concurrency_id="model",
            concurrency_limit=1,
            trigger_mode="multiple",
            api_visibility="private",
        )
    _page().load(
        show_,
        inputs,
        outputs,
        show_progress="minimal",
        concurrency_id="model",
        concurrency_limit=1,
        api_name="exchange",
    )
    bar.input(
        lambda text: text,
        bar,
        chunks,
        queue=False,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    presets.input(
        lambda text: (text, text),
        presets,
        [chunks, bar],
        queue=False,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    chunks.submit(
        lambda text: text,
        chunks,
        bar,
        queue=False,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )

    pairs.input(
        lambda text: [*text.split(" and "), None, None],
        pairs,
        [a_word, b_word, a, b],
        queue=False,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )

    def made(alphas: Sequence[float], *values: Any) -> tuple[Picture, Picture, str, Any, Any, dict[str, str]]:
        file_a, word_a, file_b, word_b, spec, _, mode, _, _ = values
        one, two = bench.picture(*_source(file_a, word_a)), bench.picture(*_source(file_b, word_b))
        chosen = layout.parse(spec)
        left, right = bench.exchange(one, two, chosen, alphas, mode)
        named = spell_chunks(chosen)
        return (
            one,
            two,
            named,
            left,
            right,
            _metadata(bench, pair_command(one, two, named, alphas, mode, options.model)),
        )

    def make_strip(*values: Any) -> Any:
        one, two, named, left, right, metadata = made(STRIP_ALPHAS, *values)
        path = _scratch("strip.png")
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
        path = _scratch("animation.webp")
        save_animation(frames, path, metadata)
        return gr.Image(str(path), visible=True, format="webp")

    def make_png(*values: Any) -> str:
        strength = float(values[5])
        one, two, named, left, right, metadata = made([strength], *values)
        path = _scratch("edit.png")
        save_png(_pair_strip(one, two, named, [strength], left, right), path, metadata)
        return str(path)

    def make_singles(*values: Any) -> str:
        import zipfile

        strength = float(values[5])
        one, two, _, left, right, metadata = made([strength], *values)
        folder = _scratch("singles.zip").parent
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

    work = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal", "api_visibility": "private"}
    strip.click(_said(make_strip), inputs, wide, **work)
    animation.click(_said(make_animation), inputs, wide, **work)
    png.click(_said(make_png), inputs, png_file, **work).success(js=_CLICK.format("download-png-file"))
    singles.click(_said(make_singles), inputs, singles_file, **work).success(js=_CLICK.format("download-singles-file"))


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
        moves = _moves(chunk, options)
        labels.append(_safe(f"Chunk {chunk}, timesteps {low} to {end - 1}" + (f", moves {moves}" if moves else "")))
    below = "".join(
        f'<span style="flex:{len(group)} 1 0">{_safe(_moves(group[0], options))}</span>' for group in options.groups
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
        _argument(a.name),
        _argument(b.name),
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


def _page() -> gr.Blocks:
    page = gr.context.Context.root_block
    assert page is not None
    return page


# ---------------------------------------------------------------- attributes


def _attribute_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, changes: Changes, tab: gr.Tab) -> None:
    if bench.directions is None:
        gr.Markdown(
            "No probe is loaded. Train one and start the studio with it:\n\n"
            "    diti faces data -n 3000 --size 32\n    diti encode data -o feats.npy\n"
            "    diti probe feats.npy --labels data/labels.csv -o probe\n    diti studio --probe probe"
        )
        return
    ranked = sorted(bench.directions.attributes, key=lambda name: (-options.scores.get(name, -math.inf), name))
    image, word = _chooser("Picture", EXAMPLES[0][0], prefix="attribute-")
    with gr.Row():
        with gr.Column():
            sliders = [
                gr.Slider(-1.5, 1.5, 0, step=0.05, label=_slider_label(name, options), elem_id=f"slider-{at}")
                for at, name in enumerate(ranked)
            ]
        with gr.Column():
            with gr.Row():
                before = _picture("Reconstruction", "attribute-before")
                after = _picture("Edited", "attribute-after")
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
            png, png_file = _download("Download PNG", "attribute-download")
    stamp = gr.Number(0, visible=False)
    inputs = [image, word, chunks, learned, *sliders, stamp]
    outputs = [before, after, changed, command]

    def read(values: Sequence[Any], **how: Any) -> tuple[Picture, Pixels, dict[str, float], str]:
        file, text, spec, only, *amounts, _ = values
        picture = bench.picture(*_source(file, text), stale=how.get("stale"))
        wanted = {name: float(amount) for name, amount in zip(ranked, amounts, strict=True) if amount}
        chosen = layout.parse(spec) if spec.strip() else None
        moved = bench.move(picture, wanted, chosen, learned=only, **how)
        return picture, moved, wanted, attribute_command(picture, wanted, spec, options)

    def note(request: gr.Request, *asked: Any) -> None:
        changes.note(str(request.session_hash), "attribute", asked[-1])

    def show(session: str, *asked: Any) -> Iterator[list[Any]]:
        stale = partial(changes.is_stale, session, "attribute", asked[-1])
        if stale():
            return
        for preview in (True, False):
            picture, moved, wanted, line = read(asked, preview=preview, stale=stale)
            words = _also_changed(bench, moved, picture, ranked, wanted)
            yield [_enlarged(picture.reconstruction), _enlarged(moved), words, line]

    def make_png(*values: Any) -> str:
        picture, moved, wanted, line = read(values)
        path = _scratch("attribute.png")
        title = ", ".join(f"{name} {alpha_text(amount)}" for name, amount in wanted.items()) or "no change"
        strip = captioned_strip(
            [[picture.original, picture.reconstruction, moved]],
            row_captions=[picture.name],
            column_captions=["original", "reconstruction", "edited"],
            title=title,
        )
        save_png(strip, path, _metadata(bench, line))
        return str(path)

    show_, note_ = _kept_running(show, len(outputs)), note
    for component in inputs[:-1]:
        component.change(note_, inputs, None, js=_NOW, queue=False, show_progress="hidden", api_visibility="private")
        component.change(
            show_,
            inputs,
            outputs,
            js=_NOW,
            show_progress="minimal",
            concurrency_id="model",
            concurrency_limit=1,
            trigger_mode="multiple",
            api_visibility="private",
        )
    tab.select(
        show_,
        inputs,
        outputs,
        show_progress="minimal",
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
    )
    reset.click(lambda: [0.0] * len(sliders), None, sliders, queue=False, api_visibility="private")
    done = png.click(
        _said(make_png), inputs, png_file, concurrency_id="model", concurrency_limit=1, api_visibility="private"
    )
    done.success(js=_CLICK.format("attribute-download-file"))


def attribute_command(picture: Picture, amounts: Mapping[str, float], chunks: str, options: PageOptions) -> str:
    """The commands of `diti edit` that repeat attribute moves, one an attribute; "" where nothing moves."""
    lines = []
    for name, amount in amounts.items():
        words = [
            "diti",
            "edit",
            _argument(picture.name),
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
    return name if score is None else f"{name} (probe score {score:.2f})"


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
    told = ", ".join(f"{_safe(name)} {spread[name]:+.2f}" for name in others)
    own = ", ".join(f"{_safe(name)} {spread[name]:+.2f}" for name in wanted)
    return f"Read again from the edited picture by the probe: **{own}**. What else changed: {told}."


# ---------------------------------------------------------------- look inside


def _inside_tab(bench: Workbench, options: PageOptions, layout: ChunkLayout, tab: gr.Tab) -> None:
    image, word = _chooser("Picture", EXAMPLES[0][0], prefix="inside-")
    with gr.Row():
        original, rec = _picture("As the model sees it", "inside-original"), _picture("Reconstruction", "inside-rec")
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

        picture = bench.picture(*_source(file, text))
        said = f"Reconstruction {_decibels(picture.psnr)} at {bench.settings.decode_steps} steps; "
        said += f"{layout.latent_dim} features in {layout.chunks} chunks."
        shown = [
            _enlarged(picture.original),
            _enlarged(picture.reconstruction),
            said,
            feature_bars(bench.by_chunk(picture)),
        ]
        if options.neighbours is not None:
            chosen = layout.parse(spec) if spec.strip() else range(layout.chunks)
            dims = np.flatnonzero(layout.dim_mask(tuple(chosen)))
            shown.append([[name, round(far, 3)] for name, far in options.neighbours.find(picture.latents.z[0], dims)])
        return shown

    gr.on(
        [tab.select, *(part.change for part in inputs)],
        _said(show),
        inputs,
        outputs,
        concurrency_id="model",
        concurrency_limit=1,
        api_visibility="private",
    )


def _effects_table(options: PageOptions) -> str:
    """Markdown: what each group of chunks moves most."""
    head = "| chunks | moves (transfer rate of the attribute) |\n|---|---|\n"
    rows = []
    for group in options.groups:
        moves = _moves(group[0], options, most=4)
        rows.append(f"| {group[0]}-{group[-1]} | {_safe(moves) or 'nothing that was measured'} |")
    return "### What exchanging chunks moves\n\nMeasured by `diti evaluate --atlas`.\n\n" + head + "\n".join(rows)


# ---------------------------------------------------------------- parts


def _chooser(title: str, face: str, prefix: str = "") -> tuple[gr.Image, gr.Textbox]:
    low = prefix + title.lower()
    with gr.Column():
        image = gr.Image(
            label=title,
            type="filepath",
            format="png",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=150,
            elem_id=f"upload-{low}",
        )
        # Not opened by Gradio, which would drop alpha and clip 16 bits: diti's own reader does neither. (A subclass
        # would be tidier, but Gradio writes a stub file beside the module of every subclass.)
        image.preprocess = lambda payload: None if payload is None else str(payload.path)
        word = gr.Textbox(face, label=f"{title} without an upload: faces:INDEX", max_length=60, elem_id=f"word-{low}")
    return image, word


def _download(title: str, name: str) -> tuple[gr.Button, gr.DownloadButton]:
    """A button, and what holds its file once that is made: Gradio's own button hands out what it held before."""
    return gr.Button(title, elem_id=name), gr.DownloadButton(title, visible="hidden", elem_id=f"{name}-file")


def _picture(title: str, name: str) -> gr.Image:
    return gr.Image(
        label=title,
        format="png",
        interactive=False,
        elem_id=name,
        elem_classes=["pixelated"],
        buttons=["download", "fullscreen"],
    )


def _source(file: str | None, word: str) -> tuple[str, str | None]:
    """(what to read, what to call it)."""
    return (file, clean(Path(file).name)[:_MAX_NAME]) if file else (_face(word), None)


def _face(word: str) -> str:
    from diticli.editing.inputs import face_of
    from diticli.errors import DataError

    text = word.strip()
    if face_of(text) is None:  # a path typed here would open files of this machine
        raise DataError(f"{text[:_MAX_NAME]!r} is no built-in face.", remedy="Write faces:INDEX, or upload a picture.")
    return text


def _argument(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name


def _enlarged(pixels: Pixels) -> Any:
    return np.asarray(magnified(pixels, max(1, round(_SIDE / pixels.shape[0]))))


def _status(text: str, a: Picture, b: Picture, preview: bool) -> str:
    low = min(a.psnr, b.psnr)
    warning = " **The model hardly knows pictures like these: expect poor edits.**" if low < 20 else ""
    return text + warning + (" Preview ..." if preview else "")


def _decibels(psnr: float) -> str:
    return "exact" if math.isinf(psnr) else f"{psnr:.1f} dB"


def _moves(chunk: int, options: PageOptions, most: int = 1) -> str:
    for at, group in enumerate(options.groups):
        if chunk in group:
            strong = sorted(
                ((rates[at], name) for name, rates in options.effects.items() if rates[at] >= 0.1), reverse=True
            )
            return ", ".join(f"{name} {rate:.2f}" for rate, name in strong[:most])
    return ""


def _safe(text: str) -> str:
    """For Markdown tables and HTML."""
    return html.escape(text).replace("|", "&#124;").replace("*", "&#42;").replace("`", "&#96;").replace("[", "&#91;")


def _metadata(bench: Workbench, command: str) -> dict[str, str]:
    return {
        "diti:version": __version__,
        "diti:command": command,
        "diti:model": bench.model.model_hash,
        **bench.settings.describe(bench.model.chunks.timesteps),
    }


def _scratch(name: str) -> Path:
    """A new place in the private folder."""
    folder = Path(tempfile.gettempdir()) / uuid.uuid4().hex
    folder.mkdir(mode=0o700)
    return folder / name


def _message(error: DiTiError) -> gr.Error:
    said = f"{error.message} {error.remedy or ''}".strip()
    if isinstance(error, UnreadableImageError):  # not where the upload lies on this machine
        said = f"{clean(Path(error.file).name)[:_MAX_NAME]} cannot be read: {error.reason}."
    return gr.Error(html.escape(said), print_exception=False)


def _said(work: Callable[..., T]) -> Callable[..., T]:
    """Errors of diti become messages on the page."""

    @wraps(work)
    def run(*values: Any) -> T:
        try:
            return work(*values)
        except DiTiError as error:
            raise _message(error) from None

    return run


def _kept_running(work: Callable[..., Iterator[list[Any]]], outputs: int) -> Callable[..., Iterator[list[Any]]]:
    """As `_said`, of a generator; superseded work ends without a word and leaves the page as it is."""

    def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        try:
            yield from work(str(request.session_hash), *values)
        except SupersededError:
            yield [gr.skip()] * outputs
        except DiTiError as error:
            raise _message(error) from None

    return run
