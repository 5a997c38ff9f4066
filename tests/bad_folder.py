"""A folder of a thousand files in a dozen kinds of bad, and what shall become of each."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hostile_files import BOMBS, png_bytes
from PIL import Image, ImageOps, PngImagePlugin

SIDE = 32
Pixels = np.ndarray


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A file: its pixels at a given side (uint8 [R, R, 3], by Pillow alone), or a regular expression of the reason."""

    kind: str
    name: str
    pixels: Pixels | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One content, planted under many names; `image` is what it shows, RGB and upright."""

    data: bytes
    suffix: str
    image: Image.Image | None = None
    reason: str = ""


def plant(folder: Path, count: int, resolution: int) -> list[Planted]:
    """Fill `folder` with `count` files of all kinds in turn, and with folders that link to themselves."""
    kinds = {name: list(make()) for name, make in KINDS.items()}
    planted = []
    for number in range(count):
        kind = list(kinds)[number % len(kinds)]
        variants = kinds[kind]
        variant = variants[number // len(kinds) % len(variants)]
        name = f"{number % 7}/{number:04d} {kind}{variant.suffix}"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, kind, variant)
        pixels = None if variant.image is None else shown(variant.image, resolution)
        reason = variant.reason
        if kind == "unreadable" and variant.data and os.geteuid() == 0:  # root may read everything
            pixels, reason = shown(Image.open(io.BytesIO(variant.data)).convert("RGB"), resolution), ""
        planted.append(Planted(kind=kind, name=name, pixels=pixels, reason=reason))
    _plant_loops(folder)
    return sorted(planted, key=lambda item: item.name)


def _plant_loops(folder: Path) -> None:
    """Links to a folder's parent and itself, and two that lead in turn to each other."""
    for name in ("loops/a", "loops/b"):
        (folder / name).mkdir(parents=True)
    links = {"0/up": "..", "1/here": ".", "loops/a/other": "../b", "loops/b/other": "../a"}
    for name, target in links.items():
        (folder / name).symlink_to(target)


def shown(image: Image.Image, resolution: int) -> Pixels:
    """A square image as the model shall see it."""
    assert image.mode == "RGB"
    assert image.width == image.height
    return np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR))


def _write(path: Path, kind: str, variant: Variant) -> None:
    if kind == "symlink loop":
        path.symlink_to(path.name if variant.data else "nowhere.png")
    elif kind == "unreadable" and not variant.data:
        os.mkfifo(path)
    else:
        path.write_bytes(variant.data)
    if kind == "unreadable" and variant.data:
        path.chmod(0)


def scene(seed: int, side: int = SIDE) -> Image.Image:
    """Smooth random colours, so that lossy formats keep them."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def reopened(data: bytes) -> Image.Image:
    """What Pillow makes of it, as RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def truncated() -> Iterator[Variant]:
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("WEBP", ".webp"), ("BMP", ".bmp"), ("TIFF", ".tif")):
        data = saved(noisy, form)
        for kept in (0.1, 0.6):
            yield Variant(data=data[: int(len(data) * kept)], suffix=suffix, reason=r".+")


def zero_bytes() -> Iterator[Variant]:
    for suffix in (".jpg", ".png", ".webp", ".TIFF"):
        yield Variant(data=b"", suffix=suffix, reason=r"empty file \(0 bytes\)")


def wrong_suffix() -> Iterator[Variant]:
    yield Variant(data=b"This is no picture.\n" * 20, suffix=".png", reason="not an image")
    yield Variant(data=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", suffix=".jpg", reason="not an image")
    yield Variant(data=b"<svg xmlns='http://www.w3.org/2000/svg'/>", suffix=".webp", reason="not an image")
    for seed, (form, suffix) in enumerate((("PNG", ".jpg"), ("BMP", ".png"), ("GIF", ".jpeg"))):
        data = saved(scene(seed).convert("P") if form == "GIF" else scene(seed), form)
        yield Variant(data=data, suffix=suffix, image=reopened(data))


def bomb() -> Iterator[Variant]:
    for data in BOMBS.values():
        yield Variant(data=data, suffix=".png", reason="pixels|could not create decoder object")


def palette() -> Iterator[Variant]:
    indexed = scene(11).quantize(16)
    yield Variant(data=saved(indexed, "PNG"), suffix=".png", image=indexed.convert("RGB"))
    clear = indexed.copy()
    clear.info["transparency"] = 3
    rgba = clear.convert("RGBA")
    white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    yield Variant(data=saved(indexed, "PNG", transparency=3), suffix=".png", image=white)
    bilevel = scene(12).convert("1")
    yield Variant(data=saved(bilevel, "PNG"), suffix=".png", image=bilevel.convert("RGB"))


def cmyk() -> Iterator[Variant]:
    for seed in (21, 22):
        data = saved(scene(seed).convert("CMYK"), "JPEG", quality=95)
        yield Variant(data=data, suffix=".jpg", image=reopened(data))
    data = saved(scene(23).convert("CMYK"), "TIFF")
    yield Variant(data=data, suffix=".tif", image=reopened(data))


def sixteen_bit() -> Iterator[Variant]:
    grey = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    eight = Image.fromarray(np.rint(grey / 257).astype(np.uint8)).convert("RGB")
    for form, suffix in (("PNG", ".png"), ("TIFF", ".tif")):
        yield Variant(data=saved(Image.fromarray(grey), form), suffix=suffix, image=eight)


def animated() -> Iterator[Variant]:
    first, others = scene(31), [scene(32), scene(33)]
    yield Variant(data=saved(first, "PNG", save_all=True, append_images=others), suffix=".png", image=first)
    webp = saved(first, "WEBP", save_all=True, append_images=others, lossless=True)
    yield Variant(data=webp, suffix=".webp", image=first)
    flat = first.quantize(8)
    gif = saved(flat, "GIF", save_all=True, append_images=[scene(34).quantize(8)])
    yield Variant(data=gif, suffix=".png", image=flat.convert("RGB"))


def rotated() -> Iterator[Variant]:
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for form, suffix in (("JPEG", ".jpg"), ("PNG", ".png")):
            data = saved(scene(40 + orientation), form, exif=exif)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
            yield Variant(data=data, suffix=suffix, image=upright)


def huge() -> Iterator[Variant]:
    """Legal, and thousands of times larger than their bytes; most are merely large, as decoding takes its time."""
    for side in (*[700] * 7, 4096):
        large = Image.new("L", (side, side), 90)
        large.paste(200, (0, 0, side // 2, side // 2))
        yield Variant(data=saved(large, "PNG"), suffix=".png", image=large.convert("RGB"))


def symlink_loop() -> Iterator[Variant]:
    yield Variant(data=b"itself", suffix=".png", reason="too many levels of symbolic links")
    yield Variant(data=b"", suffix=".jpg", reason="no such file or directory")


def unreadable() -> Iterator[Variant]:
    """Without permission, and named pipes, which would wait for ever."""
    yield Variant(data=png_bytes((9, 99, 199), (SIDE, SIDE)), suffix=".png", reason="permission denied")
    yield Variant(data=b"", suffix=".png", reason="not a regular file")


def broken_metadata() -> Iterator[Variant]:
    """Profiles, EXIF and text that are garbage or bombs themselves; the pixels are whole."""
    image = scene(51)
    for options in ({"icc_profile": b"no profile" * 9}, {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"}):
        yield Variant(data=saved(image, "PNG", **options), suffix=".png", image=image)
        data = saved(image, "JPEG", quality=95, **options)
        yield Variant(data=data, suffix=".jpg", image=reopened(data))
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a" * 900_000, zip=True)
    yield Variant(data=saved(image, "PNG", pnginfo=text), suffix=".png", image=image)


KINDS = {
    make.__name__.replace("_", " "): make
    for make in (
        *(truncated, zero_bytes, wrong_suffix, bomb, palette, cmyk, sixteen_bit, animated, rotated, huge),
        *(symlink_loop, unreadable, broken_metadata),
    )
}
