"""A self-contained HTML report: text, tables, inline pictures; no external resource, and no script but for sorting."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from diticli._version import __version__
from diticli.errors import DataError
from diticli.files import write_atomically
from diticli.pictures.captions import clean, cut

Cell = str | int | float | None

GLOSSARY = {
    "chunk": "chunk",
    "timestep": "timestep",
    "probe": "probe",
    "skill": "probe",
    "transfer rate": "transfer-rate",
    "half-life": "half-life",
    "gain centre": "centre",
    "own-skill centre": "centre",
    "transfer centre": "centre",
}
"""Words that sections link, and where the glossary explains them."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report, shown in the order title, text, picture, table, code.

    Attributes:
        title: its heading.
        text: paragraphs, separated by blank lines.
        picture: a PIL image, the bytes of a PNG, or the path of one.
        caption: what the picture shows, for those who cannot see it (default: the title).
        table: (columns, rows); numbers are set to the right, floats with three decimals, None as a dash.
        sortable: whether a click on a heading of the table sorts it, numbers by value.
        code: shown as it is.
        words: of `GLOSSARY`, linked to the glossary at the end of the page.
    """

    title: str
    text: str = ""
    picture: Image.Image | bytes | Path | None = None
    caption: str = ""
    table: tuple[Sequence[str], Sequence[Sequence[Cell]]] | None = None
    sortable: bool = False
    code: str | None = None
    words: Sequence[str] = ()


def write_report(path: Path | str, *, title: str, sections: Sequence[Section]) -> Path:
    """Write the report as one HTML file, beside its place and then renamed into it.

    All text is escaped. Missing folders are made.

    Raises:
        DataError: when a picture cannot be read, or the file cannot be written.
    """
    path = Path(path)
    page = _page(title, sections).encode("utf-8")
    return write_atomically(path, "report", page)


@cache
def _template() -> jinja2.Template:
    """The page; what is put into it is escaped, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2")


def _page(title: str, sections: Sequence[Section]) -> str:
    shown = [_shown(section) for section in sections]
    return _template().render(title=cut(clean(title)), sections=shown, version=__version__)


def _shown(section: Section) -> dict[str, Any]:
    """A section as the template takes it."""
    return {
        "title": cut(clean(section.title)),
        "text": clean(section.text),
        "caption": cut(clean(section.caption)),
        "picture": None if section.picture is None else _png(section.picture),
        "table": None if section.table is None else _table(*section.table),
        "sortable": section.sortable,
        "code": None if section.code is None else clean(section.code),
        "words": {word: GLOSSARY[word] for word in section.words},
    }


def _png(picture: Image.Image | bytes | Path) -> dict[str, Any]:
    """A PNG as text, and its width and height, so that the page does not jump while it loads."""
    try:
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            data = buffer.getvalue()
        else:
            data = picture if isinstance(picture, bytes) else picture.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            size = {"width": image.width, "height": image.height}
        return {"base64": base64.b64encode(data).decode("ascii"), **size}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        source = picture if isinstance(picture, Path) else "a picture"
        raise DataError(
            f"Cannot put {source} into the report: {getattr(error, 'strerror', None) or error}.", remedy="Give a PNG."
        ) from error


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> dict[str, Any]:
    """Headings, which know whether all cells below them are numbers, and the texts of all cells."""
    numeric = [bool(rows) and all(_is_number(row[c]) for row in rows) for c in range(len(columns))]
    heads = [{"name": cut(clean(name)), "numeric": flag} for name, flag in zip(columns, numeric, strict=True)]
    return {"columns": heads, "rows": [[_cell(value) for value in row] for row in rows]}


def _is_number(value: Cell) -> bool:
    try:
        return value is None or math.isfinite(float(value))
    except ValueError:
        return False


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else cut(clean(str(value)))
