"""Random views of images for self-supervised losses: drawn on the host, applied on the images' device in batches.

Transforms and values are those of the official DiTi code; formulas as in torchvision's tensor transforms (colours
as floats in [0, 1], clamped after each change, without the rounding to bytes between them that Pillow does).

Legend of shape suffixes: B images, C channels, H height, W width, R resolution (H = W).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from diticli.config_groups import SSLConfig
from diticli.distributed import Rank
from diticli.training.batches import fold_seed

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
_CROP_ATTEMPTS = 10


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How views are drawn."""

    strength: float
    """Brightness, contrast and saturation are multiplied by 1 - strength .. 1 + strength."""
    hue: float
    """The hue turns by up to this share of the colour circle, either way."""
    flip_chance: float = 0.5
    jitter_chance: float = 0.8
    """Chance of the four colour changes, in random order."""
    grey_chance: float = 0.2
    blur_chance: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Pixels, uniform; the kernel is R // 20 * 2 + 1 wide."""
    min_crop: float = 1.0
    """Smallest area of a random crop that is resized to the whole, as a share of the image; 1: no crop."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop, uniform in its logarithm."""


SIMCLR = Augmentation(strength=0.8, hue=0.2)
SIMSIAM = Augmentation(strength=0.4, hue=0.1)
IDENTITY = Augmentation(strength=0, hue=0, flip_chance=0, jitter_chance=0, grey_chance=0, blur_chance=0)


@dataclass(frozen=True, kw_only=True)
class ViewParameters:
    """What happens to each image of a batch; tensors on the CPU."""

    box_B4: torch.Tensor
    """Crop as left, top, width, height in pixels."""
    flip_B: torch.Tensor
    jitter_B: torch.Tensor
    """Whether the colours change."""
    order_B4: torch.Tensor
    """BRIGHTNESS, CONTRAST, SATURATION and HUE in the order in which they are applied."""
    factors_B4: torch.Tensor
    """Of brightness, contrast and saturation, and the turn of the hue, in this order."""
    grey_B: torch.Tensor
    blur_B: torch.Tensor
    sigma_B: torch.Tensor

    def part(self, rows: slice) -> ViewParameters:
        """Those of some images."""
        return ViewParameters(**{name: value[rows] for name, value in vars(self).items()})


def draw_parameters(
    augmentation: Augmentation, batch: int, resolution: int, generator: torch.Generator
) -> ViewParameters:
    """Parameters of one view of each image.

    They are few, so the host draws them: a seed means the same views on every device, and which images a
    transform touches is known without waiting for the device.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(batch, *shape, generator=generator)

    low, high = augmentation.blur_sigma
    reach = torch.tensor([augmentation.strength] * 3 + [augmentation.hue])
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    return ViewParameters(
        box_B4=_draw_boxes(augmentation, resolution, uniform(_CROP_ATTEMPTS, 4)),
        flip_B=uniform() < augmentation.flip_chance,
        jitter_B=uniform() < augmentation.jitter_chance,
        order_B4=uniform(4).argsort(dim=1),
        factors_B4=centre + reach * (2 * uniform(4) - 1),
        grey_B=uniform() < augmentation.grey_chance,
        blur_B=uniform() < augmentation.blur_chance,
        sigma_B=low + (high - low) * uniform(),
    )


def _draw_boxes(augmentation: Augmentation, side: int, uniform_BA4: torch.Tensor) -> torch.Tensor:
    """Crops [B, 4]: the first of A attempts that lies within the image, else the whole of it."""
    area, ratio, x, y = uniform_BA4.double().unbind(-1)
    low, high = (math.log(r) for r in augmentation.crop_ratio)
    area = side * side * (augmentation.min_crop + (1 - augmentation.min_crop) * area)
    ratio = (low + (high - low) * ratio).exp()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    left, top = (x * (side - width + 1)).floor(), (y * (side - height + 1)).floor()
    boxes = torch.stack([left, top, width, height], dim=-1)
    valid = (width >= 1) & (width <= side) & (height >= 1) & (height <= side) & (augmentation.min_crop < 1)
    first = valid.int().argmax(dim=1)
    chosen = boxes[torch.arange(len(boxes)), first]
    whole = torch.tensor([0, 0, side, side], dtype=boxes.dtype)
    return torch.where(valid.any(dim=1, keepdim=True), chosen, whole).long()


def augment(images_BCHW: torch.Tensor, parameters: ViewParameters) -> torch.Tensor:
    """Views, float32 [B, 3, R, R] in [-1, 1], of uint8 images [B, 3, R, R], on their device.

    In the official order: crop, flip, colours, grey, blur.
    """
    p, side = parameters, images_BCHW.shape[-1]
    x = images_BCHW.float().div(255)
    _change(x, (p.box_B4[:, 2:] < side).any(dim=1), lambda part, box: crop_and_resize(part, box), p.box_B4)
    _change(x, p.flip_B, lambda part: part.flip(-1))
    for place in range(4):
        kind, factors = p.order_B4[:, place], p.factors_B4
        blended = p.jitter_B & (kind != HUE)
        _change(x, blended, blend, kind, factors.gather(1, kind[:, None]).squeeze(1))
        _change(x, p.jitter_B & (kind == HUE), turn_hue, factors[:, HUE])
    _change(x, p.grey_B, lambda part: grey(part).expand_as(part))
    if (width := side // 20 * 2 + 1) > 1:
        _change(x, p.blur_B, lambda part, sigma: gaussian_blur(part, sigma, width), p.sigma_B)
    return x.mul_(2).sub_(1)


def _change(
    images_BCHW: torch.Tensor, chosen_B: torch.Tensor, transform: Callable[..., torch.Tensor], *values: torch.Tensor
) -> None:
    """Replace the chosen images by their transform, which is given their rows of the values."""
    rows = chosen_B.nonzero().squeeze(1)
    if not len(rows):
        return
    device = images_BCHW.device
    arguments = [value[rows].to(device, non_blocking=True) for value in values]
    rows = rows.to(device, non_blocking=True)
    images_BCHW[rows] = transform(images_BCHW[rows], *arguments)


def crop_and_resize(images_BCHW: torch.Tensor, box_B4: torch.Tensor) -> torch.Tensor:
    """Crops (left, top, width, height) enlarged to the size of the images, bilinear; nothing beyond a crop shows."""
    side = images_BCHW.shape[-1]
    centres = (torch.arange(side, device=images_BCHW.device) + 0.5) / side
    start_B2, size_B2 = box_B4.float().split(2, dim=1)
    start_B21, size_B21 = start_B2[..., None], size_B2[..., None]
    inside_B2R = torch.minimum((centres * size_B21 - 0.5).clamp(min=0), size_B21 - 1)
    x, y = (2 * (start_B21 + inside_B2R) / (side - 1) - 1).unbind(1)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    return F.grid_sample(images_BCHW, grid, mode="bilinear", padding_mode="border", align_corners=True)


def grey(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Luma [B, 1, H, W] (ITU-R BT.601)."""
    red, green, blue = images_BCHW.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def blend(images_BCHW: torch.Tensor, kind_B: torch.Tensor, factor_B: torch.Tensor) -> torch.Tensor:
    """factor * image + (1 - factor) * other, clamped to [0, 1].

    The other is black for BRIGHTNESS, the image's mean grey for CONTRAST, its grey version for SATURATION.
    """
    kind, factor, luma = kind_B.view(-1, 1, 1, 1), factor_B.view(-1, 1, 1, 1), grey(images_BCHW)
    other = torch.where(kind == SATURATION, luma, luma.mean(dim=(2, 3), keepdim=True) * (kind == CONTRAST))
    return torch.lerp(other, images_BCHW, factor).clamp(0, 1)


def turn_hue(images_BCHW: torch.Tensor, turn_B: torch.Tensor) -> torch.Tensor:
    """Hue turned by a share of the colour circle at constant saturation and value (HSV)."""
    value, lowest = images_BCHW.amax(1), images_BCHW.amin(1)
    red, green, blue = images_BCHW.unbind(1)
    chroma = value - lowest
    safe = torch.where(chroma == 0, 1, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * turn_B.view(-1, 1, 1)
    # Each channel is a trapezoid of the hue: value minus chroma * clamp(min(k, 4 - k), 0, 1), k = (n + sector) mod 6.
    # n = 5, 3, 1, counted on the device: a constant from the host is a copy that waits for all that is queued.
    n = 5 - 2 * torch.arange(3, device=images_BCHW.device)
    k = (n.view(1, 3, 1, 1) + sector[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def gaussian_blur(images_BCHW: torch.Tensor, sigma_B: torch.Tensor, width: int) -> torch.Tensor:
    """Separable Gaussian blur with an odd kernel width; edges are reflected."""
    reach = width // 2
    offsets = torch.arange(-reach, reach + 1, device=images_BCHW.device)
    kernel_BK = torch.exp(-0.5 * (offsets / sigma_B[:, None]).square())
    kernel_BK = kernel_BK / kernel_BK.sum(dim=1, keepdim=True)
    weights = kernel_BK.T.reshape(width, -1, 1, 1, 1)
    for dim, padding in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        size, padded = images_BCHW.shape[dim], F.pad(images_BCHW, padding, mode="reflect")
        images_BCHW = torch.zeros_like(images_BCHW)
        for i in range(width):
            images_BCHW.addcmul_(weights[i], padded.narrow(dim, i, size))
    return images_BCHW


class StepViews:
    """Two views of each image of a step, drawn for the global batch and cut to this process's part."""

    def __init__(self, *, augmentation: Augmentation, seed: int, stage: str, batch_size: int, rank: Rank) -> None:
        self.augmentation, self.seed, self.stage = augmentation, seed, stage
        self.batch_size, self.rank = batch_size, rank

    def with_batch_size(self, images: int) -> StepViews:
        """The same for batches of so many images, all of them this process's."""
        return StepViews(
            augmentation=self.augmentation, seed=self.seed, stage=self.stage, batch_size=images, rank=Rank()
        )

    def draw(self, step: int, images_BCHW: torch.Tensor) -> torch.Tensor:
        """[2, B, 3, R, R] float32 in [-1, 1] of uint8 images; a function of the seed and the step alone."""
        generator = torch.Generator().manual_seed(fold_seed(self.seed, self.stage, "views", step))
        mine, side = self.rank.local_slice(self.batch_size), images_BCHW.shape[-1]
        drawn = [draw_parameters(self.augmentation, self.batch_size, side, generator) for _ in range(2)]
        return torch.stack([augment(images_BCHW, parameters.part(mine)) for parameters in drawn])


def augmentation_of(ssl: SSLConfig) -> Augmentation:
    """The augmentation that settings describe."""
    name = ssl.method if ssl.augmentation == "auto" else ssl.augmentation
    return replace({"simclr": SIMCLR, "simsiam": SIMSIAM, "none": IDENTITY}[name], min_crop=ssl.min_crop)
