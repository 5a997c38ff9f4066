"""Images as pictures are made of them: uint8 tiles of one size, magnified without invention.

Legend of shape suffixes: N batch, H height, W width. An image is a uint8 array [H, W, 3] (or [H, W]), or a
float tensor [3, H, W] in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Pixels = npt.NDArray[np.uint8]
Tile = Pixels | torch.Tensor

LEGIBLE = 96  # pixels: a smaller tile cannot carry a caption, nor show a 32-px face
PAPER = "#ffffff"


def to_uint8(images: torch.Tensor) -> Pixels:
    """Float images [N, 3, H, W] in [-1, 1] -> uint8 [N, H, W, 3], rounded as the official code does.

    Values outside the range are clamped; NaN becomes 0.
    """
    scaled = images.detach().float().mul(0.5).add(0.5).mul(255).add(0.5).nan_to_num(nan=0.0).clamp(0, 255)
    return scaled.to(torch.uint8).movedim(-3, -1).cpu().numpy()


def pixels_of(image: Tile) -> Pixels:
    """Any image as uint8 [H, W, 3].

    Raises:
        ValueError: for anything that is no image.
    """
    if isinstance(image, torch.Tensor):
        if not image.is_floating_point():
            raise ValueError(f"A tensor image is a float tensor [3, H, W] in [-1, 1], got {image.dtype}.")
        image = to_uint8(image[None])[0]
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(f"An image is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}.")
    if image.ndim == 2 or image.shape[2] == 1:
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image


def size_of(tiles: Sequence[Pixels]) -> tuple[int, int]:
    """Height and width that all tiles share."""
    sizes = {tile.shape[:2] for tile in tiles}
    if len(sizes) != 1:
        raise ValueError(f"Images of one size are needed, got {sorted(sizes) or 'none'}.")
    return sizes.pop()


def factor_of(scale: int | None, height: int, width: int) -> int:
    """How much to magnify a tile: `scale`, or what makes it legible."""
    return scale or max(1, math.ceil(LEGIBLE / min(height, width)))


def magnified(tile: Pixels, factor: int) -> Image.Image:
    """Nearest-neighbour: the picture shows the model's own pixels and invents none."""
    image = Image.fromarray(tile)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def psnr(images: Tile, reference: Tile) -> float:
    """Peak signal-to-noise ratio in dB of pictures as a viewer sees them: clamped, in 8 bits, over all pixels.

    The one definition behind every PSNR that is reported: 10 log10(255^2 / MSE). Two pictures that differ by less than
    grey levels show are equal.

    Args:
        images: uint8 values, or floats in [-1, 1] (`to_uint8` makes bytes of them), one picture or many.
        reference: the same shape once both are bytes.

    Returns:
        dB; infinite for equal pictures.
    """
    a, b = (to_uint8(values) if isinstance(values, torch.Tensor) else values for values in (images, reference))
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    mse = float(np.mean(difference**2))
    return 10 * math.log10(255**2 / mse) if mse else math.inf
