"""What the tabs of the page share: choosers, pictures, messages, and which work is out of date."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from diticli.data.images import UnreadableImageError
from diticli.errors import DataError, DiTiError
from diticli.pictures.captions import clean, cut
from diticli.pictures.grids import save_png
from diticli.pictures.tiles import Pixels
from diticli.reading import printable, shortened
from diticli.studio.neighbours import Neighbours
from diticli.studio.workbench import Picture, SupersededError

EXAMPLES = (("faces:3", "faces:8"), ("faces:0:1", "faces:5:1"), ("faces:11", "faces:42"))
KEPT_OUTPUTS = 1000
"""Changes of all visitors whose pictures stay on the disk: the last ones."""
_GONE = 1000
_MAX_NAME = 60
_ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "&<>\"'|*_`[]$~\\#!:"}
_NOW = "(...values) => [...values.slice(0, -1), performance.now()]"
_CLICK = "() => setTimeout(() => document.querySelector('#{0}').click(), 100)"
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
ON_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "minimal"}
"""Of an event that runs the model: one at a time, in one queue."""
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
"""Of an event that only changes the page."""

Show = Callable[..., Iterator[list[Any]]]
"""(stale, values of the inputs) -> what the outputs show."""


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
        features: how `--features` was given.
        heatmaps: title and file of each picture of what chunks hold and move.
    """

    title: str
    model: str
    effects: Mapping[str, Sequence[float]]
    groups: Sequence[Sequence[int]]
    scores: Mapping[str, float]
    probe: str | None = None
    neighbours: Neighbours | None = None
    features: str | None = None
    heatmaps: Sequence[tuple[str, Path]] = ()


class Changes:
    """When each visitor changed something last, by the clock of the visitor's page: older work can end early."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def note(self, session: str, place: str, when: float) -> None:
        """Something was changed at `place`; requests may arrive in another order than they were sent."""
        with self._lock:
            self._gone.pop(session, None)
            self._last[session, place] = max(when, self._last.get((session, place), when))

    def is_stale(self, session: str, place: str, when: float) -> bool:
        """Whether something was changed since, or the visitor has left."""
        with self._lock:
            return session in self._gone or self._last.get((session, place), when) > when

    def arrive(self, session: str) -> None:
        """A request of the visitor begins: the page is open, or open again after the connection was lost."""
        with self._lock:
            self._gone.pop(session, None)

    def has_left(self, session: str) -> bool:
        """Whether the visitor has closed the page."""
        with self._lock:
            return session in self._gone

    def leave(self, session: str) -> None:
        """The visitor has closed the page: what still runs for it is stale, and nothing else is kept of it."""
        with self._lock:
            for key in [key for key in self._last if key[0] == session]:
                del self._last[key]
            self._gone[session] = None
            while len(self._gone) > _GONE:
                self._gone.popitem(last=False)


def follow_changes(
    place: str,
    changes: Changes,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    show: Show,
    first: Callable[..., Any],
    **options: Any,
) -> None:
    """Show anew whenever an input changes; work that a later change of the same visitor overtakes ends early.

    Args:
        place: where, among the visitor's changes.
        changes: of all visitors.
        inputs: components whose values `show` gets.
        outputs: components that take each list that `show` yields.
        show: called with a function that says whether the work is overtaken or its visitor gone, and the values.
        first: the event by which they are first shown.
        options: of that event.
    """
    stamped = [*inputs, gr.Number(0, visible=False)]

    def note(request: gr.Request, *values: Any) -> None:
        changes.note(str(request.session_hash), place, values[-1])

    def run(request: gr.Request, *values: Any) -> Iterator[list[Any]]:
        session = str(request.session_hash)
        changes.arrive(session)
        stale = partial(changes.is_stale, session, place, values[-1])
        if stale():
            return
        try:
            yield from show(stale, *values[:-1])
        except SupersededError:
            yield [gr.skip()] * len(outputs)
        except DiTiError as error:
            raise _message(error) from None

    for component in inputs:
        component.change(note, stamped, None, js=_NOW, **AT_ONCE)
        component.change(run, stamped, outputs, js=_NOW, trigger_mode="multiple", **ON_MODEL, **PRIVATE)
    first(run, stamped, outputs, **ON_MODEL, **(options or PRIVATE))


def on_click(changes: Changes, button: gr.Button, make: Callable[..., Any], inputs: Any, outputs: Any) -> Any:
    """Run `make(stale, values)` at a click; it ends early when the visitor leaves. Returns the event."""

    def run(request: gr.Request, *values: Any) -> Any:
        session = str(request.session_hash)
        changes.arrive(session)
        try:
            return make(partial(changes.has_left, session), *values)
        except SupersededError:
            return [gr.skip()] * len(outputs) if isinstance(outputs, list) else gr.skip()
        except DiTiError as error:
            raise _message(error) from None

    return button.click(run, inputs, outputs, **ON_MODEL, **PRIVATE)


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


def download(changes: Changes, title: str, name: str, make: Callable[..., str], inputs: Sequence[Any]) -> None:
    """A button that hands out the file that `make` writes: Gradio's own button hands out what it held before."""
    button, file = gr.Button(title, elem_id=name), gr.DownloadButton(title, visible="hidden", elem_id=f"{name}-file")
    on_click(changes, button, make, inputs, file).success(js=_CLICK.format(f"{name}-file"))


def picture_out(title: str, name: str) -> gr.Image:
    """A small picture that is shown large, its pixels sharp."""
    return gr.Image(
        label=title,
        format="png",
        interactive=False,
        elem_id=name,
        elem_classes=["pixelated"],
        min_width=90,
        buttons=["download", "fullscreen"],
    )


def source_of(file: str | None, word: str) -> tuple[str, str | None]:
    """(what to read, what to call it).

    Raises:
        DataError: for a word that is no built-in face, and for an upload that was deleted.
    """
    if file and not os.path.isfile(file):
        raise DataError("This upload is no longer here: uploads are deleted after an hour.", remedy="Upload it again.")
    return (file, clean(Path(file).name)[:_MAX_NAME]) if file else (face_word(word), None)


def face_word(word: str) -> str:
    """The word for a built-in face.

    Raises:
        DataError: for anything else: a path typed here would open files of this machine.
    """
    from diticli.editing.inputs import face_of

    text = word.strip()
    if face_of(text) is None:
        raise DataError(f"{text[:_MAX_NAME]!r} is no built-in face.", remedy="Write faces:INDEX, or upload a picture.")
    return text


def as_argument(name: str) -> str:
    """A file's name as an argument of a command."""
    return f"./{name}" if name.startswith("-") else name


def shown(pictures: Mapping[str, Pixels], metadata: Mapping[str, str]) -> list[str]:
    """Files for components that show pictures, by name without suffix: what their download buttons hand out."""
    folder = scratch().parent
    return [str(save_png(pixels, folder / f"{name}.png", metadata)) for name, pixels in pictures.items()]


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


def in_bold(warnings: Sequence[str]) -> str:
    """Warnings in Markdown, whole."""
    return "".join(f" **{cut(printable(' '.join(text.split()))).translate(_ESCAPED)}**" for text in warnings)


def resized(*pictures: Picture) -> str:
    """How files became what the model sees, in Markdown; "" where they were that."""
    return "".join(f" {safe(picture.name)}: {safe(picture.resized)}" for picture in pictures if picture.resized)


_made: deque[Path] = deque()


def scratch(name: str = "picture.png") -> Path:
    """A place in a new folder among the page's files; the oldest of these folders are deleted."""
    folder = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()) / uuid.uuid4().hex
    folder.mkdir(mode=0o700, parents=True)
    _made.append(folder)
    while len(_made) > KEPT_OUTPUTS:
        shutil.rmtree(_made.popleft(), ignore_errors=True)
    return folder / name


def _message(error: DiTiError) -> gr.Error:
    said = f"{error.message} {error.remedy or ''}".strip()
    if isinstance(error, UnreadableImageError):  # not where the upload lies on this machine
        said = f"{clean(Path(error.file).name)[:_MAX_NAME]} cannot be read: {error.reason}."
    return gr.Error(html.escape(printable(said)), print_exception=False)
