"""How two images differ, magnified so that it can be seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from diticli.pictures.captions import INK, Caption
from diticli.pictures.charts import check_matplotlib
from diticli.pictures.strips import GAP, PAD
from diticli.pictures.tiles import PAPER, Pixels

LARGEST = 255
GAINS = (1, 2, 4, 8, 16, 32)
BAR_WIDTH, BAR_HEIGHT = 192, 12


def difference_gain(pairs: Iterable[tuple[Pixels, Pixels]]) -> int:
    """The largest magnification of 1, 2, 4 .. 32 that saturates at most 5 % of the pixels of any pair."""
    peaks = [float(np.percentile(_distance(a, b), 95)) for a, b in pairs]
    peak = max(peaks, default=0.0)
    return max((gain for gain in GAINS if gain * peak <= LARGEST), default=GAINS[0])


def difference_map(image: Pixels, reference: Pixels, gain: int) -> Pixels:
    """Mean absolute difference over the channels, uint8 [H, W, 3]: paper for none, dark for 255 / gain and more.

    Shades go with the square root of the difference, so that small ones are seen beside large ones.
    """
    share = np.minimum(_distance(image, reference) * gain / LARGEST, 1.0)
    return _colours((np.sqrt(share) * LARGEST).round().astype(np.uint8))


def with_colour_bar(picture: Image.Image, gain: int, text: str) -> Image.Image:
    """The picture, and below it a text and a bar of the colours of its maps: 0 to 255 / gain grey levels."""
    about = Caption(text, picture.width - 2 * PAD)
    # Half of the way in colours is a quarter of the largest difference.
    quarter = Caption(f"{LARGEST / gain / 4:.0f}", BAR_WIDTH)
    low, high = Caption("0", BAR_WIDTH), Caption(f"{LARGEST // gain} of {LARGEST}", BAR_WIDTH)
    bar = picture.height + about.height + GAP
    numbers = bar + BAR_HEIGHT + GAP // 2
    canvas = Image.new("RGB", (picture.width, numbers + high.height + PAD), PAPER)
    canvas.paste(picture, (0, 0))
    shade = np.linspace(0, LARGEST, BAR_WIDTH).round().astype(np.uint8)
    canvas.paste(Image.fromarray(_colours(np.tile(shade, (BAR_HEIGHT, 1)))), (PAD, bar))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((PAD, bar, PAD + BAR_WIDTH - 1, bar + BAR_HEIGHT - 1), outline=INK)
    about.draw(draw, PAD, picture.height)
    low.draw(draw, PAD, numbers)
    quarter.draw(draw, PAD + (BAR_WIDTH - quarter.width) // 2, numbers)
    high.draw(draw, PAD + BAR_WIDTH - high.width, numbers)
    return canvas


def _colours(shade: npt.NDArray[np.uint8]) -> Pixels:
    check_matplotlib()
    from matplotlib import colormaps

    colours: Pixels = (np.asarray(colormaps["Reds"](shade))[..., :3] * 255).round().astype(np.uint8)
    return colours


def _distance(image: Pixels, reference: Pixels) -> npt.NDArray[np.float64]:
    distance: npt.NDArray[np.float64] = np.abs(image.astype(np.float64) - reference.astype(np.float64)).mean(axis=-1)
    return distance
