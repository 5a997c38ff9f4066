"""An `EditResult` as one captioned strip, and as single files."""

from __future__ import annotations

import zlib
from pathlib import Path

from PIL import Image

from diticli.analysis.edit import SIDES, Edit, EditResult, Side
from diticli.analysis.mixing import alpha_text
from diticli.chunks import ChunkLayout
from diticli.pictures.grids import Pixels, captioned_strip, save_png

MAX_NAME = 80  # characters of a file name that may go to the list of chunks


def edit_strip(result: EditResult, *, scale: int | None = None) -> Image.Image:
    """Two rows a chunk set: A with B's chunks, and B with A's.

    Columns: the original, its reconstruction, the edits by rising alpha, and the image the chunks come from.
    The inputs are framed.
    """
    rows: list[list[Pixels | None]] = []
    captions = []
    for chunks in result.chunk_sets:
        for own, side in enumerate(SIDES):
            edits = [result.edits[Edit(side, chunks, alpha)] for alpha in result.alphas]
            rows.append([result.originals[own], result.reconstructions[own], *edits, result.originals[1 - own]])
            mine, other = "AB"[own], "BA"[own]
            what = result.layout.describe(chunks).replace("(t ", "(t\N{NO-BREAK SPACE}")
            captions.append(f"{mine} + {other}'s {what}")
    columns = ["original", "reconstruction", *(f"α {alpha_text(a)}" for a in result.alphas), "chunks from"]
    last = len(columns) - 1
    return captioned_strip(
        rows,
        row_captions=captions,
        column_captions=columns,
        title=_title(result),
        scale=scale,
        mark={(r, c) for r in range(len(rows)) for c in (0, last)},
    )


def write_separate(result: EditResult, folder: Path | str) -> list[Path]:
    """Write single PNGs such as `a_original.png`, `a_reconstruction.png`, `b_chunks10-20_alpha0.50.png`.

    Raises:
        DataError: when the folder cannot be written.
    """
    pictures: dict[str, Pixels] = {}
    for own, side in enumerate(SIDES):
        pictures[f"{side}_original"] = result.originals[own]
        pictures[f"{side}_reconstruction"] = result.reconstructions[own]
    for edit, picture in result.edits.items():
        pictures[_file_name(edit, result.layout)] = picture
    metadata = result.to_metadata()
    return [save_png(picture, Path(folder) / f"{name}.png", metadata) for name, picture in pictures.items()]


def _title(result: EditResult) -> str:
    quality = [f"{value:.1f} dB" if value < 1000 else "exact" for value in result.psnr]
    images = (f"{letter} = {name}" for letter, name in zip("AB", result.names, strict=True))
    text = f"{', '.join(images)}. Reconstruction: {quality[0]} and {quality[1]} PSNR."
    return f"{text} x_T: {result.settings.noise}."


def _file_name(edit: Edit, layout: ChunkLayout) -> str:
    side: Side = edit.side
    runs = layout.describe(edit.chunks).split()[1]
    if len(runs) > MAX_NAME:
        runs = f"{edit.chunks[0]}-{edit.chunks[-1]}-{len(edit.chunks)}of-{zlib.crc32(runs.encode()):08x}"
    return f"{side}_chunks{runs}_alpha{alpha_text(edit.alpha)}"
