"""List the pictures below a folder: which suffixes are read, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from diticli.data.own_files import FEW_JPEGS, JPEG_SUFFIXES, is_own_picture, is_run
from diticli.errors import DataError

_AVIF = find_spec("PIL.AvifImagePlugin") is not None  # of Pillow 11.3 and later

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", *([".avif"] if _AVIF else [])),
    }
)

OTHER_PICTURES = (
    frozenset(
        {
            *(".heic", ".heif", ".jxl", ".avif", ".tga", ".qoi", ".svg", ".eps", ".psd", ".ico", ".exr", ".hdr"),
            *(".dcm", ".jpx", ".jpf"),
            *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pcx", ".dds"),
        }
    )
    - IMAGE_SUFFIXES
)
"""Suffixes of pictures that are not read: they are counted and named."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The pictures below a folder, and what was left out of them.

    Attributes:
        images: sorted by relative path.
        runs: directories of training runs.
        own: pictures that diti wrote.
        others: suffix -> number of pictures of formats that are not read.
    """

    images: tuple[Path, ...]
    runs: tuple[Path, ...]
    own: tuple[Path, ...]
    others: dict[str, int]

    def left_out(self) -> str | None:
        """What was left out, in words; None when nothing was."""
        parts = []
        if self.runs:
            parts.append(f"{_counted(len(self.runs), 'run directory', 'run directories')} ({self.runs[0]})")
        if self.own:
            parts.append(f"{_counted(len(self.own), 'picture', 'pictures')} written by diti ({self.own[0]})")
        if self.others:
            kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(self.others.items()))
            parts.append(f"{_counted(sum(self.others.values()), 'file', 'files')} of other formats ({kinds})")
        return " and ".join(parts) or None


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def list_images(folder: Path) -> Listing:
    """All image files below `folder`, by suffix in any case, sorted by relative path; and what is left out.

    Hidden files and folders are left out, and what diti itself wrote (see `diticli.data.own_files`). Links to folders
    are followed, each folder once.

    Raises:
        DataError: when a folder cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    found: list[tuple[str, Path]] = []
    runs: list[Path] = []
    own: list[Path] = []
    others: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_cannot_list):
        status = os.stat(parent)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        if is_run(parent, {*folders, *files}):
            runs.append(Path(parent))
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = os.path.splitext(name)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                path = Path(parent, name)
                looked_at = suffix not in JPEG_SUFFIXES or len(files) <= FEW_JPEGS
                if looked_at and is_own_picture(str(path)):
                    own.append(path)
                else:
                    found.append((path.relative_to(folder).as_posix(), path))
            elif suffix in OTHER_PICTURES:
                others[suffix] += 1
    images = tuple(path for _, path in sorted(found))
    return Listing(images=images, runs=tuple(runs), own=tuple(own), others=dict(others))


def find_images(folder: Path) -> list[Path]:
    """The images of `list_images`."""
    return list(list_images(folder).images)


def has_image_suffix(name: str) -> bool:
    """Whether a file name ends like one of the image formats read here."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _cannot_list(error: OSError) -> None:
    raise DataError(
        f"Cannot list the folder {error.filename}: {error.strerror}.",
        remedy="Check that it exists and that you may read it, or name the folders beside it one by one.",
    ) from error
