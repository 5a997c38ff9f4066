"""Results of edits in rows of pictures with captions: as one strip, as single files, and as an animation.

result = edit_pair(pipeline, anna, ben, [pipeline.chunks.parse("10-20")], (0.0, 0.5, 1.0))
edit_strip(pair_sheet(result)).save("edit.png")
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from PIL import Image

from diticli.chunks import ChunkLayout
from diticli.editing.inputs import image_stems, slug
from diticli.editing.mixing import alpha_text, chunk_ranges
from diticli.editing.results import (
    SIDES,
    AttributeResult,
    Chunks,
    Edit,
    EditResult,
    Move,
    ReconstructionResult,
    decibels,
)
from diticli.pictures.animation import save_animation, with_slider
from diticli.pictures.differences import difference_gain, difference_map, with_colour_bar
from diticli.pictures.grids import save_png
from diticli.pictures.strips import captioned_strip
from diticli.pictures.tiles import Pixels
from diticli.probing.read_scores import ProbeScore, score_of

MAX_NAME = 80  # characters of a file name that may go to the list of chunks
ANIMATION_TILE_PX, MAX_LARGE_TILES = 192, 4
"""Animated pictures are so many pixels wide where there are so few of them."""
NOISES = {"keep": "x_T inferred", "random": "x_T random", "mean": "x_T mean (zeros)"}
SAME = "\n= reconstruction"
"""Stands below the strength that changes nothing."""
DIFFERENCES = (
    "Difference: mean change of a pixel over its colours, in grey levels; of edits from the reconstruction, of the "
    "reconstruction from the original. One scale for all maps:"
)


@dataclass(frozen=True, kw_only=True)
class SheetCell:
    """One picture of a sheet.

    Attributes:
        picture: uint8 [R, R, 3].
        stem: file name without suffix, under which `write_separate` stores it; cells may share one.
        against: what a difference map compares it to; None leaves it out.
        framed: whether it is an input.
        caption: text below it.
    """

    picture: Pixels
    stem: str
    against: Pixels | None = None
    framed: bool = False
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One row of a sheet.

    Attributes:
        caption: stands before it.
        cells: one a column.
        across: where an animation puts it: the caption of its column of moving pictures.
        down: likewise, of its row.
        begins: whether a new group of rows begins here.
    """

    caption: str
    cells: tuple[SheetCell, ...]
    across: str = ""
    down: str = ""
    begins: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Everything that a strip, single files and an animation need.

    Attributes:
        title: stands above everything.
        columns: a caption for each column.
        rows: at least one.
        moving: the columns that an animation runs through.
        metadata: text that lets the pictures be made again.
        repeated: columns that a strip leaves out, as another shows the same pictures.
        beside: a strip shows as many rows in turn as one, side by side; these are the captions of their originals.
        warnings: what spoils the pictures, in words; they stand below the title.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[SheetRow, ...]
    moving: range
    metadata: Mapping[str, str]
    repeated: frozenset[int] = frozenset()
    beside: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def pair_sheet(result: EditResult) -> Sheet:
    """Two rows a chunk set, which a strip shows as one: A with B's chunks on the left, B with A's on the right.

    Columns: the original, its reconstruction, and the edits in the order of the alphas.
    """
    columns = ("original", "reconstruction", *_alpha_columns(result))
    return Sheet(
        title=_pair_title(result),
        columns=columns,
        rows=tuple(_pair_row(result, own, chunks) for chunks in result.chunk_sets for own in (0, 1)),
        moving=range(2, len(columns)),
        metadata=result.to_metadata(),
        repeated=frozenset({1} if _shows_alpha_zero(result) else ()),
        beside=("A", "B"),
    )


def attribute_sheet(result: AttributeResult, scores: Mapping[str, ProbeScore] | None = None) -> Sheet:
    """One row for every image, attribute and chunk set; `scores`: of the attributes, to stand beside their names.

    Columns: the original, its reconstruction, and the edits in the order of the amounts.
    """
    rows = tuple(
        _attribute_row(result, image, attribute, chunks, scores or {})
        for image in range(len(result.names))
        for attribute in result.attributes
        for chunks in result.chunk_sets
    )
    same = result.zero_is_reconstruction
    texts = zip(amount_texts(result.amounts), result.amounts, strict=True)
    columns = ("original", "reconstruction", *(text + SAME if same and not amount else text for text, amount in texts))
    return Sheet(
        title=_attribute_title(result),
        columns=columns,
        rows=rows,
        moving=range(2, len(columns)),
        metadata=result.to_metadata(),
        repeated=frozenset({1} if same and 0 in result.amounts else ()),
    )


def reconstruction_sheet(result: ReconstructionResult) -> Sheet:
    """One row an image, the PSNR below each of its reconstructions."""
    rows = []
    for i, (name, stem) in enumerate(zip(result.names, image_stems(result.names), strict=True)):
        original = result.originals[i]
        found = [
            SheetCell(
                picture=pictures[i],
                stem=f"{stem}_reconstruction_{noise}",
                against=original,
                caption=decibels(result.psnr[noise][i]),
            )
            for noise, pictures in result.pictures.items()
        ]
        cells = (SheetCell(picture=original, stem=f"{stem}_original", framed=True), *found)
        rows.append(SheetRow(caption=name, cells=cells, down=name))
    columns = ("original", *(NOISES[noise] for noise in result.pictures))
    return Sheet(
        title=f"Decoded from their own features.{_model(result)}",
        columns=columns,
        rows=tuple(rows),
        moving=range(len(columns)),
        metadata=result.to_metadata(),
    )


def edit_strip(sheet: Sheet, *, scale: int | None = None, difference: bool = False) -> Image.Image:
    """All rows of a sheet as one picture; the inputs are framed.

    Args:
        sheet: e.g. of `pair_sheet`.
        scale: integer magnification (default: the smallest that makes images 96 px high and wide).
        difference: below each row, how far every edit is from the reconstruction, and that from the original.
    """
    sheet = _side_by_side(sheet)
    width = len(sheet.columns) // (len(sheet.beside) or 1)
    shown = [column for column in range(len(sheet.columns)) if column not in sheet.repeated]
    gain = _gain(sheet) if difference else None
    all_rows = list(sheet.rows) if gain is None else _with_differences(sheet, gain)
    rows = [replace(row, cells=tuple(row.cells[column] for column in shown)) for row in all_rows]
    cells = [row.cells for row in rows]
    captions = [[cell.caption for cell in row] for row in cells]
    strip = captioned_strip(
        [[cell.picture if cell.picture.size else None for cell in row] for row in cells],
        row_captions=[row.caption for row in rows],
        column_captions=[sheet.columns[column] for column in shown],
        cell_captions=captions if any(map(any, captions)) else None,
        title=sheet.title,
        warnings=sheet.warnings,
        scale=scale,
        mark={(r, c) for r, row in enumerate(cells) for c, cell in enumerate(row) if cell.framed},
        groups={r for r, row in enumerate(rows) if row.begins},
        parts={c for c, column in enumerate(shown) if c and column % width == 0},
    )
    return strip if gain is None else with_colour_bar(strip, gain, DIFFERENCES)


def write_separate(sheet: Sheet, folder: Path | str, metadata: Mapping[str, str] | None = None) -> list[Path]:
    """Write single PNGs such as `a_original.png`, `a_reconstruction.png`, `b_chunks10-20_alpha0.50.png`.

    Raises:
        DataError: when the folder cannot be written.
    """
    text = {**sheet.metadata, **(metadata or {})}
    return [save_png(picture, path, text) for path, picture in _separate(sheet, Path(folder)).items()]


def separate_paths(sheet: Sheet, folder: Path) -> list[Path]:
    """The files that `write_separate` writes."""
    return list(_separate(sheet, folder))


def _separate(sheet: Sheet, folder: Path) -> dict[Path, Pixels]:
    pictures = {cell.stem: cell.picture for row in sheet.rows for cell in row.cells}
    return {folder / f"{stem}.png": picture for stem, picture in sorted(pictures.items())}


def write_animation(sheet: Sheet, path: Path | str, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a .webp or .gif that runs through the strengths forth and back, each beside its original, both directions
    side by side.

    Raises:
        ConfigError: for another suffix.
        DataError: when the file cannot be written.
    """
    last = max(1, len(sheet.moving) - 1)
    captions = [sheet.columns[column].removesuffix(SAME) for column in sheet.moving]
    frames = [with_slider(_frame(sheet, column), captions[i], i / last) for i, column in enumerate(sheet.moving)]
    return save_animation(frames, path, {**sheet.metadata, **(metadata or {})})


def edit_stem(edit: Edit, layout: ChunkLayout) -> str:
    """A file name without suffix, such as b_chunks10-20_alpha0.50."""
    return f"{edit.side}_chunks{chunks_stem(edit.chunks, layout)}_alpha{alpha_text(edit.alpha)}"


def chunks_stem(chunks: tuple[int, ...], layout: ChunkLayout) -> str:
    """Chunks as a part of a file name: their ranges, or a checksum of many."""
    runs = chunk_ranges(layout, chunks)
    if len(runs) > MAX_NAME:
        return f"{chunks[0]}-{chunks[-1]}-{len(chunks)}of-{zlib.crc32(runs.encode()):08x}"
    return runs


def amount_texts(amounts: Sequence[float]) -> list[str]:
    """Amounts with their signs, which tell more from less: "+0.50", "−1.00", "0"."""
    short = [_signed(amount, f"{abs(amount):.2f}") for amount in amounts]
    distinct = len(set(short)) == len(amounts)
    return short if distinct else [_signed(amount, alpha_text(abs(amount))) for amount in amounts]


def _signed(amount: float, size: str) -> str:
    return "0" if amount == 0 else ("−" if amount < 0 else "+") + size


def _shows_alpha_zero(result: EditResult) -> bool:
    """Whether one of the alphas is the reconstruction once more."""
    return 0 in result.alphas and result.settings.alpha_zero_is_reconstruction


def _alpha_columns(result: EditResult) -> list[str]:
    same = result.settings.alpha_zero_is_reconstruction
    return [f"α {alpha_text(alpha)}" + (SAME if same and alpha == 0 else "") for alpha in result.alphas]


def _pair_row(result: EditResult, own: int, chunks: tuple[int, ...]) -> SheetRow:
    side = SIDES[own]
    back, before = result.reconstructions[own], result.originals[own]
    same = result.settings.alpha_zero_is_reconstruction
    edits = [
        SheetCell(
            picture=result.edits[Edit(side, chunks, alpha)],
            stem=edit_stem(Edit(side, chunks, alpha), result.layout),
            against=before if same and alpha == 0 else back,
        )
        for alpha in result.alphas
    ]
    original = SheetCell(picture=before, stem=f"{side}_original", framed=True)
    reconstruction = SheetCell(picture=back, stem=f"{side}_reconstruction", against=before)
    what = _in_words(result.layout, chunks)
    across = f"{'AB'[own]} with {'BA'[own]}'s"
    return SheetRow(
        caption=f"{across} {what}",
        cells=(original, reconstruction, *edits),
        across=across,
        down=what,
    )


def _attribute_row(
    result: AttributeResult, image: int, attribute: str, chunks: Chunks, scores: Mapping[str, ProbeScore]
) -> SheetRow:
    back, before = result.reconstructions[image], result.originals[image]
    name = image_stems(result.names)[image]
    where = f"_chunks{chunks_stem(chunks, result.layout)}" if chunks else ""
    besides = "".join(f"_{slug(other)}_{amount:+g}" for other, amount in result.also.items())
    same = result.zero_is_reconstruction
    edits = [
        SheetCell(
            picture=result.edits[Move(image, attribute, chunks, amount)],
            stem=f"{name}_{slug(attribute)}{where}_{f'{amount:+g}' if amount else '0'}{besides}",
            against=before if same and amount == 0 else back,
        )
        for amount in result.amounts
    ]
    original = SheetCell(picture=before, stem=f"{name}_original", framed=True)
    reconstruction = SheetCell(picture=back, stem=f"{name}_reconstruction", against=before)
    score = score_of(scores, attribute)
    what = attribute if score is None else f"{attribute} ({score.short()})"
    if chunks:
        what += ", " + _in_words(result.layout, chunks)
    several = len(result.names) > 1
    first = attribute == result.attributes[0] and chunks == result.chunk_sets[0]
    return SheetRow(
        caption=f"{result.names[image]}: {what}" if several else what,
        cells=(original, reconstruction, *edits),
        across=result.names[image] if several else "",
        down=what,
        begins=first and len(result.attributes) * len(result.chunk_sets) > 1,
    )


def _side_by_side(sheet: Sheet) -> Sheet:
    """The sheet with rows in turn put beside each other, where it says so."""
    count, width = len(sheet.beside), len(sheet.columns)
    if not count:
        return sheet
    turns = [sheet.rows[first : first + count] for first in range(0, len(sheet.rows), count)]
    return replace(
        sheet,
        rows=tuple(
            SheetRow(caption=turn[0].down, cells=tuple(cell for row in turn for cell in row.cells)) for turn in turns
        ),
        columns=tuple(name for original in sheet.beside for name in (original, *sheet.columns[1:])),
        repeated=frozenset(part * width + column for part in range(count) for column in sheet.repeated),
    )


def _in_words(layout: ChunkLayout, chunks: tuple[int, ...]) -> str:
    return layout.describe(chunks).replace("(t ", "(t\N{NO-BREAK SPACE}")


def _pair_title(result: EditResult) -> str:
    sets = result.chunk_sets
    what = result.layout.describe(sets[0]).split(" (")[0] if len(sets) == 1 else "chunks"
    images = ", ".join(f"{letter} = {name}" for letter, name in zip("AB", result.names, strict=True))
    quality = " and ".join(decibels(value) for value in result.psnr)
    noise = _noise_in_words(result.settings.noise)
    done = f"A with B's {what} (left), and B with A's (right)."
    return f"{done} {images}. Reconstruction: {quality} PSNR.{noise}{_model(result)}"


def _attribute_title(result: AttributeResult) -> str:
    quality = ", ".join(decibels(value) for value in result.psnr[:4]) + (", ..." if len(result.psnr) > 4 else "")
    image = f"{result.names[0]}. " if len(result.names) == 1 else ""
    dims = "" if result.learned_dims is None else f" in {result.learned_dims} learned dims"
    along = "" if result.along == "weight" else f"'s {result.along}"
    noise = _noise_in_words(result.settings.noise)
    also = ", ".join(f"{name} {_signed(amount, alpha_text(abs(amount)))}" for name, amount in result.also.items())
    done = f"{image}Moved along each attribute{along}{dims}, in standard deviations of a dim"
    done += f", and every edit by {also}" if also else ""
    return f"{done}. Reconstruction: {quality} PSNR.{noise}{_model(result)}"


def _model(result: EditResult | AttributeResult | ReconstructionResult) -> str:
    """The model by the last two parts of its name: a run and its folder, or an owner's model."""
    return f" Model: {'/'.join(PurePath(result.model_name).parts[-2:])}." if result.model_name else ""


def _noise_in_words(noise: str) -> str:
    return "" if noise == "keep" else f" x_T: {noise}."


def _frame(sheet: Sheet, column: int) -> Image.Image:
    across = list(dict.fromkeys(row.across for row in sheet.rows))
    down = list(dict.fromkeys(row.down for row in sheet.rows))
    pictures: list[list[Pixels | None]] = [[None] * (2 * len(across)) for _ in down]
    for row in sheet.rows:
        at, shown = 2 * across.index(row.across), pictures[down.index(row.down)]
        shown[at : at + 2] = row.cells[0].picture, row.cells[column].picture
    side = sheet.rows[0].cells[column].picture.shape[0]
    scale = max(1, round(ANIMATION_TILE_PX / side)) if 2 * len(down) * len(across) <= MAX_LARGE_TILES else None
    captions = [text for name in across for text in ("original", name)]
    return captioned_strip(pictures, row_captions=down, column_captions=captions, scale=scale)


def _gain(sheet: Sheet) -> int:
    """One magnification for all maps of a sheet."""
    cells = [cell for row in sheet.rows for cell in row.cells]
    return difference_gain((cell.picture, cell.against) for cell in cells if cell.against is not None)


def _with_differences(sheet: Sheet, gain: int) -> list[SheetRow]:
    """Each row, and below it the maps of its cells."""
    rows = []
    for row in sheet.rows:
        maps = tuple(_difference(cell, gain) for cell in row.cells)
        rows += [replace(row, begins=True), SheetRow(caption="difference", cells=maps)]
    return rows


def _difference(cell: SheetCell, gain: int) -> SheetCell:
    if cell.against is None:
        return SheetCell(picture=cell.picture[:0], stem="")
    return SheetCell(picture=difference_map(cell.picture, cell.against, gain), stem="")
