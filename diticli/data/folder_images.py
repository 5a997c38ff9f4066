"""Image files and folders of them, as a source."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.config_groups import Crop, ValueRange
from diticli.data.decode import decode_image, file_extremes, is_image, picture_size, stack_pages
from diticli.data.depth import reading_facts
from diticli.data.listing import Listing, has_image_suffix, list_images
from diticli.data.names import unique_names, visible_entries
from diticli.data.tiff import SUFFIXES as TIFF_SUFFIXES
from diticli.errors import DataError


class FolderImages:
    """Image files, named relative to the folder (or, for single files, to the parent) they came from.

    When two roots hold the same relative name, every name gets its root folder's name in front
    (`a/001.jpg`, `b/001.jpg`), and as many parents more as it takes to make all names unique. A file given
    twice counts once. The pages of a TIFF stack are images of their own, `stack.tif:000012`.

    Args:
        roots_or_files: folders, searched recursively, and image files.
        resolution: R, side of the images in pixels.
        crop: which square of each picture.

    Attributes:
        left_out: what was left out of the folders, in words; a line for each folder that has any.

    Raises:
        DataError: when a path is missing, a folder holds no image, or a file is no image.
    """

    threads = True
    channels: int = 3
    value_range: ValueRange | None = None

    def __init__(self, roots_or_files: Sequence[Path], resolution: int, crop: Crop = "center") -> None:
        self.name = ", ".join(str(path) for path in roots_or_files)
        self.resolution = resolution
        self.crop: Crop = crop
        entries: dict[Path, Path] = {}  # absolute file -> absolute root
        left_out: list[str] = []
        for given in roots_or_files:
            root, listing = _expand(given)
            if words := listing.left_out():
                left_out.append(f"Left out of {given}: {words}.")
            for file in listing.images:
                entries.setdefault(file, root)
        self.left_out = tuple(left_out)
        self._roots = sorted(set(entries.values()))
        relative = [file.relative_to(root).as_posix() for file, root in entries.items()]
        self._files: list[Path] = []
        self._names: list[str] = []
        self._pages: dict[int, int] = {}  # of images that are pages of a stack
        for file, name in zip(entries, unique_names(list(entries.values()), relative), strict=True):
            pages = stack_pages(file) if file.suffix.lower() in TIFF_SUFFIXES else ()
            self._pages |= {len(self._files) + at: page for at, page in enumerate(pages)}
            self._files += [file] * max(1, len(pages))
            self._names += [f"{name}:{at:06d}" for at in range(len(pages))] or [name]

    def __len__(self) -> int:
        """See `ImageSource`."""
        return len(self._files)

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """Absolute path of an image's file."""
        return self._files[index]

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        return decode_image(
            self._files[index],
            self.resolution,
            crop=self.crop,
            value_range=self.value_range,
            channels=self.channels,
            page=self._pages.get(index),
        )

    def size(self, index: int) -> tuple[int, int] | None:
        """See `ImageSource.size`."""
        return picture_size(self._files[index])

    def extremes(self, index: int) -> tuple[float, float, bool] | None:
        """See `diticli.data.decode.deep_extremes`."""
        return file_extremes(self._files[index], self._pages.get(index))

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`: names, sizes and modification times of all files."""
        digest = hashlib.sha256()
        for name, path in zip(self._names, self._files, strict=True):
            try:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"{name}\0{state}\n".encode("utf-8", "surrogateescape"))
        return {
            "kind": "folder",
            "roots": [root.as_posix() for root in self._roots],
            "count": len(self),
            "resolution": self.resolution,
            "crop": self.crop,
            **reading_facts(self.channels, self.value_range),
            "sha256": digest.hexdigest(),
        }


_ARCHIVES = {".zip": "unzip {name} -d {stem}", ".rar": "unrar x {name} {stem}/", ".7z": "7z x {name} -o{stem}"}


def _expand(given: Path) -> tuple[Path, Listing]:
    """Absolute root and image files of one path."""
    path = given.absolute()
    if path.is_dir():
        listing = list_images(path)
        if not listing.images:
            raise _no_images(given, path, listing)
        return path, listing
    if not path.exists():
        raise DataError(f"{given} does not exist.", remedy="Check the path, or use `faces`, the built-in data.")
    if path.suffix.lower() in _ARCHIVES:
        raise DataError(f"{given} is an archive whose images cannot be reached one by one.", remedy=_unpack(path))
    if not has_image_suffix(path.name) and not is_image(path):
        raise DataError(f"{given} is not an image.", remedy="Name jpg, png, webp, bmp or tiff files, or a folder.")
    return path.parent, Listing(images=(path,), runs=(), own=(), others={})


def _no_images(given: Path, path: Path, listing: Listing) -> DataError:
    if words := listing.left_out():
        own = bool(listing.own or listing.runs)
        what = "name such a picture itself to read it" if own else "convert them to png or jpg"
        return DataError(f"No images in {given}: left out are {words}.", remedy=f"Name another folder, or {what}.")
    if archives := [entry for entry in visible_entries(path) if entry.suffix.lower() in _ARCHIVES]:
        return DataError(f"No images in {given}, but the archive {archives[0].name}.", remedy=_unpack(archives[0]))
    return DataError(
        f"No images in {given}.",
        remedy="Name a folder that holds jpg, png, webp, bmp or tiff files, .tar files, or an LMDB.",
    )


def _unpack(archive: Path) -> str:
    command = _ARCHIVES[archive.suffix.lower()].format(name=shlex.quote(archive.name), stem=shlex.quote(archive.stem))
    return f"Unpack it, e.g. {command}, and name the folder {archive.stem}."
