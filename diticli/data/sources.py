"""Where images come from: folders, files, or the built-in faces, behind one small protocol."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diticli.data.decode import UnreadableImageError, decode_image, find_images, has_image_suffix, is_image, short_side
from diticli.data.faces import face_name, render_face, sample_factors
from diticli.errors import DataError

FACES_SPEC = re.compile(r"faces(?::(\d{1,9}))?(?::(\d{1,20}))?")


class ImageSource(Protocol):
    """A fixed sequence of named images, each read on demand. Safe to use from several threads.

    Attributes:
        name: what the user called it, for messages.
        resolution: R, side of the images in pixels.
        threads: whether decoding in threads is any faster.
    """

    name: str
    resolution: int
    threads: bool

    def __len__(self) -> int:
        """Number of images, readable or not."""

    def file_name(self, index: int) -> str:
        """Unique name of an image: its path relative to its root, with forward slashes."""

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """[R, R, 3] uint8 RGB.

        Raises:
            UnreadableImageError: when the file cannot be decoded.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What a later run compares to notice that the data changed; fit for JSON."""


class FolderImages:
    """Image files, named relative to the folder (or, for single files, to the parent) they came from.

    When two roots hold the same relative name, every name gets its root folder's name in front
    (`a/001.jpg`, `b/001.jpg`), and as many parents more as it takes to make all names unique. A file given
    twice counts once.

    Args:
        roots_or_files: folders, searched recursively, and image files.
        resolution: R, side of the images in pixels.

    Raises:
        DataError: when a path is missing, a folder holds no image, or a file is no image.
    """

    threads = True

    def __init__(self, roots_or_files: Sequence[Path], resolution: int) -> None:
        self.name = ", ".join(str(path) for path in roots_or_files)
        self.resolution = resolution
        entries: dict[Path, Path] = {}  # absolute file -> absolute root
        for given in roots_or_files:
            root, files = _expand(given)
            for file in files:
                entries.setdefault(file, root)
        self._files = list(entries)
        self._roots = sorted(set(entries.values()))
        self._names = _unique_names(entries)

    def __len__(self) -> int:
        """See `ImageSource`."""
        return len(self._files)

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return self._names[index]

    def path(self, index: int) -> Path:
        """Absolute path of an image."""
        return self._files[index]

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        return decode_image(self._files[index], self.resolution)

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
            "sha256": digest.hexdigest(),
        }


class FaceImages:
    """The first `count` built-in faces of `seed`, drawn on demand (see `diticli.data.faces`).

    Raises:
        DataError: for a count below 1.
        ConfigError: for a seed or a resolution outside the renderer's range.
    """

    threads = False  # drawing holds the interpreter lock

    def __init__(self, count: int, seed: int, resolution: int) -> None:
        if count < 1:
            raise DataError(f"Cannot use {count} faces.", remedy="Ask for at least 1, e.g. faces:1000.")
        self.name = f"faces:{count}:{seed}"
        self.resolution = resolution
        self._count, self._seed = count, seed
        self.load(0)  # so that a bad seed or size shows here, not in the middle of a run

    def __len__(self) -> int:
        """See `ImageSource`."""
        return self._count

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`."""
        return face_name(index)

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`; never fails."""
        return render_face(sample_factors(self._seed, [index])[0], self.resolution)

    def factors(self) -> npt.NDArray[np.float32]:
        """[N, 13] ground truth, columns in the order of `diticli.data.faces.FACTORS`."""
        return sample_factors(self._seed, np.arange(self._count))

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`; the digest covers one drawn face, so a changed renderer shows."""
        return {
            "kind": "faces",
            "seed": self._seed,
            "count": self._count,
            "resolution": self.resolution,
            "sha256": hashlib.sha256(self.load(0).tobytes()).hexdigest(),
        }


def open_images(
    sources: Sequence[str] | str, resolution: int, *, faces_count: int = 1000, faces_seed: int = 0
) -> ImageSource:
    """Images named as on the command line.

    Args:
        sources: folders and image files (several are concatenated), or `faces[:COUNT[:SEED]]`. The word
            `faces` always means the built-in data; write `./faces` for a folder of that name.
        resolution: R, side of the images in pixels.
        faces_count: COUNT when `faces` names none.
        faces_seed: SEED when `faces` names none.

    Raises:
        DataError: as `FolderImages` and `FaceImages`, or when faces are mixed with anything else.
    """
    given = [sources] if isinstance(sources, str) else list(sources)
    if not given:
        raise DataError("No images were named.", remedy="Name a folder, image files, or `faces`.")
    if resolution < 1:
        raise DataError(f"Images cannot be {resolution} pixels wide.", remedy="Use a positive resolution.")
    faces = [source for source in given if source == "faces" or source.startswith("faces:")]
    if not faces:
        return FolderImages([Path(source).expanduser() for source in given], resolution)
    if len(given) > 1:
        raise DataError(
            f"The built-in {faces[0]!r} cannot be mixed with other images.",
            remedy="Name it alone; write ./faces for a folder of that name.",
        )
    match = FACES_SPEC.fullmatch(faces[0])
    if match is None:
        raise DataError(
            f"Cannot read {faces[0]!r}.",
            remedy="Write faces, faces:COUNT or faces:COUNT:SEED, e.g. faces:1000:0.",
        )
    count = faces_count if match[1] is None else int(match[1])
    return FaceImages(count, faces_seed if match[2] is None else int(match[2]), resolution)


def typical_side(folder: str, sample: int = 32) -> int:
    """Median of the shorter sides of up to `sample` images, spread over the folder.

    Raises:
        DataError: when there is no readable image among them.
    """
    files = _expand(Path(folder).expanduser())[1]
    spread = files[:: max(1, len(files) // sample)][:sample]
    sides = sorted(side for side in map(short_side, spread) if side is not None)
    if not sides:
        raise DataError(f"None of the first images of {folder} can be read.", remedy="Name another folder.")
    return sides[len(sides) // 2]


def _expand(given: Path) -> tuple[Path, list[Path]]:
    """Absolute root and image files of one path."""
    path = given.absolute()
    if path.is_dir():
        files = find_images(path)
        if not files:
            raise DataError(
                f"No images in {given}.", remedy="Name a folder that holds jpg, png, webp, bmp or tiff files."
            )
        return path, files
    if not path.exists():
        raise DataError(f"{given} does not exist.", remedy="Check the path, or use `faces`, the built-in data.")
    if not has_image_suffix(path.name) and not is_image(path):
        raise DataError(f"{given} is not an image.", remedy="Name jpg, png, webp, bmp or tiff files, or a folder.")
    return path.parent, [path]


def _unique_names(entries: dict[Path, Path]) -> list[str]:
    deepest = max(len(root.parts) for root in entries.values())
    for parents in range(deepest + 1):
        names = []
        for file, root in entries.items():
            prefix = root.parts[max(1, len(root.parts) - parents) :] if parents else ()
            names.append(Path(*prefix, file.relative_to(root)).as_posix())
        if len(set(names)) == len(names):
            break
    return names


__all__ = ["FaceImages", "FolderImages", "ImageSource", "UnreadableImageError", "open_images", "typical_side"]
