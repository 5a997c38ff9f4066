"""How two images differ, magnified so that it can be seen."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from diticli.pictures.tiles import Pixels

BRIGHTEST = 255
GAINS = (1, 2, 4, 8, 16, 32)


def difference_gain(pairs: Iterable[tuple[Pixels, Pixels]]) -> int:
    """The largest magnification of 1, 2, 4 .. 32 that saturates at most 5 % of the pixels of any pair."""
    peaks = [float(np.percentile(_distance(a, b), 95)) for a, b in pairs]
    peak = max(peaks, default=0.0)
    return max((gain for gain in GAINS if gain * peak <= BRIGHTEST), default=GAINS[0])


def difference_map(image: Pixels, reference: Pixels, gain: int) -> Pixels:
    """Mean absolute difference over the channels, uint8 [H, W, 3]: black for none, bright for 255 / gain and more."""
    from matplotlib import colormaps

    shade = np.minimum(_distance(image, reference) * gain, BRIGHTEST).round().astype(np.uint8)
    colours: Pixels = (np.asarray(colormaps["magma"](shade))[..., :3] * 255).round().astype(np.uint8)
    return colours


def scale_text(gain: int) -> str:
    """What a map's colours mean, e.g. "×4: black 0, bright 63 of 255"."""
    return f"×{gain}: black 0, bright {BRIGHTEST // gain} of {BRIGHTEST}"


def _distance(image: Pixels, reference: Pixels) -> npt.NDArray[np.float64]:
    distance: npt.NDArray[np.float64] = np.abs(image.astype(np.float64) - reference.astype(np.float64)).mean(axis=-1)
    return distance
