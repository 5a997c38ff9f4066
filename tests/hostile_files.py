"""Files that somebody wrote to do harm: pictures that claim any size, pickles that run code, tars that climb out."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def png_bytes(colour: Any = (200, 30, 30), size: tuple[int, int] = (8, 8)) -> bytes:
    """A small whole PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, format="PNG")
    return buffer.getvalue()


# pictures that claim any size and hold next to nothing


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(bytes(64))) + png_chunk(b"IEND", b"")


def gif_bomb(width: int, height: int, frame: tuple[int, int] | None = None) -> bytes:
    """`frame`: the first frame may claim more than the screen it lies on."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0) + b"\x02\x02\x44\x01\x00;"


def tiff_bomb(width: int, height: int, compression: int = 1) -> bytes:
    strip = min(width * height, 2**32 - 1)
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, height), (279, 4, strip)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)


def webp_bomb(width: int, height: int) -> bytes:
    """An animation of one tiny frame on an enormous canvas."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "WEBP", lossless=True)
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    frame = bytes(6) + b"\x03\0\0" * 2 + b"\x64\0\0\0" + buffer.getvalue()[12:]
    body += b"ANMF" + struct.pack("<I", len(frame)) + frame + bytes(len(frame) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_bomb(width: int, height: int) -> bytes:
    head = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def jpeg_bomb(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    start = data.find(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS: dict[str, bytes] = {
    "png": png_bomb(60_000, 60_000),
    "gif": gif_bomb(65_535, 65_535),
    "gif-frame": gif_bomb(1, 1, (65_535, 65_535)),
    "tiff": tiff_bomb(60_000, 60_000),
    "tiff-lzw": tiff_bomb(2**31 - 1, 2**31 - 1, compression=5),
    "webp": webp_bomb(16_384, 16_384),
    "webp-canvas": webp_bomb(2**24, 2**24),
    "bmp": bmp_bomb(60_000, 60_000),
    "bmp-top-down": bmp_bomb(60_000, -60_000),
    "jpeg": jpeg_bomb(65_500, 65_500),
}


# pickles


class PickleBomb:
    """Unpickled by whoever allows it, it makes the folder `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def _zip_of(bomb: PickleBomb) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("features.npy", "diti.npy"):
            archive.writestr(name, npy_bomb(bomb))
    return buffer.getvalue()


def npy_bomb(bomb: PickleBomb) -> bytes:
    """What `np.save` makes of an array of objects."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([bomb], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _torch_saved(bomb: PickleBomb, *, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"ema_encoder": {"w": torch.zeros(1)}, "x": bomb}, buffer, _use_new_zipfile_serialization=new)
    return buffer.getvalue()


def _torch_tar(bomb: PickleBomb) -> bytes:
    """The format of PyTorch 0.1."""
    names = ("sys_info", "pickle", "storages", "tensors")
    return tar_bytes({name: pickle.dumps(bomb) for name in names})


def pickle_bombs(mark: Path) -> dict[str, bytes]:
    """The same bomb in every wrapping that some library would unpickle."""
    bomb = PickleBomb(mark)
    return {
        "plain": pickle.dumps(bomb),
        "protocol 0": pickle.dumps(bomb, protocol=0),
        "npy": npy_bomb(bomb),
        "npz": _zip_of(bomb),
        "torch": _torch_saved(bomb, new=True),
        "torch before 1.6": _torch_saved(bomb, new=False),
        "torch tar": _torch_tar(bomb),
    }


# tars


def tar_bytes(
    members: dict[str, bytes], links: dict[str, str] | None = None, pax: dict[str, str] | None = None
) -> bytes:
    """A tar of files and symbolic links; `pax` goes into the header of the first file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for number, (name, data) in enumerate(members.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            if number == 0 and pax:
                entry.pax_headers = dict(pax)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def deep_json(depth: int = 200_000) -> bytes:
    """JSON nested beyond any recursion limit."""
    return b"[" * depth


def edit_json(path: Path, **changes: Any) -> None:
    """Merge `changes` into the object in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
