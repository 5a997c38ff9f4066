"""Pictures of more than 8 bits: which values are black and white, and the grey levels 0 to 255 between them.

Levels stay fractions until a picture is cut and resized; only then are they rounded to the 8 bits that networks get.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.config_groups import ValueRange
from diticli.errors import DataError

DEPTHS = (255, 1023, 4095, 16383, 65535)
"""Largest values of 8, 10, 12, 14 and 16 bits."""
SIXTEEN_BITS: ValueRange = (0.0, 65535.0)
"""Black and white of pictures of 16 bits where no range is known."""


def range_of_values(low: float, high: float, *, whole: bool, name: str) -> tuple[ValueRange, str]:
    """What is black and what is white in a set of pictures, and how that was found, in words.

    Args:
        low: least value of pictures spread over the set.
        high: largest.
        whole: whether the values are whole numbers.
        name: of the set.

    Raises:
        DataError: for values that no depth and no usual range holds.
    """
    if whole and low >= 0 and high <= 1:
        return (0.0, 1.0), f"{name}: values of 0 and 1 are taken as black and white."
    if whole and low >= 0 and high <= DEPTHS[-1]:
        top = next(depth for depth in DEPTHS if high <= depth)
        bits = (top + 1).bit_length() - 1
        return (0.0, float(top)), f"{name}: values up to {high:g} are taken as {bits} bits (0 to {top:,})."
    if not whole and low >= 0 and high <= 1:
        return (0.0, 1.0), f"{name}: fractions are taken as 0 (black) to 1 (white)."
    if not whole and low >= -1 and high <= 1:
        return (-1.0, 1.0), f"{name}: fractions are taken as -1 (black) to 1 (white)."
    if not whole and low >= 0 and high <= 255:
        return (0.0, 255.0), f"{name}: fractions are taken as 0 (black) to 255 (white)."
    raise DataError(
        f"The values of {name} lie between {low:g} and {high:g}: what is black and what is white?",
        remedy=f"Say it: --value-range {low:g},{high:g}. Values outside are black or white.",
    )


def beyond(low: float, high: float, window: ValueRange, name: str) -> str:
    """A warning where values lie outside the window; "" where they do not."""
    if low >= window[0] and high <= window[1]:
        return ""
    return (
        f"{name}: values lie between {low:g} and {high:g}, black is {window[0]:g} and white {window[1]:g}; what lies "
        "outside is cut. --value-range LOW,HIGH sets another window."
    )


def levels(values: npt.NDArray[Any], window: ValueRange) -> npt.NDArray[np.float32]:
    """Values as grey levels, fractions from 0 (black) to 255 (white)."""
    low, high = window
    scaled = (values.astype(np.float64) - low) * (255.0 / (high - low))
    return np.clip(scaled, 0, 255).astype(np.float32)


def rounded(found: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Levels in 8 bits."""
    return np.clip(np.rint(found), 0, 255).astype(np.uint8)


def reading_facts(channels: int, window: ValueRange | None) -> dict[str, Any]:
    """What a fingerprint says of them, beside resolution and crop: nothing where they are as usual."""
    facts: dict[str, Any] = {} if channels == 3 else {"channels": channels}
    return facts if window in (None, SIXTEEN_BITS) else {**facts, "value_range": list(window or ())}
