"""Animated WebP and GIF files that carry their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from diticli.errors import ConfigError
from diticli.files import write_atomically
from diticli.pictures.captions import Caption
from diticli.pictures.metadata import exif, note
from diticli.pictures.strips import ACCENT, PAD
from diticli.pictures.tiles import PAPER

FORMATS = {".webp": "WEBP", ".gif": "GIF"}
SWEEP_MS, HOLD_MS = 1600, 900
SLOWEST_MS, FASTEST_MS = 400, 60
RAIL, KNOB = "#d5d9de", 5
LABEL_WIDTH = 110


def check_animation(path: Path) -> str:
    """The format that a file name asks for.

    Raises:
        ConfigError: when it is neither .webp nor .gif.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"An animation is a .webp or a .gif, not {path.name!r}.", remedy=f"Write {path.stem or 'edit'}.webp."
        )
    return FORMATS[path.suffix.lower()]


def with_slider(picture: Image.Image, text: str, position: float) -> Image.Image:
    """The picture above a slider that stands at `position` (0..1) and says `text`."""
    label = Caption(text, LABEL_WIDTH)
    height = max(label.height, 2 * KNOB) + PAD
    canvas = Image.new("RGB", (picture.width, picture.height + height), PAPER)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    middle = picture.height + (height - PAD) // 2
    label.draw(draw, PAD, middle - label.height // 2)
    left, right = PAD + LABEL_WIDTH + KNOB, picture.width - PAD - KNOB
    if right > left:
        x = left + round(position * (right - left))
        draw.line((left, middle, right, middle), fill=RAIL, width=3)
        draw.ellipse((x - KNOB, middle - KNOB, x + KNOB, middle + KNOB), fill=ACCENT)
    return canvas


def save_animation(frames: Sequence[Image.Image], path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write the frames forth and back in an endless loop, resting at both ends.

    The metadata goes, as JSON, into a WebP's EXIF image description and a GIF's comment.

    Args:
        frames: RGB images of one size, at least one.
        path: ends with .webp (lossless) or .gif (256 colours a frame).
        metadata: what the pictures are.

    Raises:
        ConfigError: for another suffix.
        DataError: when the file cannot be written.
    """
    path = Path(path)
    kind = check_animation(path)
    order = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    step = min(SLOWEST_MS, max(FASTEST_MS, SWEEP_MS // max(1, len(frames) - 1)))
    durations = [HOLD_MS if i in (0, len(frames) - 1) else step for i in order]
    options: dict[str, Any] = {"save_all": True, "loop": 0, "duration": durations}
    if kind == "WEBP":
        options |= {"lossless": True, "quality": 70, "method": 4, "exif": exif(metadata)}
    else:
        options |= {"comment": note(metadata).encode("ascii"), "optimize": False, "disposal": 1}
    first, *others = (frames[i] for i in order)
    return write_atomically(
        path, "animation", lambda file: first.save(file, format=kind, append_images=others, **options)
    )
