"""What `diti evaluate` shows on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.evaluation.attribute_classifier import AttributeClassifier
    from diticli.evaluation.evaluate import Faithfulness
    from diticli.evaluation.evidence import Evidence
    from diticli.pictures.report import Cell


def quarters_and_all(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """All chunks in (up to) four consecutive sets, and all at once."""
    from diticli.editing.stages import OVERVIEW_ROWS, grouped

    return list(dict.fromkeys([*grouped(layout, OVERVIEW_ROWS), tuple(range(layout.chunks))]))


def say_reader(classifier: AttributeClassifier) -> None:
    """How many attributes can be judged, before any of them is."""
    from diticli.commands.console import say
    from diticli.evaluation.report import classifier_text

    say(classifier_text(classifier))


def show_faithfulness(result: Faithfulness) -> None:
    """Tables of exchanged chunks and of moved attributes."""
    from diticli.commands.console import say
    from diticli.evaluation.report import move_legend, move_table, swap_legend, swap_table, verdict_text

    say(verdict_text(result))
    _show("Exchanged chunks: transfer rate of each attribute", swap_table(result))
    if result.swaps:
        say(swap_legend(result))
    _show(f"Moved along an attribute by {result.facts['amount']:g}, in standard deviations", move_table(result))
    if result.moves:
        say(move_legend(result))


def show_evidence(model: str, evidence: Evidence) -> None:
    """Tables of what else was measured."""
    from diticli.commands.console import say
    from diticli.evaluation.evidence_report import modularity_text, order_text, use_text
    from diticli.evaluation.evidence_tables import (
        atlas_table,
        composition_table,
        gap_table,
        lost_table,
        missing_text,
        realism_table,
        use_table,
    )

    if evidence.atlas is not None:
        _show(f"{model}: each chunk exchanged alone", atlas_table(evidence.atlas))
        say(modularity_text(evidence.atlas))
    if evidence.lost is not None:
        _show("When the noise hides half of each attribute", lost_table(evidence.lost, evidence.atlas))
        if evidence.atlas is not None:
            say(order_text(evidence.order))
    if evidence.gap is not None:
        _show(f"{model}: error of the predicted image", gap_table(evidence.gap))
    if evidence.use is not None:
        _show(f"{model}: rise of the loss without a chunk", use_table(evidence.use))
        say(use_text(evidence.use))
    if evidence.composition is not None:
        _show(f"{model}: edits by nothing, one after another", composition_table(evidence.composition))
    if evidence.realism is not None:
        _show(f"{model}: reconstructions and realism of edits", realism_table(evidence.realism))
        if missing := missing_text(evidence.realism):
            say(missing)


def _show(title: str, table: tuple[list[str], list[list[Cell]]]) -> None:
    from diticli.commands.console import show_table

    columns, rows = table
    if rows:
        show_table(title, columns, [[_text(cell) for cell in row] for row in rows], spare=["second"])


def _text(cell: Cell) -> str:
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
