"""Where images come from, behind one small protocol: folders, files, tars, LMDBs, arrays, Parquet, built-in faces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.config_groups import Crop, ValueRange
from diticli.data.array_images import ArrayImages
from diticli.data.array_sets import is_array_set
from diticli.data.depth import beyond, range_of_values, reading_facts
from diticli.data.faces import face_name, render_face, sample_factors
from diticli.data.faces_word import faces_beside, is_faces, parse_faces
from diticli.data.folder_images import FolderImages
from diticli.data.lmdb_images import LmdbImages, find_lmdb
from diticli.data.name_lists import expand_source
from diticli.data.parquet_images import ParquetImages, find_parquet
from diticli.data.square import cut_and_resized, to_square
from diticli.data.tar_images import TarImages, find_tars
from diticli.errors import DataError, UnreadableImageError
from diticli.progress import Reporter, SilentReporter

_SAMPLE = 64
"""Picture files that are looked at for their values."""
_FEW = 0.05


class ImageSource(Protocol):
    """A fixed sequence of named images, each read on demand.

    Safe to use from several threads, to pickle, and to use in a forked process.

    Attributes:
        name: what the user called it, for messages.
        resolution: R, side of the images in pixels.
        crop: which square of each picture; what a model trained on it must be given.
        channels: 3 for RGB, 1 for grey.
        value_range: black and white of pictures of more than 8 bits; None: they have 8, or 16 that are used whole.
        threads: whether decoding in threads is any faster.
    """

    name: str
    resolution: int
    crop: Crop
    channels: int
    value_range: ValueRange | None
    threads: bool

    def __len__(self) -> int:
        """Number of images, readable or not."""

    def file_name(self, index: int) -> str:
        """Unique name of an image: its path relative to its root, with forward slashes."""

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """[R, R, channels] uint8.

        Raises:
            UnreadableImageError: when the file cannot be decoded.
        """

    def size(self, index: int) -> tuple[int, int] | None:
        """(width, height) of the original in pixels, held upright; None when it cannot be read."""

    def fingerprint(self) -> dict[str, Any]:
        """What a later run compares to notice that the data changed; fit for JSON."""


class FaceImages:
    """The first `count` built-in faces of `seed`, drawn on demand (see `diticli.data.faces`).

    Raises:
        DataError: for a count below 1.
        ConfigError: for a seed or a resolution outside the renderer's range.
    """

    threads = False  # drawing holds the interpreter lock
    crop: Crop = "center"
    channels: int = 3
    value_range: ValueRange | None = None

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
        face = render_face(sample_factors(self._seed, [index])[0], self.resolution)
        if self.channels == 3:
            return face
        return to_square(Image.fromarray(face), self.resolution, channels=self.channels)

    def size(self, index: int) -> tuple[int, int]:
        """See `ImageSource.size`: drawn as they are wanted."""
        return self.resolution, self.resolution

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
            **reading_facts(self.channels, self.value_range),
        }


def open_images(
    sources: Sequence[str] | str,
    resolution: int,
    *,
    crop: Crop | None = None,
    faces_count: int = 1000,
    faces_seed: int = 0,
    value_range: ValueRange | None = None,
    channels: int = 3,
    reporter: Reporter | None = None,
) -> ImageSource:
    """Images named as on the command line.

    Args:
        sources: one of
            folders and image files (several are concatenated);
            .tar files, or folders of them;
            one LMDB of Diff-AE: its folder or its data file;
            one `.npz` or HDF5 file of arrays (dSprites, Shapes3D, MPI3D, MedMNIST, see `diticli.data.array_sets`);
            a folder of Cars3D's or SmallNORB's `.mat` files, or one of them;
            Parquet files with a column of pictures, or a folder of them;
            `faces[:COUNT[:SEED]]`, the built-in data (write `./faces` for a folder of that name).
            Paths may hold braces and wildcards, see `expand_pattern`, and come from a list, see `expand_source`:
            `@FILE`, or `-` for stdin.
        resolution: R, side of the images in pixels.
        crop: which square of each picture. None takes what the data is known for: "celeba" for CelebA's
            LMDB, the central one for all else.
        faces_count: COUNT when `faces` names none.
        faces_seed: SEED when `faces` names none.
        value_range: black and white of pictures of more than 8 bits; None: found from pictures spread over the set.
        channels: 3 for RGB, 1 for grey.
        reporter: receiver of warnings: what was left out of folders, a folder that is called like the built-in data.

    Raises:
        DataError: when something is missing or damaged, holds no image, or kinds are mixed.
    """
    given = [sources] if isinstance(sources, str) else list(sources)
    if not given:
        raise DataError("No images were named.", remedy="Name a folder, image files, or `faces`.")
    if resolution < 1:
        raise DataError(f"Images cannot be {resolution} pixels wide.", remedy="Use a positive resolution.")
    reporter = reporter or SilentReporter()
    faces = [source for source in given if is_faces(source)]
    if not faces:
        paths = [path for source in given for path in expand_source(source)]
        source = _open_paths(paths, resolution, crop, value_range, channels, reporter)
        for line in _remarks(source):
            reporter.warn(line)
        return source
    if len(given) > 1:
        raise DataError(
            f"The built-in {faces[0]!r} cannot be mixed with other images.",
            remedy="Name it alone; write ./faces for a folder of that name.",
        )
    word = parse_faces(faces[0])
    if word is None:
        raise DataError(
            f"Cannot read {faces[0]!r}.",
            remedy="Write faces, faces:COUNT or faces:COUNT:SEED, e.g. faces:1000:0.",
        )
    if beside := faces_beside(faces[0]):
        reporter.warn(beside)
    count = faces_count if word.number is None else word.number
    if count >= 10**9:
        raise DataError(f"Cannot use {count:,} faces.", remedy="Ask for fewer than a billion.")
    drawn = FaceImages(count, faces_seed if word.seed is None else word.seed, resolution)
    drawn.channels = channels
    return drawn


def typical_side(source: ImageSource, sample: int = 32) -> int:
    """Median of the shorter sides of up to `sample` originals, spread over the source.

    Raises:
        DataError: when there is no readable image among them.
    """
    sides = sorted(map(min, _sizes(source, sample)))
    if not sides:
        raise DataError(f"None of the first images of {source.name} can be read.", remedy="Name other images.")
    return sides[len(sides) // 2]


def how_read(source: ImageSource, sample: int = 32) -> str:
    """How the pictures become what a model sees, e.g. "36 images: 112x112 -> 32 px"; "" where they are that.

    By the heads of up to `sample` pictures, spread over the source.
    """
    sizes = sorted(set(_sizes(source, sample)), key=lambda size: (size[0] * size[1], size))
    steps = dict.fromkeys(cut_and_resized(*size, source.resolution, source.crop) for size in sizes)
    done = " or".join(step for step in steps if step)
    if not done:
        return ""
    images = f"{len(source):,} image{'s' * (len(source) != 1)}"
    looked = f" ({sample} looked at)" if len(source) > sample else ""
    found = " to ".join(f"{width}x{height}" for width, height in dict.fromkeys((sizes[0], sizes[-1])))
    return f"{images}{looked}: {found}{done}."


def _sizes(source: ImageSource, sample: int) -> list[tuple[int, int]]:
    spread = range(0, len(source), max(1, len(source) // sample))[:sample]
    return [size for size in map(source.size, spread) if size is not None]


def _remarks(source: ImageSource) -> Sequence[str]:
    if isinstance(source, FolderImages):
        return source.left_out
    return source.notes if isinstance(source, ArrayImages) else ()


def _open_paths(
    paths: Sequence[Path],
    resolution: int,
    crop: Crop | None,
    value_range: ValueRange | None,
    channels: int,
    reporter: Reporter,
) -> ImageSource:
    tars: list[Path] = []
    databases: list[Path] = []
    arrays: list[Path] = []
    parquet: list[Path] = []
    others: list[Path] = []
    for path in paths:
        if database := find_lmdb(path):
            databases.append(database)
        elif is_array_set(path):
            arrays.append(path)
        elif tables := find_parquet(path):
            parquet += tables
        elif inside := find_tars(path):
            tars += inside
        else:
            others.append(path)
    kinds = (tars, databases, arrays, parquet, others)
    if sum(map(bool, kinds)) > 1 or len(databases) > 1 or len(arrays) > 1:
        raise DataError(
            f"Cannot read these together: {', '.join(map(str, paths[:3]))}.",
            remedy="Name images and folders, or tars, or Parquet files, or a single LMDB or file of arrays.",
        )
    if arrays:
        return ArrayImages(
            arrays[0], resolution, crop or "center", reporter, value_range=value_range, channels=channels
        )
    source: ParquetImages | LmdbImages | TarImages | FolderImages
    if databases:
        source = LmdbImages(databases[0], resolution, crop)
    elif parquet:
        source = ParquetImages(parquet, resolution, crop or "center")
    elif tars:
        source = TarImages(tars, resolution, crop or "center")
    else:
        source = FolderImages(others, resolution, crop or "center")
    source.channels = channels
    if not isinstance(source, LmdbImages):
        source.value_range = _window(source, value_range, reporter)
    return source


def _window(
    source: ParquetImages | TarImages | FolderImages, given: ValueRange | None, reporter: Reporter
) -> ValueRange | None:
    """Black and white of a set of picture files: as given, or found from those of more than 8 bits, if any."""
    # Rows of a Parquet file come in groups, each of which is read as a whole.
    stride = 1 if isinstance(source, ParquetImages) else max(1, len(source) // _SAMPLE)
    spread = range(0, len(source), stride)[:_SAMPLE]
    found = [values for values in map(source.extremes, spread) if values is not None]
    if not found:
        return given
    low, high = min(values[0] for values in found), max(values[1] for values in found)
    if given is None:
        try:
            given, note = range_of_values(low, high, whole=all(values[2] for values in found), name=source.name)
        except DataError:
            if len(found) > _FEW * len(spread):
                raise
            return None  # a few strangers, each of which is refused when it is read
    else:
        note = beyond(low, high, given, source.name)
    if note:
        reporter.warn(note)
    return given


__all__ = [
    "ArrayImages",
    "FaceImages",
    "FolderImages",
    "ImageSource",
    "LmdbImages",
    "ParquetImages",
    "TarImages",
    "UnreadableImageError",
    "open_images",
    "typical_side",
]
