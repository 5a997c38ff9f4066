"""Text in pictures: small captions that shrink, wrap, and are never cut."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageDraw, ImageFont

from diticli.reading import printable

INK = "#1f2328"
SIZES = (13, 12, 11, 10)
PIECE = r"[^ ,_/]*[,_/]? ?"  # where a line may end: after a space, and in lists and file names
LONGEST = 1000
"""Characters of a text that pictures and pages show; a name from an archive or a table may have any number."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Caption:
    """A text laid out for a given width, in pixels.

    The largest of `sizes` that keeps every word whole is taken; where even the smallest does not, words
    are broken. Nothing is left out of a text that people would write (`LONGEST`).

    Attributes:
        width: of the widest line, 0 for an empty text.
        height: of all lines.
    """

    def __init__(self, text: str, max_width: int, sizes: Sequence[int] = SIZES) -> None:
        whole = cut(re.sub(r"[ \n\t]+", " ", clean(text)))
        pieces = [piece for piece in re.findall(PIECE, whole) if piece]
        fitting = (s for s in sizes if all(_font(s).getlength(piece.strip()) <= max_width for piece in pieces))
        self.font = _font(next(fitting, sizes[-1]))
        self.lines = _wrap(pieces, self.font, max_width)
        top, bottom = self.font.getbbox("Ál")[1], self.font.getbbox("Ágj")[3]
        self._line_height, self._rise = round(bottom - top) + 2, top
        self.width = math.ceil(max(map(self.font.getlength, self.lines), default=0))
        self.height = len(self.lines) * self._line_height

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int, *, centred: bool = False, ink: str = INK) -> None:
        """Draw with the upper left corner at (x, y)."""
        for i, line in enumerate(self.lines):
            indent = (self.width - self.font.getlength(line)) // 2 if centred else 0
            at = (x + indent, y + i * self._line_height - self._rise)
            draw.text(at, line, font=self.font, fill=ink)


def clean(text: str) -> str:
    """Text that can be drawn and stored: undecodable bytes of names, controls and direction marks become "?"."""
    return printable(text)


def cut(text: str) -> str:
    """The text with at most `LONGEST` characters."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


@cache
def _font(size: int) -> Font:
    """DejaVu Sans of matplotlib: Pillow's bundled font has neither accents nor Greek letters."""
    path = _font_file()
    if not path.is_file():
        return ImageFont.load_default(size)
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # Raqm refuses some texts


def _font_file() -> Path:
    """Where matplotlib keeps it; importing matplotlib to ask takes a tenth of a second."""
    inside = Path("fonts", "ttf", "DejaVuSans.ttf")
    package = find_spec("matplotlib")
    for folder in (package and package.submodule_search_locations) or ():
        if (path := Path(folder, "mpl-data", inside)).is_file():
            return path
    import matplotlib  # some distributions keep its data elsewhere

    return Path(matplotlib.get_data_path(), inside)


def _wrap(pieces: Sequence[str], font: Font, max_width: int) -> list[str]:
    lines: list[str] = []
    for piece in pieces:
        if lines and font.getlength((lines[-1] + piece).strip()) <= max_width:
            lines[-1] += piece
            continue
        lines.append("")
        for letter in piece:
            if lines[-1] and font.getlength((lines[-1] + letter).strip()) > max_width:
                lines.append("")
            lines[-1] += letter
    return [line.strip() for line in lines]
