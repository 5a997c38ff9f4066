"""Decoding images that nobody vetted: every mode, every way to be broken, and never a hang."""

import contextlib
import io
import os
import struct
import tracemalloc
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from diticli.data.decode import decode_bytes, image_size, is_image, picture_size
from diticli.data.images import UnreadableImageError, decode_image, find_images, to_square
from diticli.errors import DataError

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 40), (20, 40, 210), (255, 255, 255)


def quarters(width=48, height=48) -> Image.Image:
    """Red, green / blue, white."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    return image


def corners(pixels: np.ndarray) -> list[list[int]]:
    """Colours in the middle of the four quarters: top left, top right, bottom left, bottom right."""
    low, high = len(pixels) // 4, 3 * len(pixels) // 4
    return [pixels[y, x].tolist() for y in (low, high) for x in (low, high)]


def assert_corners(pixels: np.ndarray, expected, tolerance=3) -> None:
    np.testing.assert_allclose(corners(pixels), expected, atol=tolerance)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or quarters()).save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims any size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def test_find_images_by_suffix_sorted_without_hidden(tmp_path):
    kept = ["B.JPG", "a.png", "sub/c.jpeg", "sub/deep/d.webp", "sub/e.bmp", "z.tif", "z.TIFF"]
    for name in [*kept, ".hidden.png", ".git/x.png", "sub/.thumbs/y.jpg", "notes.txt", "png", "a.png.part"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == sorted(kept)


def test_find_images_survives_link_loops_and_follows_links(tmp_path):
    save(tmp_path / "data" / "a.png")
    save(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    names = [p.relative_to(tmp_path / "data").as_posix() for p in find_images(tmp_path / "data")]
    assert names == ["a.png", "more/b.png"]


def test_find_images_names_a_folder_it_cannot_list(tmp_path):
    with pytest.raises(DataError, match="Cannot list"):
        find_images(tmp_path / "absent")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}), ("a.bmp", {}), ("a.tif", {}), ("a.tiff", {"compression": "tiff_lzw"}),
        ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 98, "subsampling": 0}),
        ("a.jpeg", {"quality": 98, "subsampling": 0, "progressive": True}),
    ],
)  # fmt: skip
def test_formats(tmp_path, name, options):
    pixels = decode_image(save(tmp_path / name, **options), 24)
    assert pixels.shape == (24, 24, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert_corners(pixels, [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("mode", ["P", "1", "L", "LA", "RGBA", "CMYK", "YCbCr"])
def test_modes(tmp_path, mode):
    image = quarters().quantize(16) if mode == "P" else quarters().convert(mode, dither=Image.Dither.NONE)
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow before 13 does not read back the YCbCr TIFF that it writes")
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    pixels = decode_image(save(tmp_path / f"a.{suffix}", image), 24)
    assert_corners(pixels, corners(np.asarray(image.convert("RGB"))))


def test_transparency_lies_over_white(tmp_path):
    clear = quarters().convert("RGBA")
    clear.putalpha(0)
    assert (decode_image(save(tmp_path / "a.png", clear), 8) == 255).all()
    half = Image.new("LA", (8, 8), (0, 128))
    assert abs(int(decode_image(save(tmp_path / "b.png", half), 8)[4, 4, 0]) - 127) <= 1
    palette = quarters().quantize(4)
    palette.save(tmp_path / "c.png", transparency=palette.getpixel((0, 0)))
    assert_corners(decode_image(tmp_path / "c.png", 24), [WHITE, GREEN, BLUE, WHITE])
    Image.new("L", (8, 8), 7).save(tmp_path / "d.png", transparency=7)
    assert (decode_image(tmp_path / "d.png", 8) == 255).all()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.array([[0, 257 * 50], [257 * 128, 65535]], np.uint16).repeat(12, 0).repeat(12, 1)
    pixels = decode_image(save(tmp_path / f"a.{suffix}", Image.fromarray(ramp)), 24)
    assert_corners(pixels, [(v, v, v) for v in (0, 50, 128, 255)], tolerance=1)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    for name in ("a.png", "a.webp"):
        save(tmp_path / name, frames[0], save_all=True, append_images=frames[1:], lossless=True)
        assert_corners(decode_image(tmp_path / name, 16), [RED] * 4)
    frames[0].save(tmp_path / "gif.png", format="GIF", save_all=True, append_images=frames[1:])
    assert_corners(decode_image(tmp_path / "gif.png", 16), [RED] * 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation_is_honoured(tmp_path, orientation, suffix):
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = quarters(64, 48) if orientation == 1 else quarters(64, 48).transpose(undo.get(orientation))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode_image(save(tmp_path / f"a.{suffix}", stored, exif=exif), 24)
    assert_corners(pixels, [RED, GREEN, BLUE, WHITE], tolerance=14)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_spoil_the_pixels(tmp_path):
    save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage", quality=98, subsampling=0)
    assert_corners(decode_image(tmp_path / "a.jpg", 24), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize("size", [(200, 48), (48, 200), (49, 201)])
def test_the_central_square_is_kept(tmp_path, size):
    image = Image.new("RGB", size, BLUE)
    side = min(size)
    image.paste(RED, ((size[0] - side) // 2, (size[1] - side) // 2, (size[0] + side) // 2, (size[1] + side) // 2))
    pixels = decode_image(save(tmp_path / "a.png", image), 32).astype(int)
    assert np.abs(pixels[2:-2, 2:-2] - RED).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (3, 2), (37, 41)])
def test_odd_and_tiny_sizes(tmp_path, size):
    assert decode_image(save(tmp_path / "a.png", Image.new("RGB", size, GREEN)), 17).shape == (17, 17, 3)


def test_downsizing_is_antialiased(tmp_path):
    checks = np.indices((256, 256)).sum(0) % 2 * 255
    pixels = decode_image(save(tmp_path / "a.png", Image.fromarray(checks.astype(np.uint8))), 32)
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(save(tmp_path / "a.png", Image.fromarray(noise)), 32), noise)


def test_big_jpegs_are_shrunk_by_their_decoder_with_the_same_result(tmp_path):
    smooth = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    big = Image.fromarray(smooth).resize((1600, 1200), Image.Resampling.BICUBIC)
    path = save(tmp_path / "a.jpg", big, quality=95)
    with Image.open(path) as image:
        exact = to_square(image, 64).astype(float)
    assert np.sqrt(np.mean((decode_image(path, 64) - exact) ** 2)) < 2


def test_to_square_leaves_its_image_alone():
    image = quarters(60, 40)
    before = image.tobytes()
    assert_corners(to_square(image, 20), [RED, GREEN, BLUE, WHITE])
    assert image.size == (60, 40)
    assert image.tobytes() == before


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7])
def test_truncated_files(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(UnreadableImageError) as caught:
        decode_image(path, 16)
    assert caught.value.file == str(path)
    assert caught.value.reason
    assert caught.value.remedy


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_scrambled_files_never_raise_anything_else(tmp_path, suffix):
    generator = np.random.default_rng(0)
    buffer = io.BytesIO()
    quarters().save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
    good = np.frombuffer(buffer.getvalue(), np.uint8)
    path = tmp_path / f"a.{suffix}"
    for _ in range(60):
        bad = good.copy()
        bad[generator.integers(0, min(len(bad), 400), 6)] = generator.integers(0, 256, 6)
        path.write_bytes(bad.tobytes())
        with contextlib.suppress(UnreadableImageError):
            assert decode_image(path, 8, max_pixels=10**6).shape == (8, 8, 3)


def test_reasons_say_what_is_wrong(tmp_path):
    def reason(name: str, content: bytes | None = None, **options) -> str:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImageError) as caught:
            decode_image(tmp_path / name, 8, **options)
        return caught.value.reason

    assert "0 bytes" in reason("empty.jpg", b"")
    assert reason("text.png", b"hello world" * 30) == "not an image"
    assert reason("program.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "not an image"
    assert reason("absent.jpg") == "no such file or directory"
    (tmp_path / "folder.jpg").mkdir()
    assert reason("folder.jpg") == "not a regular file"
    assert "pixels" in reason("bomb.png", png_header(60000, 60000))
    assert "2000x1000 pixels" in reason("large.png", png_header(2000, 1000), max_pixels=10**6)
    save(tmp_path / "float.tif", Image.new("F", (4, 4), 0.5))
    assert "floating-point" in reason("float.tif")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png_header(12000, 12000))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded a bomb"))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UnreadableImageError), pytest.warns(Image.DecompressionBombWarning):
        decode_image(tmp_path / "bomb.png", 8, max_pixels=10**8)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(UnreadableImageError, match="not a regular file"):
        decode_image(tmp_path / "pipe.jpg", 8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file(tmp_path):
    save(tmp_path / "a.png").chmod(0)
    with pytest.raises(UnreadableImageError, match="permission denied"):
        decode_image(tmp_path / "a.png", 8)


@pytest.mark.parametrize(
    ("size", "crop", "box"), [((128, 128), "center", None), ((178, 218), "celeba", (25, 57, 153, 185))]
)
def test_resizing_is_that_of_the_official_code(tmp_path, size, crop, box):
    """Official features of photographs are only ours if the pixels are: cut, then Pillow's bilinear filter."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture.save(tmp_path / "a.png")
    expected = np.array((picture.crop(box) if box else picture).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(to_square(picture, 64, crop), expected)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 64, crop=crop), expected)


def png_with(kind: bytes, data: bytes, *, behind: bool = False) -> bytes:
    """Red pixels, and a chunk before or behind them."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    whole = buffer.getvalue()
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    place = len(whole) - 12 if behind else 33
    return whole[:place] + chunk + whole[place:]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"note\0\0"), (b"iTXt", b"note\0\1\0\0\0"), (b"iCCP", b"profile\0\0")]
)
def test_large_metadata_of_a_png_is_dropped_and_never_unpacked(tmp_path, kind, head, behind):
    data = png_with(kind, head + zlib.compress(bytes(30_000_000)), behind=behind)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        pixels = decode_image(path, 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (pixels == (255, 0, 0)).all()
    assert peak < 8_000_000
    assert (decode_bytes(data, "a", 16) == pixels).all()
    assert (image_size(data), picture_size(path), is_image(path)) == ((16, 16), (16, 16), True)


def test_a_damaged_png_with_large_metadata_is_still_refused(tmp_path):
    data = png_with(b"zTXt", b"note\0\0" + zlib.compress(bytes(3_000_000)))
    path = tmp_path / "a.png"
    path.write_bytes(data[:-40])
    with pytest.raises(UnreadableImageError):
        decode_image(path, 16)


def test_tiffs_that_would_come_out_wrong_are_refused(tmp_path):
    page = Image.effect_noise((16, 16), 60)
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page, page])
    with pytest.raises(UnreadableImageError, match="3 pages"):
        decode_image(tmp_path / "stack.tif", 16)
    page.save(tmp_path / "preview.tif", save_all=True, append_images=[page.resize((4, 4))])
    assert decode_image(tmp_path / "preview.tif", 16)[:, :, 0].tolist() == np.asarray(page).tolist()


def planar_tiff(values: np.ndarray) -> bytes:
    """A 16-bit RGB TIFF whose channels are planes, as tifffile writes [3, H, W]."""
    channels, height, width = values.shape
    plane, count = height * width * 2, 10
    extra = 8 + 2 + count * 12 + 4
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, extra), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [
        (273, 4, 3, extra + 6),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 3, extra + 18),
        (284, 3, 1, 2),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    start = extra + 30
    offsets = struct.pack("<3I", *(start + i * plane for i in range(3)))
    tail = struct.pack("<3H", 16, 16, 16) + offsets + struct.pack("<3I", plane, plane, plane)
    return b"II*\0" + struct.pack("<IH", 8, count) + entries + struct.pack("<I", 0) + tail + values.tobytes()
