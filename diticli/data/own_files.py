"""Files that diti itself wrote and never reads as data: run directories, and pictures that carry its mark.

Every picture that diti writes (samples, strips, charts, animations) says so in its metadata, except the built-in
faces of `diti faces`, which are made to be read. A run directory is known by its config.json.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection

from diticli._version import __version__
from diticli.reading import check_regular

SOFTWARE = f"diti {__version__}"
"""Value of the metadata key "Software"."""

JPEG_SUFFIXES = (".jpg", ".jpeg")
FEW_JPEGS = 1_000
"""Files of a folder up to which its JPEGs are looked at: photographs come in such numbers that opening each of them
would take hours on a slow disk, and one strip among so many does no harm."""

_RUN_FILES = ("config.json", "samples")
_RUN_KEYS = {"config", "data", "versions"}
_LARGEST_CONFIG = 2**20
_PEEK = 4096
_TAIL = 2**16
"""Bytes at the end of a WebP, which may hold a long command."""

# PNG: the first text chunk, or a key of a strip written before there was one. GIF, WebP and JPEG: JSON, or EXIF.
_PNG_MARK = re.compile(rb"tEXtSoftware\0diti |[ti](?:EXt|TXt)diti:")
_ANIMATION_MARK = re.compile(rb'"(?:diti:[a-z]|Software": "diti )')


def is_run(folder: str, entries: Collection[str]) -> bool:
    """Whether a folder with these entries is the directory of a training run."""
    if not all(name in entries for name in _RUN_FILES):
        return False
    try:
        check_regular(path := os.path.join(folder, "config.json"))
        with open(path, "rb") as file:
            settings = json.loads(file.read(_LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and settings.keys() >= _RUN_KEYS


def is_own_picture(path: str) -> bool:
    """Whether diti wrote a .png, .gif, .webp or .jpg file. Reads a few kilobytes of these, and opens no others."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in (".png", ".gif", ".webp", *JPEG_SUFFIXES) or not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(_PEEK)
            if suffix != ".webp":
                return _is_marked(head)
            if head[12:16] != b"VP8X" or len(head) < 21 or not head[20] & 0x08:  # the flag of EXIF
                return False
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return _ANIMATION_MARK.search(file.read(_TAIL)) is not None
    except OSError:
        return False


def _is_marked(head: bytes) -> bool:
    if head.startswith(b"\x89PNG"):
        return _PNG_MARK.search(head.partition(b"IDAT")[0]) is not None
    return head.startswith((b"GIF8", b"\xff\xd8\xff")) and _ANIMATION_MARK.search(head) is not None
