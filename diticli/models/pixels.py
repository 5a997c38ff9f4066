"""Pixels as networks take them: float32 in [-1, 1].

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from PIL import Image

from diticli.errors import ConfigError

Picture = Image.Image | str | Path
Images = torch.Tensor | npt.NDArray[Any] | Picture | Sequence[Picture]


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return images.float().div(127.5).sub_(1.0)


def checked(images_BCHW: torch.Tensor, resolution: int, channels: int = 3) -> torch.Tensor:
    """The images as float32.

    Raises:
        ConfigError: unless they are floats [B, C, R, R] in [-1, 1], some overshoot allowed.
    """
    expected = (channels, resolution, resolution)
    if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != expected or not images_BCHW.is_floating_point():
        raise ConfigError(
            f"Expected a float tensor [N, {', '.join(map(str, expected))}], got {images_BCHW.dtype} "
            f"{list(images_BCHW.shape)}.",
            remedy="Pass PIL images, or call preprocess().",
        )
    if images_BCHW.numel() and not images_BCHW.abs().max() <= 1.5:  # also NaN
        raise ConfigError(
            f"Images should lie in [-1, 1]; these reach {float(images_BCHW.abs().max()):.3g}.",
            remedy="Divide by 127.5 and subtract 1.",
        )
    return images_BCHW.float()
