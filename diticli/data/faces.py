"""The built-in data set `faces`: cartoon faces with 13 independent, known factors, coarse to fine.

It needs no download, works at any size, and every claim about disentanglement can be checked against the
truth. Face `index` of seed `seed` is always the same picture, whatever else was drawn before it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.data.face_drawing import MAX_SIZE, MIN_SIZE, render_face
from diticli.errors import ConfigError, DataError
from diticli.files import replacing, write_bytes
from diticli.progress import Reporter, SilentReporter
from diticli.reading import read_regular

__all__ = [
    "FACTORS",
    "Factor",
    "face_name",
    "render_face",
    "sample_factors",
    "write_faces",
    "write_labels_csv",
]

LABELS_NAME = "labels.csv"


@dataclass(frozen=True)
class Factor:
    """One ground-truth factor of a face.

    Attributes:
        name: column name in `labels.csv`.
        kind: "number" is uniform in [low, high]; "binary" is a fair coin, 0 or 1.
        low: smallest value.
        high: largest value.
        description: what it changes in the picture.
    """

    name: str
    kind: Literal["number", "binary"]
    low: float
    high: float
    description: str


FACTORS: tuple[Factor, ...] = (
    # Two thirds of the circle, red to blue: the arc does not wrap, so a linear probe can read it.
    Factor("background_hue", "number", 0.0, 0.66, "hue of the background, red over green to blue"),
    Factor("light_direction", "number", -1.0, 1.0, "light from the left (-1) or the right (1)"),
    Factor("skin", "number", 0.0, 1.0, "skin tone, dark to light"),
    Factor("hair_colour", "number", 0.0, 1.0, "hair colour, black to blond"),
    Factor("face_width", "number", 0.2, 0.29, "half width of the face, in widths of the picture"),
    Factor("position_x", "number", 0.38, 0.62, "horizontal centre of the face, in widths of the picture"),
    Factor("long_hair", "binary", 0.0, 1.0, "hair down to the shoulders"),
    Factor("hat", "binary", 0.0, 1.0, "a red knitted hat"),
    Factor("glasses", "binary", 0.0, 1.0, "round dark glasses"),
    Factor("smile", "number", -1.0, 1.0, "bend of the mouth, frown (-1) to smile (1)"),
    Factor("brow_thickness", "number", 0.0, 0.045, "thickness of the brows, in widths of the picture"),
    Factor("freckles", "number", 0.0, 1.0, "contrast of the freckles, none to strong"),
    Factor("stripes", "number", 0.0, 1.0, "contrast of the background's stripes, none to strong"),
)

_LOW = np.array([factor.low for factor in FACTORS])
_SPAN = np.array([factor.high - factor.low for factor in FACTORS])
_BINARY = np.array([factor.kind == "binary" for factor in FACTORS])


def sample_factors(seed: int, indices: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Factors of the faces `indices`, each a function of (seed, index) alone.

    Args:
        seed: 0 to 2^64 - 1.
        indices: [N] non-negative integers.

    Returns:
        [N, 13] float32, columns in the order of `FACTORS`.

    Raises:
        ConfigError: for a seed or an index outside its range.
    """
    rows = np.asarray(indices, dtype=np.int64).reshape(-1)
    _check_seed(seed)
    if rows.size and rows.min() < 0:
        raise ConfigError(f"A face's index cannot be negative, got {rows.min()}.", remedy="Use 0 or more.")
    # Raw Philox words, because NumPy fixes a bit generator's stream for good, but not a distribution's.
    words = np.empty((len(rows), len(FACTORS)), dtype=np.uint64)
    for row, index in enumerate(rows.tolist()):
        words[row] = np.random.Philox(key=(seed << 64) | index).random_raw(len(FACTORS))
    uniform = (words >> np.uint64(11)) * 2.0**-53
    return np.where(_BINARY, uniform < 0.5, _LOW + _SPAN * uniform).astype(np.float32)


def face_name(index: int) -> str:
    """File name of face `index`."""
    return f"{index:06d}.png"


def write_labels_csv(path: Path, seed: int, indices: npt.ArrayLike) -> None:
    """Write the factors of the faces `indices`: first column `filename`, then the 13 factors.

    Raises:
        ConfigError: as `sample_factors`.
        OSError: when `path` cannot be written.
    """
    rows = np.asarray(indices, dtype=np.int64).reshape(-1)
    factors = sample_factors(seed, rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_header())
    for index, values in zip(rows.tolist(), factors, strict=True):
        cells = (int(v) if binary else v for v, binary in zip(values, _BINARY, strict=True))
        writer.writerow([face_name(index), *(str(cell) for cell in cells)])
    write_bytes(path, text.getvalue().encode())


def write_faces(
    out: Path,
    count: int,
    size: int,
    seed: int = 0,
    start: int = 0,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Write `count` faces as PNG files and, last, their `labels.csv`.

    A folder that holds nothing but an earlier call's faces is rewritten: faces that its `labels.csv` lists
    and this call does not draw are removed, so pictures and labels always agree.

    Args:
        out: folder, made when missing.
        count: number of faces, at least 1.
        size: side of the pictures in pixels, 16 to 512.
        seed: see `sample_factors`.
        start: index of the first face.
        overwrite: also write into a folder that holds other things; those stay, except files of equal name.
        reporter: receiver of progress.

    Returns:
        The path of `labels.csv`.

    Raises:
        ConfigError: for a count, size, seed or start outside its range.
        DataError: when `out` holds other things and `overwrite` is off, or cannot be written.
    """
    reporter = reporter or SilentReporter()
    _check_request(count, size, seed, start)
    labels = out / LABELS_NAME
    try:
        stale = _earlier_faces(out, overwrite)
        if stale:
            reporter.note(f"{out} is there already and will be replaced.")
        out.mkdir(parents=True, exist_ok=True)
        labels.unlink(missing_ok=True)
        reporter.start(f"Drawing faces into {out}", count, unit="images")
        indices = range(start, start + count)
        for index in indices:
            _save_png(out / face_name(index), render_face(sample_factors(seed, [index])[0], size))
            reporter.advance()
        for name in stale.difference(map(face_name, indices)):
            (out / name).unlink(missing_ok=True)
        write_labels_csv(labels, seed, indices)
    except OSError as error:
        raise DataError(
            f"Cannot write faces into {out}: {error.strerror or error}.",
            remedy="Choose a folder that you may write to, on a disk with room.",
        ) from error
    reporter.finish()
    return labels


def _save_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    with replacing(path, durable=False) as file:
        Image.fromarray(pixels).save(file, format="PNG", compress_level=1)


def _header() -> list[str]:
    return ["filename", *(factor.name for factor in FACTORS)]


def _earlier_faces(out: Path, overwrite: bool) -> set[str]:
    """Names of the faces that an earlier call left in `out`; refuses a folder with anything else in it."""
    if not out.exists():
        return set()
    if not out.is_dir():
        raise DataError(f"{out} is a file, not a folder.", remedy="Name a folder for the faces.")
    names = {entry.name for entry in out.iterdir()}
    listed = _listed_faces(out / LABELS_NAME)
    others = sorted(names - listed - {LABELS_NAME}) if listed else sorted(names)
    if others and not overwrite:
        raise DataError(
            f"{out} is not empty: it holds {others[0]!r}"
            + (f" and {len(others) - 1} more." if len(others) > 1 else "."),
            remedy="Choose an empty or new folder, or pass --overwrite to write beside what is there.",
        )
    return listed & names


def _listed_faces(labels: Path) -> set[str]:
    """Faces that a `labels.csv` of ours lists; empty when the file is missing or is not ours."""
    try:
        text = read_regular(labels).decode("utf-8")
        rows: list[Sequence[str]] = list(csv.reader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error):
        return set()
    if not rows or list(rows[0]) != _header():
        return set()
    return {row[0] for row in rows[1:] if row and re.fullmatch(r"\d{6,}\.png", row[0])}


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**64:
        raise ConfigError(
            f"The seed of the faces must be between 0 and 2^64 - 1, got {seed}.", remedy="Use such a seed."
        )


def _check_request(count: int, size: int, seed: int, start: int) -> None:
    _check_seed(seed)
    if count < 1:
        raise ConfigError(f"Cannot draw {count} faces.", remedy="Ask for at least 1.")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise ConfigError(f"Faces cannot be {size} pixels wide.", remedy=f"Use {MIN_SIZE} to {MAX_SIZE}.")
    if start < 0:
        raise ConfigError(f"The first face's index cannot be negative, got {start}.", remedy="Start at 0.")
