"""What each model makes of the same test images: reconstructions, and exchanges of chunks, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from diticli.comparison.entries import Entries, Entry
from diticli.comparison.images import ComparedImages
from diticli.comparison.settings import QUARTERS
from diticli.editing.engine import ImageSampler
from diticli.editing.pair import Edit, edit_pair
from diticli.editing.quality import reconstruction_warnings
from diticli.editing.reconstruct import reconstruct
from diticli.editing.results import decibels
from diticli.editing.settings import EditSettings
from diticli.editing.stages import grouped
from diticli.files import sha256_of, write_atomically
from diticli.identity import cache_key
from diticli.pictures.grids import captioned_strip
from diticli.pictures.tiles import pixels_of
from diticli.progress import Reporter
from diticli.sealed import keep_result, kept_result

Pixels = npt.NDArray[np.uint8]
COLUMNS = ("A", "A again", "A from its features alone", *("",) * QUARTERS, "A with all of B's features", "B")
"""The columns between are quarters of the chunks, from fine to coarse."""


@dataclass(frozen=True, kw_only=True)
class ComparedPair:
    """One model's pictures of one pair.

    Attributes:
        pictures: one a column of `COLUMNS`, uint8 [R, R, 3]; None where the model has too few chunks.
        captions: below each.
        psnr: dB of both images' reconstructions.
        warnings: what makes the model's edits worthless, in words; with its first pair.
    """

    pictures: tuple[Pixels | None, ...]
    captions: tuple[str, ...]
    psnr: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


class PictureStore:
    """Pictures of all models that can edit, each kept under a hash of model and pair.

    Args:
        folder: made when something is written.
        images: what is shown.
        entries: the models.
        pairs: indices of the images of each pair.
        steps: of inversion and of decoding.
    """

    def __init__(
        self, folder: Path, images: ComparedImages, entries: Entries, pairs: Sequence[tuple[int, int]], steps: int
    ) -> None:
        self.folder, self.images, self.entries = folder, images, entries
        self.pairs, self.steps = list(pairs), steps

    def key(self, entry: Entry) -> str:
        """Hash (16 hex digits) of everything that the pictures depend on."""
        source = self.images.read_by(entry)
        return cache_key("pictures", entry.model_hash, source.fingerprint(), self.pairs, self.steps)

    def has(self, entry: Entry) -> bool:
        """Whether they are done, or none are wanted."""
        return not self.pairs or self._path(entry, ".json").is_file()

    def make(self, entry: Entry, reporter: Reporter) -> None:
        """Decode and keep what is missing.

        Raises:
            DiTiError: as `edit_pair`; DataError when an image cannot be read, or the file not written.
        """
        if self.has(entry):
            return
        pipeline = self.entries.load(entry)
        settings = EditSettings(invert_steps=self.steps, decode_steps=self.steps)
        sampler = pipeline.sampler(**settings.sampler_kwargs())
        source = self.images.read_by(entry)
        rows = []
        for pair in self.pairs:
            first, second = (_picture(source.load(index)) for index in pair)
            rows.append(_pair_row(pipeline, sampler, first, second, settings, reporter))
        psnr = {
            source.file_name(index): found
            for pair, row in zip(self.pairs, rows, strict=True)
            for index, found in zip(pair, row.psnr, strict=True)
        }
        warnings = reconstruction_warnings(psnr, settings, pipeline)
        for warning in warnings:
            reporter.warn(f"{entry.name}, {warning}")
        self._write(entry, [replace(rows[0], warnings=tuple(warnings)), *rows[1:]], entry.resolution)

    def _write(self, entry: Entry, rows: Sequence[ComparedPair], side: int) -> None:
        empty = np.zeros((side, side, 3), np.uint8)
        tiles = np.stack([[empty if p is None else p for p in row.pictures] for row in rows])
        captions = [[None if p is None else c for p, c in zip(r.pictures, r.captions, strict=True)] for r in rows]
        place = self._path(entry, ".npy")
        write_atomically(place, "pictures", lambda file: np.save(file, tiles, allow_pickle=False))
        facts = {"captions": captions, "warnings": rows[0].warnings, "sha256": sha256_of(place)}
        keep_result(self._path(entry, ".json"), "pictures", facts)

    def read(self, entry: Entry, reporter: Reporter) -> list[ComparedPair]:
        """What `make` kept, one row a pair; what is damaged counts as none, and is made again.

        Raises:
            DiTiError: as `make`.
        """
        if not self.pairs:
            return []
        try:
            return self._read(entry)
        except (OSError, ValueError, KeyError):
            self._path(entry, ".json").unlink(missing_ok=True)
            self.make(entry, reporter)
            return self._read(entry)

    def _read(self, entry: Entry) -> list[ComparedPair]:
        kept, place = kept_result(self._path(entry, ".json")), self._path(entry, ".npy")
        if sha256_of(place) != kept["sha256"]:
            raise ValueError(f"{place.name} is damaged: its checksum differs")
        tiles, captions = np.load(place, allow_pickle=False), kept["captions"]
        rows = [
            ComparedPair(
                pictures=tuple(None if text is None else tile for tile, text in zip(row, texts, strict=True)),
                captions=tuple(text or "" for text in texts),
            )
            for row, texts in zip(tiles, captions, strict=True)
        ]
        return [replace(rows[0], warnings=tuple(map(str, kept["warnings"]))), *rows[1:]]

    def _path(self, entry: Entry, suffix: str) -> Path:
        return self.folder / (self.key(entry) + suffix)


def side_by_side(rows: Sequence[tuple[str, ComparedPair]]) -> Image.Image:
    """One pair, a row for each model; smaller pictures are magnified to the size of the largest.

    Args:
        rows: name of a model and its pictures.
    """
    side = max(tile.shape[0] for _, row in rows for tile in row.pictures if tile is not None)
    return captioned_strip(
        [[None if tile is None else _at(tile, side) for tile in row.pictures] for _, row in rows],
        row_captions=[name for name, _ in rows],
        column_captions=[text or f"with B's chunks, quarter {i - 2}" for i, text in enumerate(COLUMNS)],
        cell_captions=[row.captions for _, row in rows],
        mark={(r, c) for r in range(len(rows)) for c in (0, len(COLUMNS) - 1)},
    )


def _pair_row(
    pipeline: Any,
    sampler: ImageSampler,
    first: Image.Image,
    second: Image.Image,
    settings: EditSettings,
    reporter: Reporter,
) -> ComparedPair:
    given: dict[str, Any] = {"settings": settings, "sampler": sampler, "reporter": reporter}
    alone = reconstruct(pipeline, [first], noises=("mean",), **given)
    layout = pipeline.chunks
    every = tuple(range(layout.chunks))
    quarters = grouped(layout, QUARTERS) if layout.chunks >= QUARTERS else []
    result = edit_pair(pipeline, first, second, [*quarters, every], (1.0,), **given)

    def edit(chunks: tuple[int, ...]) -> Pixels:
        return result.edits[Edit("a", chunks, 1.0)]

    swapped: list[tuple[Pixels | None, str]] = [(edit(part), _steps(layout, part)) for part in quarters]
    swapped += [(None, "")] * (QUARTERS - len(swapped))
    cells: list[tuple[Pixels | None, str]] = [
        (result.originals[0], ""),
        (result.reconstructions[0], decibels(result.psnr[0])),
        (alone.pictures["mean"][0], decibels(alone.psnr["mean"][0])),
        *swapped,
        (edit(every), ""),
        (result.originals[1], ""),
    ]
    pictures = tuple(None if picture is None else pixels_of(picture) for picture, _ in cells)
    return ComparedPair(pictures=pictures, captions=tuple(c for _, c in cells), psnr=tuple(result.psnr))


def _steps(layout: Any, part: Sequence[int]) -> str:
    return f"t {layout.timestep_starts[part[0]]}-{layout.timestep_ends[part[-1]] - 1}"


def _picture(pixels: Pixels) -> Image.Image:
    """[R, R, channels] as a picture."""
    return Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])


def _at(tile: Pixels, side: int) -> Pixels:
    if tile.shape[0] == side:
        return tile
    return np.asarray(Image.fromarray(tile).resize((side, side), Image.Resampling.NEAREST))
