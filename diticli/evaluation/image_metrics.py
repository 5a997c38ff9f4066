"""How alike two sets of images are: SSIM of images in [-1, 1]. (PSNR: `diticli.pictures.grids.psnr`.)

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from diticli.errors import ConfigError

WINDOW, SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def ssim(a_BCHW: torch.Tensor, b_BCHW: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair of images in [-1, 1]: float64 [B] in [-1, 1], 1 for equal images.

    The mean over channels and over all positions at which the 11 x 11 Gaussian window (sigma 1.5) lies within
    the image, with K1 = 0.01 and K2 = 0.03 (Wang et al., 2004, eq. 13).

    Raises:
        ConfigError: for shapes that differ, or images smaller than the window.
    """
    if a_BCHW.shape != b_BCHW.shape or a_BCHW.ndim != 4 or min(a_BCHW.shape[-2:]) < WINDOW:
        raise ConfigError(
            f"SSIM compares equal shapes [B, C, H, W] of at least {WINDOW} pixels a side, got "
            f"{list(a_BCHW.shape)} and {list(b_BCHW.shape)}.",
            remedy="Compare images of one size.",
        )
    # Its comparison of brightness is made for values that are never negative: [0, 1].
    a, b = (a_BCHW.double() + 1) / 2, (b_BCHW.double() + 1) / 2
    mean_a, mean_b, aa, bb, ab = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    variances, covariance = aa - mean_a**2 + bb - mean_b**2, ab - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return (numerator / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2))).mean((1, 2, 3))


def _blur(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Local means under the Gaussian window, where it fits."""
    offsets = torch.arange(WINDOW, dtype=x_BCHW.dtype, device=x_BCHW.device) - WINDOW // 2
    weights = torch.softmax(-(offsets**2) / (2 * SIGMA**2), dim=0)
    rows = F.conv2d(x_BCHW.flatten(0, 1)[:, None], weights.view(1, 1, -1, 1))
    return F.conv2d(rows, weights.view(1, 1, 1, -1)).unflatten(0, x_BCHW.shape[:2])[:, :, 0]
