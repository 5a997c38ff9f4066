"""The pictures of a pair's edit in rows: both directions of every chunk set."""

from __future__ import annotations

import zlib

from diticli.chunks import ChunkLayout
from diticli.editing.mixing import alpha_text
from diticli.editing.pair import SIDES, Edit, EditResult
from diticli.editing.sheet import Cell, Sheet, SheetRow, decibels

MAX_NAME = 80  # characters of a file name that may go to the list of chunks


def pair_sheet(result: EditResult) -> Sheet:
    """Two rows a chunk set: A with B's chunks, and B with A's.

    Columns: the original, its reconstruction, the edits in the order of the alphas, and the image that the chunks
    come from.
    """
    rows = tuple(_row(result, own, chunks) for chunks in result.chunk_sets for own in (0, 1))
    columns = ("original", "reconstruction", *(f"α {alpha_text(a)}" for a in result.alphas), "chunks from")
    return Sheet(
        title=_title(result),
        columns=columns,
        rows=rows,
        moving=range(2, len(columns) - 1),
        metadata=result.to_metadata(),
    )


def grid_sheet(result: EditResult) -> Sheet:
    """One row a chunk set, for many of them: A with B's chunks on the left, B with A's on the right."""
    rows = []
    for chunks in result.chunk_sets:
        halves = [_row(result, own, chunks) for own in (0, 1)]
        cells = tuple(cell for half in halves for cell in half.cells[:-1])
        rows.append(SheetRow(caption=halves[0].down, cells=cells))
    alphas = [f"α {alpha_text(a)}" for a in result.alphas]
    columns = ("A", "reconstruction", *alphas, "B", "reconstruction", *alphas)
    return Sheet(
        title=f"{_title(result)} Left: A with B's chunks, right: B with A's.",
        columns=columns,
        rows=tuple(rows),
        moving=range(0),
        metadata=result.to_metadata(),
    )


def _row(result: EditResult, own: int, chunks: tuple[int, ...]) -> SheetRow:
    side, other = SIDES[own], 1 - own
    back = result.reconstructions[own]
    edits = [
        Cell(
            picture=result.edits[Edit(side, chunks, alpha)],
            stem=edit_stem(Edit(side, chunks, alpha), result.layout),
            against=back,
        )
        for alpha in result.alphas
    ]
    source = Cell(picture=result.originals[other], stem=f"{SIDES[other]}_original", framed=True)
    original = Cell(picture=result.originals[own], stem=f"{side}_original", framed=True)
    reconstruction = Cell(picture=back, stem=f"{side}_reconstruction", against=result.originals[own])
    what = result.layout.describe(chunks).replace("(t ", "(t\N{NO-BREAK SPACE}")
    mine, theirs = "AB"[own], "BA"[own]
    return SheetRow(
        caption=f"{mine} + {theirs}'s {what}",
        cells=(original, reconstruction, *edits, source),
        across=f"{mine} + {theirs}'s",
        down=what,
        begins=own == 0,
    )


def edit_stem(edit: Edit, layout: ChunkLayout) -> str:
    """A file name without suffix, such as b_chunks10-20_alpha0.50."""
    return f"{edit.side}_chunks{chunks_stem(edit.chunks, layout)}_alpha{alpha_text(edit.alpha)}"


def chunks_stem(chunks: tuple[int, ...], layout: ChunkLayout) -> str:
    """Chunks as a part of a file name: their ranges, or a checksum of many."""
    runs = layout.describe(chunks).split()[1]
    if len(runs) > MAX_NAME:
        return f"{chunks[0]}-{chunks[-1]}-{len(chunks)}of-{zlib.crc32(runs.encode()):08x}"
    return runs


def _title(result: EditResult) -> str:
    images = (f"{letter} = {name}" for letter, name in zip("AB", result.names, strict=True))
    quality = " and ".join(decibels(value) for value in result.psnr)
    return f"{', '.join(images)}. Reconstruction: {quality} PSNR. x_T: {result.settings.noise}."
