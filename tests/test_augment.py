"""Views on the device against slow references: Pillow, colorsys, and loops."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch.overrides import TorchFunctionMode

from diticli.config_groups import SSLConfig
from diticli.distributed import Rank
from diticli.models.pipeline import normalise
from diticli.training.augment import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    IDENTITY,
    SATURATION,
    SIMCLR,
    SIMSIAM,
    StepViews,
    ViewParameters,
    augment,
    augmentation_of,
    blend,
    crop_and_resize,
    draw_parameters,
    gaussian_blur,
    grey,
    turn_hue,
)

SIDE = 24


def images(count: int = 6, side: int = SIDE) -> torch.Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8)


def as_pillow(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def as_float(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32)).permute(2, 0, 1) / 255


def nothing(count: int = 6, side: int = SIDE) -> ViewParameters:
    """Parameters that leave images as they are."""
    return draw_parameters(IDENTITY, count, side, generator())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("kind", "enhance"),
    [(BRIGHTNESS, ImageEnhance.Brightness), (CONTRAST, ImageEnhance.Contrast), (SATURATION, ImageEnhance.Color)],
)
@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.7])
def test_blends_are_pillows(kind: int, enhance: type, factor: float) -> None:
    x = images()
    got = blend(x.float() / 255, torch.full((6,), kind), torch.full((6,), factor))
    for mine, image in zip(got, x, strict=True):
        wanted = as_float(enhance(as_pillow(image)).enhance(factor))
        assert (mine - wanted).abs().max() < 2 / 255


def test_blends_of_a_batch_are_each_images_own() -> None:
    x, kind, factor = images().float() / 255, torch.tensor([0, 1, 2, 0, 1, 2]), torch.rand(6) * 2
    together = blend(x, kind, factor)
    for i in range(6):
        torch.testing.assert_close(together[i : i + 1], blend(x[i : i + 1], kind[i : i + 1], factor[i : i + 1]))


@pytest.mark.parametrize("turn", [-0.2, 0.0, 0.1, 1 / 3])
def test_hue_is_turned_as_in_colorsys(turn: float) -> None:
    x = images(2, 8).float() / 255
    x[1, :, :4] = x[1, :1, :4]  # grey pixels have no hue
    got = turn_hue(x, torch.full((2,), turn))
    for b, y, i in np.ndindex(2, 8, 8):
        h, s, v = colorsys.rgb_to_hsv(*x[b, :, y, i].tolist())
        wanted = torch.tensor(colorsys.hsv_to_rgb((h + turn) % 1, s, v))
        torch.testing.assert_close(got[b, :, y, i], wanted, atol=1e-5, rtol=0)


def test_no_transform_makes_a_tensor_of_numbers_of_the_host() -> None:
    """On a GPU that is a copy which waits for all that is queued; a step drew eight."""

    class NoUpload(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            assert func not in (torch.tensor, torch.as_tensor), f"{func.__name__}{args}"
            return func(*args, **(kwargs or {}))

    x, factor = images().float() / 255, torch.full((6,), 0.1)
    box = torch.tensor([[0, 0, 4, 4]] * 6)
    with NoUpload():
        turn_hue(x, factor)
        grey(x)
        blend(x, torch.arange(6) % 3, factor)
        gaussian_blur(x, factor + 1, 3)
        crop_and_resize(x, box)


def test_grey_is_pillows() -> None:
    x = images()
    got = grey(x.float() / 255)
    assert got.shape == (6, 1, SIDE, SIDE)
    for mine, image in zip(got, x, strict=True):
        wanted = as_float(as_pillow(image).convert("L"))
        assert (mine - wanted).abs().max() < 1 / 255


@pytest.mark.parametrize("width", [3, 7])
def test_blur_is_a_reflected_convolution(width: int) -> None:
    x, sigma = torch.rand(3, 3, 9, 9), torch.tensor([0.1, 0.7, 2.0])
    got, reach = gaussian_blur(x, sigma, width), width // 2
    for b in range(3):
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma[b]) ** 2)
        kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
        padded = torch.from_numpy(np.pad(x[b].numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect"))
        for y, i in np.ndindex(9, 9):
            wanted = (padded[:, y : y + width, i : i + width] * kernel).sum(dim=(1, 2))
            torch.testing.assert_close(got[b, :, y, i], wanted)
    torch.testing.assert_close(got[0], x[0])  # a tenth of a pixel changes nothing


def test_crops_are_pillows_bilinear_enlargements() -> None:
    x = images(4)
    boxes = torch.tensor([[0, 0, SIDE, SIDE], [3, 5, 12, 16], [SIDE - 9, SIDE - 7, 9, 7], [4, 0, 1, 2]])
    got = crop_and_resize(x.float() / 255, boxes)
    for mine, image, (left, top, width, height) in zip(got, x, boxes.tolist(), strict=True):
        cut = as_pillow(image).crop((left, top, left + width, top + height))
        wanted = as_float(cut.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        assert (mine - wanted).abs().max() < 1.5 / 255


def test_drawn_crops_lie_inside_and_have_their_area() -> None:
    box = draw_parameters(replace(SIMCLR, min_crop=0.25), 2000, 32, generator()).box_B4
    left, top, width, height = box.unbind(1)
    assert bool((left >= 0).all() and (top >= 0).all())
    assert bool((left + width <= 32).all() and (top + height <= 32).all())
    area, ratio = (width * height) / 32**2, width / height
    assert 0.2 < area.min() < 0.3
    assert 0.9 < area.max() <= 1
    assert 0.68 < ratio.min() < 0.8 < 1.25 < ratio.max() < 1.47  # 3/4 .. 4/3 before rounding to pixels
    assert len(left.unique()) > 10


@pytest.mark.parametrize("augmentation", [SIMCLR, SIMSIAM])
def test_drawn_parameters_have_the_official_ranges(augmentation) -> None:
    drawn = draw_parameters(augmentation, 5000, 64, generator())
    factors, strength = drawn.factors_B4, augmentation.strength
    for column in factors[:, :3].unbind(1):
        assert 1 - strength <= column.min() < 1.02 - strength
        assert 0.98 + strength < column.max() <= 1 + strength
    assert factors[:, 3].abs().max() <= augmentation.hue
    assert 0.1 <= drawn.sigma_B.min() < 0.11 < 1.99 < drawn.sigma_B.max() <= 2
    chances = [drawn.flip_B, drawn.jitter_B, drawn.grey_B, drawn.blur_B]
    assert [round(c.float().mean().item(), 1) for c in chances] == [0.5, 0.8, 0.2, 0.5]
    assert len(drawn.order_B4.unique(dim=0)) == 24
    assert drawn.box_B4.unique(dim=0).tolist() == [[0, 0, 64, 64]]


def test_the_methods_differ_in_strength_only() -> None:
    assert (SIMCLR.strength, SIMCLR.hue) == (0.8, 0.2)
    assert (SIMSIAM.strength, SIMSIAM.hue) == (0.4, 0.1)
    assert replace(SIMCLR, strength=0.4, hue=0.1) == SIMSIAM


def test_transforms_come_in_their_order() -> None:
    x, order = (
        images(),
        torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2], [2, 0, 3, 1], [0, 3, 1, 2], [3, 0, 2, 1]]),
    )
    yes = torch.ones(6, dtype=torch.bool)
    factors = torch.stack([torch.rand(6) * 2, torch.rand(6) * 2, torch.rand(6) * 2, torch.rand(6) - 0.5], dim=1)
    box = torch.tensor([[2, 3, 15, 12]] * 6)
    grey_rows = torch.tensor([True, False] * 3)
    p = replace(
        nothing(),
        box_B4=box,
        flip_B=yes,
        jitter_B=yes,
        order_B4=order,
        factors_B4=factors,
        grey_B=grey_rows,
        blur_B=yes,
        sigma_B=torch.linspace(0.5, 2, 6),
    )
    got = augment(x, p)
    for i in range(6):
        one = crop_and_resize(x[i : i + 1].float() / 255, box[i : i + 1]).flip(-1)
        for kind in order[i]:
            factor = factors[i, kind].view(1)
            one = turn_hue(one, factor) if kind == HUE else blend(one, kind.view(1), factor)
        one = grey(one).expand_as(one) if grey_rows[i] else one
        one = gaussian_blur(one, p.sigma_B[i : i + 1], SIDE // 20 * 2 + 1)
        torch.testing.assert_close(got[i : i + 1], 2 * one - 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [16, 32, 64])
def test_views_are_in_range_and_leave_the_images_alone(side: int) -> None:
    x = images(32, side)
    before = x.clone()
    views = augment(x, draw_parameters(replace(SIMCLR, min_crop=0.25), 32, side, generator()))
    assert (views.shape, views.dtype) == (x.shape, torch.float32)
    assert views.min() >= -1.00001
    assert views.max() <= 1.00001
    assert torch.equal(x, before)
    assert ((views - normalise(x)).abs().amax(dim=(1, 2, 3)) > 0.05).float().mean() > 0.7


def test_without_augmentation_a_view_is_the_image() -> None:
    x = images()
    torch.testing.assert_close(augment(x, nothing()), normalise(x), atol=1e-6, rtol=0)


def test_settings_choose_the_augmentation() -> None:
    assert augmentation_of(SSLConfig(method="simclr")) == SIMCLR
    assert augmentation_of(SSLConfig(method="simsiam")) == SIMSIAM
    assert augmentation_of(SSLConfig(method="simclr", augmentation="none")) == IDENTITY
    assert augmentation_of(SSLConfig(method="simsiam", min_crop=0.3)) == replace(SIMSIAM, min_crop=0.3)


def step_views(rank: Rank = Rank(), seed: int = 5, stage: str = "features") -> StepViews:
    return StepViews(augmentation=SIMCLR, seed=seed, stage=stage, batch_size=8, rank=rank)


def test_views_are_a_function_of_seed_and_step() -> None:
    x = images(8)
    first = step_views().draw(3, x)
    assert first.shape == (2, 8, 3, SIDE, SIDE)
    assert not torch.equal(first[0], first[1])
    torch.manual_seed(99)  # the global generator has no part in it
    state = torch.get_rng_state()
    assert torch.equal(step_views().draw(3, x), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(step_views().draw(4, x), first)
    assert not torch.equal(step_views(seed=6).draw(3, x), first)


def test_processes_share_the_views_of_the_global_batch() -> None:
    x = images(8)
    parts = [step_views(Rank(index=r, count=2)).draw(7, x[4 * r : 4 * r + 4]) for r in range(2)]
    torch.testing.assert_close(torch.cat(parts, dim=1), step_views().draw(7, x))
