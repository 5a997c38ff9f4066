"""The pictures of attribute edits in rows: one for every image, attribute and chunk set."""

from __future__ import annotations

from collections.abc import Sequence

from diticli.editing.attribute import AttributeResult, Chunks, Move
from diticli.editing.mixing import alpha_text
from diticli.editing.pair_sheet import chunks_stem
from diticli.editing.sheet import Cell, Sheet, SheetRow, decibels, image_stems, slug


def attribute_sheet(result: AttributeResult) -> Sheet:
    """Columns: the original, its reconstruction, and the edits in the order of the amounts."""
    rows = tuple(
        _row(result, image, attribute, chunks)
        for image in range(len(result.names))
        for attribute in result.attributes
        for chunks in result.chunk_sets
    )
    columns = ("original", "reconstruction", *amount_texts(result.amounts))
    return Sheet(
        title=_title(result),
        columns=columns,
        rows=rows,
        moving=range(2, len(columns)),
        metadata=result.to_metadata(),
    )


def amount_texts(amounts: Sequence[float]) -> list[str]:
    """Amounts with their signs, which tell more from less: "+0.50", "−1.00", "0"."""
    short = [_signed(amount, f"{abs(amount):.2f}") for amount in amounts]
    distinct = len(set(short)) == len(amounts)
    return short if distinct else [_signed(amount, alpha_text(abs(amount))) for amount in amounts]


def _signed(amount: float, size: str) -> str:
    return "0" if amount == 0 else ("−" if amount < 0 else "+") + size


def _row(result: AttributeResult, image: int, attribute: str, chunks: Chunks) -> SheetRow:
    back, name = result.reconstructions[image], image_stems(result.names)[image]
    where = f"_chunks{chunks_stem(chunks, result.layout)}" if chunks else ""
    edits = [
        Cell(
            picture=result.edits[Move(image, attribute, chunks, amount)],
            stem=f"{name}_{slug(attribute)}{where}_{f'{amount:+g}' if amount else '0'}",
            against=back,
        )
        for amount in result.amounts
    ]
    original = Cell(picture=result.originals[image], stem=f"{name}_original", framed=True)
    reconstruction = Cell(picture=back, stem=f"{name}_reconstruction", against=result.originals[image])
    what = attribute
    if chunks:
        what += ", " + result.layout.describe(chunks).replace("(t ", "(t\N{NO-BREAK SPACE}")
    several = len(result.names) > 1
    first = attribute == result.attributes[0] and chunks == result.chunk_sets[0]
    return SheetRow(
        caption=f"{result.names[image]}: {what}" if several else what,
        cells=(original, reconstruction, *edits),
        across=result.names[image] if several else "",
        down=what,
        begins=first and len(result.attributes) * len(result.chunk_sets) > 1,
    )


def _title(result: AttributeResult) -> str:
    quality = ", ".join(decibels(value) for value in result.psnr[:4]) + (", ..." if len(result.psnr) > 4 else "")
    image = f"{result.names[0]}. " if len(result.names) == 1 else ""
    dims = "" if result.learned_dims is None else f" in {result.learned_dims} learned dims"
    noise = "" if result.settings.noise == "keep" else f" x_T: {result.settings.noise}."
    along = "" if result.along == "weight" else f"'s {result.along}"
    return f"{image}Moved along each attribute{along}{dims}. Reconstruction: {quality} PSNR.{noise}"
