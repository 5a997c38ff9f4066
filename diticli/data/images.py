"""Open image sources, decode their images in order, load them all.

source = open_images("photos/", resolution=64)
loaded = load_images(source)          # uint8 [N, 64, 64, 3] and what had to be skipped
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diticli.data.decode import MAX_PIXELS, decode_image
from diticli.data.listing import IMAGE_SUFFIXES, find_images
from diticli.data.sources import FaceImages, FolderImages, ImageSource, LmdbImages, TarImages, open_images
from diticli.data.square import to_square
from diticli.errors import DataError, UnreadableImageError
from diticli.files import write_atomically
from diticli.progress import Reporter, SilentReporter

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "FaceImages",
    "FolderImages",
    "ImageSource",
    "LmdbImages",
    "LoadedImages",
    "Skipped",
    "TarImages",
    "UnreadableImageError",
    "check_skipped",
    "decode_image",
    "find_images",
    "iter_decoded",
    "load_images",
    "open_images",
    "to_square",
    "write_skipped_list",
]

_PREFETCH = 4
_Decoded = npt.NDArray[np.uint8] | UnreadableImageError


@dataclass(frozen=True)
class Skipped:
    """An image left out: its name in the source, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class LoadedImages:
    """All readable images of a source.

    Attributes:
        images: [N, R, R, channels] uint8.
        indices: [N] int64, each row's index in the source.
        skipped: what could not be read.
    """

    images: npt.NDArray[np.uint8]
    indices: npt.NDArray[np.int64]
    skipped: tuple[Skipped, ...]


def iter_decoded(
    source: ImageSource, indices: Sequence[int] | npt.NDArray[np.int64], *, workers: int | None = None
) -> Iterator[tuple[int, _Decoded]]:
    """Decode images in the given order, at most 4 x `workers` ahead of the consumer.

    Args:
        source: the images.
        indices: which of them.
        workers: threads; None takes up to 8 (none where threads do not help), below 2 decodes in this one.

    Yields:
        (index, [R, R, 3] uint8) or (index, the error) for an image that cannot be read. Any other error of
        a worker is raised here; leaving the loop, or Ctrl-C, drops what has not begun.
    """
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if source.threads else 0
    order = iter(np.asarray(indices, dtype=np.int64).tolist())
    if workers < 2:
        for index in order:
            yield index, _decode(source, index)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        ahead: deque[tuple[int, Future[_Decoded]]] = deque()
        for index in islice(order, _PREFETCH * workers):
            ahead.append((index, pool.submit(_decode, source, index)))
        while ahead:
            index, future = ahead.popleft()
            decoded = future.result()
            for following in islice(order, 1):
                ahead.append((following, pool.submit(_decode, source, following)))
            yield index, decoded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def load_images(
    source: ImageSource,
    *,
    reporter: Reporter | None = None,
    workers: int | None = None,
    skipped_list: Path | None = None,
    max_unreadable: float = 0.05,
) -> LoadedImages:
    """Decode every image of `source` into one array; unreadable ones are skipped and named.

    Args:
        source: the images.
        reporter: receiver of progress.
        workers: see `iter_decoded`.
        skipped_list: file for the skipped images, `name<TAB>reason` a line; written when there are any.
        max_unreadable: largest tolerated fraction of unreadable images.

    Raises:
        DataError: when more than that are unreadable, none is readable, or memory does not suffice.
    """
    reporter = reporter or SilentReporter()
    total, side = len(source), source.resolution
    if total == 0:
        raise DataError(f"There are no images in {source.name}.", remedy="Name a folder that holds images.")
    try:
        images = np.empty((total, side, side, source.channels), dtype=np.uint8)
    except MemoryError as error:
        raise DataError(
            f"{total:,} images of {side}x{side} need {total * side**2 * source.channels / 2**30:.1f} GiB of memory.",
            remedy="Use a smaller resolution or fewer images.",
        ) from error
    kept: list[int] = []
    skipped: list[Skipped] = []
    reporter.start(f"Reading {source.name}", total, unit="images")
    for index, decoded in iter_decoded(source, range(total), workers=workers):
        if isinstance(decoded, UnreadableImageError):
            skipped.append(Skipped(source.file_name(index), decoded.reason))
        else:
            images[len(kept)] = decoded
            kept.append(index)
        reporter.advance()
    reporter.finish()
    check_skipped(skipped, total, reporter=reporter, skipped_list=skipped_list, max_unreadable=max_unreadable)
    return LoadedImages(images[: len(kept)], np.array(kept, dtype=np.int64), tuple(skipped))


def check_skipped(
    skipped: Sequence[Skipped],
    total: int,
    *,
    reporter: Reporter | None = None,
    skipped_list: Path | None = None,
    max_unreadable: float = 0.05,
) -> None:
    """List the skipped images, warn about them, and stop when they are too many.

    Raises:
        DataError: when more than `max_unreadable` of `total` images, or all of them, were skipped.
    """
    if not skipped:
        return
    if skipped_list is not None:
        write_skipped_list(skipped_list, skipped)
    where = f"see {skipped_list}" if skipped_list else "; ".join(f"{s.file}: {s.reason}" for s in skipped[:3])
    count = f"{len(skipped):,} of {total:,} images"
    if len(skipped) == total or len(skipped) > max_unreadable * total:
        raise DataError(
            f"{count} cannot be read, more than {max_unreadable:.0%} ({where}).",
            remedy="Repair or remove these files, or name another folder.",
        )
    (reporter or SilentReporter()).warn(f"{count} cannot be read and are skipped ({where}).")


def write_skipped_list(path: Path, skipped: Sequence[Skipped]) -> None:
    """Write `name<TAB>reason`, one skipped image a line.

    Raises:
        DataError: when the file cannot be written.
    """
    lines = ("\t".join(_one_line(text) for text in (item.file, item.reason)) + "\n" for item in skipped)
    write_atomically(path, "list of skipped images", "".join(lines))


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _decode(source: ImageSource, index: int) -> _Decoded:
    try:
        return source.load(index)
    except UnreadableImageError as error:
        return error
