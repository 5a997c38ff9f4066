"""A self-contained HTML report: text, tables, inline pictures; no external resource, and no script but for sorting."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from diticli._version import __version__
from diticli.errors import DataError
from diticli.pictures.captions import clean
from diticli.pictures.files import write_atomically

Cell = str | int | float | None

STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --paper: #ffffff; --line: #d5d9de;
  --block: #f4f6f8; --accent: #2463b4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --soft: #9aa4af; --paper: #14171b;
  --line: #333a42; --block: #1e2329; --accent: #7fb0ee; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
td.number, th.number { text-align: right; }
pre { overflow-x: auto; padding: .8rem 1rem; background: var(--block); border-radius: 4px;
  font-size: .88rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; }
th.sort { cursor: pointer; }
th.sort::after { content: " \\2195"; opacity: .5; }
th[aria-sort="ascending"]::after { content: " \\2191"; opacity: 1; }
th[aria-sort="descending"]::after { content: " \\2193"; opacity: 1; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""

# Without it tables stay as they were written; what lacks a number goes last either way.
SORT_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const sort = () => {
      const text = row => row.cells[column].textContent;
      const rows = [...body.rows], known = rows.map(text).filter(cell => cell !== "\u2013");
      const numeric = known.every(cell => !isNaN(parseFloat(cell)));
      const sorted = head.getAttribute("aria-sort") || (numeric ? "ascending" : "descending");
      const sign = sorted === "descending" ? 1 : -1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      rows.sort((one, other) => {
        if (!numeric) return sign * text(one).localeCompare(text(other));
        const [a, b] = [parseFloat(text(one)), parseFloat(text(other))];
        return isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) : sign * (a - b);
      });
      body.append(...rows);
    };
    head.classList.add("sort");
    head.tabIndex = 0;
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""


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
    """

    title: str
    text: str = ""
    picture: Image.Image | bytes | Path | None = None
    caption: str = ""
    table: tuple[Sequence[str], Sequence[Sequence[Cell]]] | None = None
    sortable: bool = False
    code: str | None = None


def write_report(path: Path | str, *, title: str, sections: Sequence[Section]) -> Path:
    """Write the report as one HTML file, beside its place and then renamed into it.

    All text is escaped. Missing folders are made.

    Raises:
        DataError: when a picture cannot be read, or the file cannot be written.
    """
    path = Path(path)
    page = _page(title, sections).encode("utf-8")
    return write_atomically(path, "report", lambda beside: beside.write_bytes(page))


def _page(title: str, sections: Sequence[Section]) -> str:
    body = "\n".join(_section(section) for section in sections)
    script = f"<script>{SORT_SCRIPT}</script>\n" if any(section.sortable for section in sections) else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="diti {escape(__version__)}">
<title>{_text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{_text(title)}</h1>
{body}
<footer>Written by diti {escape(__version__)}.</footer>
</main>
{script}</body>
</html>
"""


def _section(section: Section) -> str:
    parts = [f"<h2>{_text(section.title)}</h2>"]
    parts += [f"<p>{_text(paragraph)}</p>" for paragraph in section.text.split("\n\n") if paragraph.strip()]
    if section.picture is not None:
        data, size = _png(section.picture)
        encoded = base64.b64encode(data).decode("ascii")
        alternative = _text(section.caption or section.title)
        image = f'<img src="data:image/png;base64,{encoded}" {size} alt="{alternative}">'
        legend = f"<figcaption>{_text(section.caption)}</figcaption>" if section.caption else ""
        parts.append(f"<figure>{image}{legend}</figure>")
    if section.table is not None:
        parts.append(_table(*section.table, sortable=section.sortable))
    if section.code is not None:
        parts.append(f"<pre><code>{_text(section.code)}</code></pre>")
    return "<section>\n" + "\n".join(parts) + "\n</section>"


def _png(picture: Image.Image | bytes | Path) -> tuple[bytes, str]:
    """A PNG's bytes, and its width and height as attributes so that the page does not jump while it loads."""
    try:
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            data = buffer.getvalue()
        else:
            data = picture if isinstance(picture, bytes) else picture.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return data, f'width="{image.width}" height="{image.height}"'
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        source = picture if isinstance(picture, Path) else "a picture"
        raise DataError(
            f"Cannot put {source} into the report: {getattr(error, 'strerror', None) or error}.", remedy="Give a PNG."
        ) from error


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False) -> str:
    """A table in a box that scrolls sideways; a column of numbers is set to the right, heading included."""
    numeric = [bool(rows) and all(isinstance(row[c], int | float | None) for row in rows) for c in range(len(columns))]
    kinds = [' class="number"' if flag else "" for flag in numeric]
    head = "".join(f"<th{kind}>{_text(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(v)}</td>" for v, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    mark = ' class="sortable"' if sortable else ""
    table = f"<table{mark}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else _text(str(value))


def _text(text: str) -> str:
    return escape(clean(text), quote=True)
