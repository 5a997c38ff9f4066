"""One cartoon face from its ground-truth factors: Pillow shapes at four times the size, box-downsampled.

All lengths are fractions of the picture's side, so a face looks the same at every size; only the shapes'
edges snap to a quarter of a pixel. `diticli.data.faces` says what each factor means and draws it at random.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diticli.errors import ConfigError

Colour = tuple[int, int, int]

MIN_SIZE, MAX_SIZE = 16, 512
SUPERSAMPLING = 4

# Colours leave headroom: the bright side of the light may not clip, or hue and skin would lose information.
SKIN = ((96, 58, 38), (238, 188, 152))
HAIR = ((30, 24, 26), (224, 180, 94))
HAT, HAT_BAND = (176, 44, 52), (120, 24, 36)
SHIRT, INK, LIPS, EYE = (92, 104, 124), (26, 22, 30), (150, 40, 52), (222, 222, 220)

STRIPES = 8
LIGHT_CONTRAST = 0.34
FRECKLES = ((-0.62, 0.05), (-0.42, 0.0), (-0.5, 0.17), (-0.3, 0.16), (-0.7, 0.2))


def render_face(factors: npt.ArrayLike, size: int) -> npt.NDArray[np.uint8]:
    """Draw one face.

    Args:
        factors: [13] values in the order and ranges of `diticli.data.faces.FACTORS`.
        size: side of the picture in pixels, 16 to 512.

    Returns:
        [size, size, 3] uint8 RGB.

    Raises:
        ConfigError: for another size or another number of factors.
    """
    values = np.asarray(factors, dtype=np.float64)
    if values.shape != (13,):
        raise ConfigError(f"A face has 13 factors, got an array of shape {values.shape}.", remedy="Give [N, 13].")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"Faces cannot be {size} pixels wide.", remedy=f"Use {MIN_SIZE} to {MAX_SIZE}.")
    hue, light, skin, hair, width, x, long_hair, hat, glasses, smile, brows, freckles, stripes = values.tolist()

    image = Image.new("RGB", (size * SUPERSAMPLING,) * 2, _background(hue))
    pen = _Pen(image)
    skin_colour, hair_colour = _mix(*SKIN, skin), _mix(*HAIR, hair)
    shade = _mix(skin_colour, INK, 0.3)

    _draw_stripes(pen, _background(hue), stripes)
    _draw_body(pen, x, width, hair_colour if long_hair >= 0.5 else None, shade)
    _draw_head(pen, x, width, skin_colour, hair_colour)
    _draw_freckles(pen, x, width, _mix(skin_colour, (48, 14, 6), 0.7 * freckles))
    _draw_eyes(pen, x, width, brows)
    _draw_nose_and_mouth(pen, x, width, smile, shade)
    if glasses >= 0.5:
        _draw_glasses(pen, x, width)
    if hat >= 0.5:
        _draw_hat(pen, x, width)
    return _lit(np.asarray(image.reduce(SUPERSAMPLING)), light)


class _Pen:
    """Shapes in fractions of the picture's side."""

    def __init__(self, image: Image.Image) -> None:
        self._draw = ImageDraw.Draw(image)
        self._scale = image.width

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        s = self._scale
        self._draw.ellipse((s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry)), fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, colour: Colour, width: float) -> None:
        s = self._scale
        box = (s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry))
        self._draw.ellipse(box, outline=colour, width=max(1, round(s * width)))

    def dome(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """Upper half of an ellipse, flat side at height y."""
        s = self._scale
        self._draw.chord((s * (x - rx), s * (y - ry), s * (x + rx), s * (y + ry)), 180, 360, fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        s = self._scale
        self._draw.rectangle((s * left, s * top, s * right - 1, s * bottom - 1), fill=fill)

    def polygon(self, points: Sequence[tuple[float, float]], fill: Colour) -> None:
        s = self._scale
        self._draw.polygon([(s * px, s * py) for px, py in points], fill=fill)

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        s = self._scale
        flat = [(s * px, s * py) for px, py in points]
        self._draw.line(flat, fill=colour, width=max(1, round(s * width)), joint="curve")


def _draw_stripes(pen: _Pen, background: Colour, strength: float) -> None:
    colour = _mix(background, (0, 0, 0), 0.45 * strength)
    for i in range(STRIPES):
        pen.box(0, i / STRIPES, 1, (i + 0.5) / STRIPES, colour)


def _draw_body(pen: _Pen, x: float, width: float, long_hair: Colour | None, neck: Colour) -> None:
    if long_hair is not None:
        pen.ellipse(x, 0.52, width + 0.085, 0.36, long_hair)
        pen.box(x - width - 0.085, 0.52, x + width + 0.085, 0.88, long_hair)
    pen.dome(x, 1.04, 0.33, 0.21, SHIRT)
    pen.box(x - 0.085, 0.72, x + 0.085, 0.88, neck)
    pen.ellipse(x, 0.87, 0.085, 0.04, neck)


def _draw_head(pen: _Pen, x: float, width: float, skin: Colour, hair: Colour) -> None:
    pen.ellipse(x, 0.42, width + 0.03, 0.27, hair)
    for side in (-1, 1):
        pen.ellipse(x + side * width, 0.53, 0.035, 0.055, _mix(skin, INK, 0.12))
    pen.ellipse(x, 0.51, width, 0.29, skin)
    pen.dome(x, 0.37, width + 0.005, 0.2, hair)
    pen.polygon([(x - 0.9 * width, 0.36), (x - 0.2 * width, 0.36), (x - 0.75 * width, 0.46)], hair)


def _draw_freckles(pen: _Pen, x: float, width: float, colour: Colour) -> None:
    for dx, dy in FRECKLES:
        for side in (-1, 1):
            pen.ellipse(x + side * dx * width, 0.57 + 0.3 * dy, 0.011, 0.011, colour)


def _draw_eyes(pen: _Pen, x: float, width: float, brows: float) -> None:
    for side in (-1, 1):
        eye = x + side * 0.42 * width
        pen.ellipse(eye, 0.5, 0.046, 0.036, EYE)
        pen.ellipse(eye, 0.503, 0.026, 0.03, INK)
        inner, outer = eye - side * 0.055, eye + side * 0.06
        top = 0.432 - brows
        pen.polygon([(inner, top - 0.002), (outer, top + 0.008), (outer, 0.438), (inner, 0.432)], INK)


def _draw_nose_and_mouth(pen: _Pen, x: float, width: float, smile: float, shade: Colour) -> None:
    pen.polygon([(x, 0.52), (x + 0.03, 0.61), (x - 0.03, 0.61)], shade)
    half, bend = 0.45 * width, 0.038 * smile
    steps = [i / 4 - 1 for i in range(9)]
    pen.line([(x + half * u, 0.69 + bend * (1 - 2 * u * u)) for u in steps], LIPS, 0.028)


def _draw_glasses(pen: _Pen, x: float, width: float) -> None:
    for side in (-1, 1):
        eye = x + side * 0.42 * width
        pen.ring(eye, 0.505, 0.078, 0.07, INK, 0.018)
        pen.line([(eye + side * 0.078, 0.495), (x + side * width, 0.48)], INK, 0.016)
    pen.line([(x - 0.42 * width + 0.07, 0.495), (x + 0.42 * width - 0.07, 0.495)], INK, 0.018)


def _draw_hat(pen: _Pen, x: float, width: float) -> None:
    pen.ellipse(x, 0.09, 0.035, 0.035, HAT_BAND)
    pen.dome(x, 0.31, width + 0.035, 0.22, HAT)
    pen.box(x - width - 0.05, 0.28, x + width + 0.05, 0.345, HAT_BAND)


def _background(hue: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.5, 0.78)
    return round(255 * red), round(255 * green), round(255 * blue)


def _mix(a: Colour, b: Colour, amount: float) -> Colour:
    """`a` at amount 0, `b` at amount 1."""
    red, green, blue = (round(p + (q - p) * amount) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _lit(pixels: npt.NDArray[np.uint8], light: float) -> npt.NDArray[np.uint8]:
    """Shade the picture from one side to the other; light > 0 comes from the right."""
    gain = 0.88 + LIGHT_CONTRAST * light * _ramp(pixels.shape[1])
    return np.clip(pixels * gain + 0.5, 0, 255).astype(np.uint8)


@lru_cache(maxsize=16)
def _ramp(size: int) -> npt.NDArray[np.float32]:
    """[1, size, 1] from -1 at the left edge to 1 at the right."""
    return np.linspace(-1, 1, size, dtype=np.float32)[None, :, None]
