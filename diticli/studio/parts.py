"""What the tabs of the page share: choosers, pictures, messages, and which work is out of date."""

from __future__ import annotations

import html
import math
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import numpy as np

from diticli._version import __version__
from diticli.data.images import UnreadableImageError
from diticli.errors import DiTiError
from diticli.pictures.captions import clean
from diticli.pictures.tiles import Pixels, magnified
from diticli.reading import printable, shortened
from diticli.studio.neighbours import Neighbours
from diticli.studio.workbench import Picture, SupersededError, Workbench

EXAMPLES = (("faces:3", "faces:8"), ("faces:0:1", "faces:5:1"), ("faces:11", "faces:42"))
_SIDE = 288
_MAX_NAME = 60
_ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\"'|*_`[]$~\\#!:"}
NOW = "(...values) => [...values.slice(0, -1), performance.now()]"
PRIVATE = {"api_visibility": "private"}
ON_MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
"""Of an event that runs the model: one at a time."""
AT_ONCE = {"queue": False, "show_progress": "hidden", **PRIVATE}
"""Of an event that only changes the page."""
CLICK = "() => setTimeout(() => document.querySelector('#{0}').click(), 100)"

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


def chooser(title: str, face: str, prefix: str = "") -> tuple[gr.Image, gr.Textbox]:
    """An upload, and a word for a built-in face beside it."""
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


def download_button(title: str, name: str) -> tuple[gr.Button, gr.DownloadButton]:
    """A button, and what holds its file once that is made: Gradio's own button hands out what it held before."""
    return gr.Button(title, elem_id=name), gr.DownloadButton(title, visible="hidden", elem_id=f"{name}-file")


def picture_out(title: str, name: str) -> gr.Image:
    """A picture that is shown, sharp however large."""
    return gr.Image(
        label=title,
        format="png",
        interactive=False,
        elem_id=name,
        elem_classes=["pixelated"],
        buttons=["download", "fullscreen"],
    )


def source_of(file: str | None, word: str) -> tuple[str, str | None]:
    """(what to read, what to call it)."""
    return (file, clean(Path(file).name)[:_MAX_NAME]) if file else (face_word(word), None)


def face_word(word: str) -> str:
    """The word for a built-in face.

    Raises:
        DataError: for anything else: a path typed here would open files of this machine.
    """
    from diticli.editing.inputs import face_of
    from diticli.errors import DataError

    text = word.strip()
    if face_of(text) is None:
        raise DataError(f"{text[:_MAX_NAME]!r} is no built-in face.", remedy="Write faces:INDEX, or upload a picture.")
    return text


def as_argument(name: str) -> str:
    """A file's name as an argument of a command."""
    return f"./{name}" if name.startswith("-") else name


def enlarged(pixels: Pixels) -> Any:
    """A small picture, its pixels large."""
    return np.asarray(magnified(pixels, max(1, round(_SIDE / pixels.shape[0]))))


def quality_text(text: str, a: Picture, b: Picture, preview: bool) -> str:
    """How well both pictures are given back, and a warning where edits cannot be good."""
    low = min(a.psnr, b.psnr)
    warning = " **The model hardly knows pictures like these: expect poor edits.**" if low < 20 else ""
    return text + warning + (" Preview ..." if preview else "")


def decibel_text(psnr: float) -> str:
    """A PSNR with its unit."""
    return "exact" if math.isinf(psnr) else f"{psnr:.1f} dB"


def strongest_moves(chunk: int, options: PageOptions, most: int = 1) -> str:
    """What exchanging a chunk moves most, with transfer rates; "" where nothing was measured."""
    for at, group in enumerate(options.groups):
        if chunk in group:
            strong = sorted(
                ((rates[at], name) for name, rates in options.effects.items() if rates[at] >= 0.1), reverse=True
            )
            return ", ".join(f"{name} {rate:.2f}" for rate, name in strong[:most])
    return ""


def named(text: str) -> str:
    """A name from a file where the page shows plain text: in one line, without controls, at most 200 characters."""
    return shortened(printable(text))


def safe(text: str) -> str:
    """The same for Markdown tables and HTML."""
    return named(text).translate(_ESCAPED)


def provenance(bench: Workbench, command: str) -> dict[str, str]:
    """What a downloaded picture says about how it was made."""
    return {
        "diti:version": __version__,
        "diti:command": command,
        "diti:model": bench.model.model_hash,
        **bench.settings.describe(bench.model.chunks.timesteps),
    }


def scratch(name: str) -> Path:
    """A new place in the private folder."""
    folder = Path(tempfile.gettempdir()) / uuid.uuid4().hex
    folder.mkdir(mode=0o700)
    return folder / name


def _message(error: DiTiError) -> gr.Error:
    said = f"{error.message} {error.remedy or ''}".strip()
    if isinstance(error, UnreadableImageError):  # not where the upload lies on this machine
        said = f"{clean(Path(error.file).name)[:_MAX_NAME]} cannot be read: {error.reason}."
    return gr.Error(html.escape(printable(said)), print_exception=False)


def said_in_words(work: Callable[..., T]) -> Callable[..., T]:
    """Errors of diti become messages on the page."""

    @wraps(work)
    def run(*values: Any) -> T:
        try:
            return work(*values)
        except DiTiError as error:
            raise _message(error) from None

    return run


def follow_changes(
    place: str,
    changes: Changes,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    show: Callable[..., Iterator[list[Any]]],
    first: Callable[..., Any],
    **options: Any,
) -> None:
    """Show anew whenever an input changes; work that a later change of the same visitor overtakes ends early.

    Args:
        place: where, among the visitor's changes.
        changes: of all visitors.
        inputs: components whose values `show` gets.
        outputs: components that take each list that `show` yields.
        show: called with a function that tells whether the work is overtaken, and the values.
        first: the event by which they are first shown.
        options: of that event.
    """
    stamped = [*inputs, gr.Number(0, visible=False)]

    def note(request: gr.Request, *values: Any) -> None:
        changes.note(str(request.session_hash), place, values[-1])

    def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        stale = partial(changes.is_stale, str(request.session_hash), place, values[-1])
        if stale():
            return
        try:
            yield from show(stale, *values[:-1])
        except SupersededError:
            yield [gr.skip()] * len(outputs)
        except DiTiError as error:
            raise _message(error) from None

    for component in inputs:
        component.change(note, stamped, None, js=NOW, **AT_ONCE)
        component.change(run, stamped, outputs, js=NOW, trigger_mode="multiple", **ON_MODEL, **PRIVATE)
    first(run, stamped, outputs, **ON_MODEL, **(options or PRIVATE))
