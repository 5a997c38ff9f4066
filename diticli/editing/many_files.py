"""What editing many pairs reads and writes: which pairs are left, their outputs, and the list of failures."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.data.faces_word import is_faces
from diticli.data.own_files import is_own_picture
from diticli.editing.contact_sheet import edit_strip, pair_sheet, write_animation, write_separate
from diticli.editing.inputs import check_source, source_digest
from diticli.editing.mixing import parse_alphas
from diticli.editing.pair import plan_edits, to_decode
from diticli.editing.results import SIDES, Edit, EditResult
from diticli.editing.settings import EditSettings
from diticli.editing.stages import OVERVIEW_ROWS, grouped
from diticli.editing.table import COLUMNS, PairRow, spreadsheet_cell
from diticli.errors import DataError, DiTiError
from diticli.files import check_writable, refuse_links, write_atomically
from diticli.pictures.grids import save_png
from diticli.pictures.metadata import KEY
from diticli.reading import check_regular

FAILED_NAME = "failed.csv"
WINDOW = 32
"""Pairs whose images are in memory together."""


@dataclass(frozen=True, kw_only=True)
class ManyOptions:
    """What to do with pairs that do not say it themselves.

    Attributes:
        chunk_sets: each is exchanged by itself; () for the quarters of all chunks.
        alphas: strengths.
        settings: solver, steps, noise, batch size.
        difference: add difference maps.
        separate: also write single images into FOLDER/NAME/.
        animate: also write an animation NAME.webp or NAME.gif: the suffix, or "" for none.
        window: pairs whose images are in memory together; None for the default.
        metadata: goes into every picture.
        command: the call that makes a pair's outputs again; goes into its pictures.
        warnings: PSNR of the reconstructions by image -> what spoils a pair's pictures, in words; goes into them.
        overwrite: also replace pictures that diti did not make.
    """

    chunk_sets: Sequence[tuple[int, ...]] = ()
    alphas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0)
    settings: EditSettings = field(default_factory=EditSettings)
    difference: bool = False
    separate: Path | None = None
    animate: str = ""
    window: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    command: Callable[[PairRow], str] | None = None
    warnings: Callable[[Mapping[str, float]], list[str]] | None = None
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannedPair:
    """A pair to edit.

    Attributes:
        row: of the table.
        edits: all of them.
        pictures: how many to decode.
    """

    row: PairRow
    edits: tuple[Edit, ...]
    pictures: int

    @property
    def cost(self) -> int:
        """Pictures to invert and to decode."""
        return len(SIDES) + self.pictures


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """What is to be done, what is finished, and what cannot be done.

    Attributes:
        out: folder of the outputs.
        model_hash: fingerprint of the model.
        todo: pairs to edit.
        finished: names of those whose output is there.
        failed: (pair, reason) of those whose chunks, alphas or images cannot be.
        window: pairs whose images are in memory together.
    """

    out: Path
    model_hash: str
    todo: tuple[PlannedPair, ...]
    finished: tuple[str, ...]
    failed: tuple[tuple[PairRow, str], ...]
    window: int = WINDOW

    @property
    def windows(self) -> Iterator[tuple[PlannedPair, ...]]:
        """The pairs to edit, as many at a time as are in memory together."""
        return (self.todo[start : start + self.window] for start in range(0, len(self.todo), self.window))

    @property
    def pictures(self) -> tuple[int, int]:
        """How many to invert and to decode; an image that several pairs of a window share is inverted once."""
        sources = ({source for pair in pairs for source in (pair.row.a, pair.row.b)} for pairs in self.windows)
        return sum(map(len, sources)), sum(pair.pictures for pair in self.todo)

    def to_dict(self) -> dict[str, Any]:
        """Its numbers, and the failures by name."""
        invert, decode = self.pictures
        failed = {row.name: reason for row, reason in self.failed}
        counts = {"todo": len(self.todo), "finished": len(self.finished), "invert": invert, "decode": decode}
        return counts | {"failed": failed}


def plan_pairs(
    rows: Sequence[PairRow],
    out: Path,
    layout: ChunkLayout,
    model_hash: str,
    options: ManyOptions,
) -> TablePlan:
    """Sort the pairs into those to edit, those that are finished, and those that cannot be edited."""
    todo, finished, failed = [], [], []
    for row in rows:
        try:
            pair = _planned(row, layout, options)
            for source in (row.a, row.b):
                check_source(source)
            _refuse_foreign(_picture(out, row), options)
            done = _is_finished(pair, out, model_hash, options)
        except DiTiError as error:
            failed.append((row, str(error)))
            continue
        if done:
            finished.append(row.name)
        else:
            todo.append(pair)
    return TablePlan(
        out=out,
        model_hash=model_hash,
        todo=tuple(todo),
        finished=tuple(finished),
        failed=tuple(failed),
        window=options.window or WINDOW,
    )


def prepare_folder(out: Path) -> None:
    """Make the folder, and see that it can be written before minutes of sampling.

    Raises:
        DataError: when it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Cannot write to {out}: {error.strerror}.", remedy="Choose another place.") from error
    check_writable(out)


def write_pair(result: EditResult, pair: PlannedPair, plan: TablePlan, options: ManyOptions) -> None:
    """Write all outputs of a pair; the strip comes last, so that its presence means that the others are there.

    Raises:
        DataError: when one cannot be written.
    """
    name, sheet = pair.row.name, pair_sheet(result)
    command = {"diti:command": options.command(pair.row)} if options.command else {}
    metadata = {**options.metadata, **command, KEY: _key(pair, plan.model_hash, options)}
    if options.warnings and (found := options.warnings(dict(zip(result.names, result.psnr, strict=True)))):
        metadata["diti:warnings"] = " ".join(found)
        sheet = replace(sheet, warnings=tuple(found))
    if options.separate:
        refuse_links(options.separate, [name])
        write_separate(sheet, options.separate / name, metadata)
    if options.animate:
        write_animation(sheet, plan.out / f"{name}{options.animate}", metadata)
    strip = edit_strip(sheet, difference=options.difference)
    save_png(strip, _picture(plan.out, pair.row), {**sheet.metadata, **metadata})


def write_failed(failed: Sequence[tuple[PairRow, str]], out: Path) -> None:
    """Write failed.csv, a table that can be mended and edited again; remove it when there is nothing to list.

    Raises:
        DataError: when it cannot be written.
    """
    path = out / FAILED_NAME
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row, reason in failed:
        files = {side: _absolute(getattr(row, side)) for side in ("a", "b")}
        cells = row.to_dict() | files | {"error": " ".join(reason.split())}
        writer.writerow({column: spreadsheet_cell(cell) for column, cell in cells.items()})
    data = text.getvalue().encode("utf-8", "replace")
    write_atomically(path, "list of failures", data)


def _planned(row: PairRow, layout: ChunkLayout, options: ManyOptions) -> PlannedPair:
    sets = [layout.parse(spec) for spec in row.chunks.split(";") if spec.strip()] if row.chunks else []
    alphas = parse_alphas(row.alphas) if row.alphas else options.alphas
    edits = plan_edits(sets or options.chunk_sets or grouped(layout, OVERVIEW_ROWS), alphas, layout)
    return PlannedPair(row=row, edits=tuple(edits), pictures=len(SIDES) + len(to_decode(edits, options.settings)))


def _absolute(source: str) -> str:
    return source if is_faces(source) else str(Path(source).absolute())


def _picture(out: Path, row: PairRow) -> Path:
    return out / f"{row.name}.png"


def _refuse_foreign(picture: Path, options: ManyOptions) -> None:
    if os.path.lexists(picture) and not options.overwrite and not is_own_picture(str(picture)):
        raise DataError(
            f"{picture} is there already, and diti did not make it.",
            remedy="Choose another -o or name, or write over it with --overwrite.",
        )


def _key(pair: PlannedPair, model_hash: str, options: ManyOptions) -> str:
    """Fingerprint of everything that decides what the pair's outputs look like."""
    settings = asdict(options.settings)
    del settings["batch_size"], settings["compile"]  # they change speed alone, and the last bits
    digests = []
    for source in (pair.row.a, pair.row.b):
        try:
            digests.append(source_digest(source, seed=options.settings.seed))
        except OSError as error:
            raise DataError(f"Cannot read {source}: {error.strerror}.", remedy="Repair or remove it.") from error
    outputs = [options.difference, str(options.separate or ""), options.animate]
    facts = [model_hash, settings, [list(edit) for edit in pair.edits], digests, outputs]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _is_finished(pair: PlannedPair, out: Path, model_hash: str, options: ManyOptions) -> bool:
    """Whether the strip is there and was made from the same images in the same way."""
    picture = _picture(out, pair.row)
    try:
        check_regular(picture)
        with Image.open(picture, formats=["PNG"]) as image:
            found = image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False  # damaged: it will be replaced
    return found is not None and found == _key(pair, model_hash, options)
