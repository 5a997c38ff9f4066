"""Faithfulness as tables, a heatmap, JSON and one HTML page, which other evidence joins."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diticli._version import __version__
from diticli.chunks import ChunkLayout
from diticli.evaluation.attribute_classifier import AttributeClassifier, unreadable
from diticli.evaluation.evaluate import Faithfulness
from diticli.evaluation.evidence import Evidence
from diticli.evaluation.evidence_report import evidence_sections
from diticli.evaluation.evidence_tables import Table, chunk_text
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.scores import to_json
from diticli.files import write_atomically
from diticli.pictures.charts import heatmap_chart
from diticli.pictures.report import Cell, Section, write_report


def swap_table(result: Faithfulness) -> Table:
    """A column per set of chunks: transfer rate of each attribute, other change, drift, PSNR to the truth."""
    swaps = result.swaps
    columns = ["chunks", *(chunk_text(score.chunks) for score in swaps)]
    rows: list[list[Cell]] = [["timesteps", *(f"{s.timesteps[0]}-{s.timesteps[1] - 1}" for s in swaps)]]
    rows += [[name, *(score.shares[name].value for score in swaps)] for name in (swaps[0].shares if swaps else ())]
    rows.append(["other change", *(float(np.mean(list(score.unexplained.values()))) for score in swaps)])
    if any(score.drift is not None for score in swaps):
        rows.append(["drift, grey levels", *(_known(score.drift) for score in swaps)])
        rows.append(["dB to truth", *(score.truth_psnr for score in swaps)])
        rows.append(["dB of doing nothing", *(score.still_psnr for score in swaps)])
    return columns, rows if swaps else []


def move_table(result: Faithfulness) -> Table:
    """One row per attribute: change of itself, mean and largest change of another one, selectivity, drift."""
    columns = ["attribute", "itself", "others, mean", "others, largest", "which", "selectivity", "drift"]
    rows: list[list[Cell]] = []
    for score in result.moves:
        leak = score.change.leakage
        worst = max(leak, key=lambda name: abs(leak[name]), default="")
        row: list[Cell] = [score.attribute, score.change.target, score.change.mean_leakage]
        rows.append([*row, leak.get(worst), worst, score.change.selectivity, _known(score.drift)])
    return columns, rows


def write_evaluation(
    results: Sequence[Faithfulness],
    classifier: AttributeClassifier,
    images: EvaluationImages,
    out: Path,
    *,
    evidence: Sequence[tuple[Evidence, ChunkLayout]] = (),
) -> dict[str, Any]:
    """Write evaluation.json, pictures and report.html into `out`; returns what the JSON holds.

    Args:
        results: one per model.
        classifier: that judged them.
        images: on these images.
        out: folder.
        evidence: what else was measured of each model, and its chunks; none, or one per model.

    Raises:
        DataError: when `out` cannot be written.
    """
    facts = {
        "images": images.name,
        "reader": {"learned_from": len(images.learn_NCHW), "reliability": to_json(classifier.reliability)},
        "unreadable": unreadable(classifier),
        "models": [
            {**to_json(result), **(evidence[index][0].to_dict() if evidence else {})}
            for index, result in enumerate(results)
        ],
        "version": __version__,
    }
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    write_atomically(out / "evaluation.json", "evaluation", text)
    sections = [_classifier_section(classifier, images)]
    for index, result in enumerate(results):
        sections += _model_sections(result, out / f"shares-{index}.png")
        if evidence:
            sections += evidence_sections(evidence[index][0], result.model, evidence[index][1], out, index)
    write_report(out / "report.html", title="Faithfulness of edits", sections=sections)
    return facts


def _known(value: float | None) -> float | None:
    """None where a perfect edit changes every pixel, so that nothing is outside."""
    return None if value is None or math.isnan(value) else value


def _classifier_section(classifier: AttributeClassifier, images: EvaluationImages) -> Section:
    poor = unreadable(classifier)
    text = (
        f"A small network learned to predict the attributes from {len(images.learn_NCHW):,} images ({images.name}), "
        "independently of the models. Its reliability on held-out images: R2 of a number, 2 (AUC - 0.5) of a binary "
        "attribute."
    )
    if poor:
        text += f"\n\nIts predictions of these are too poor to measure edits by: {', '.join(poor)}."
    rows: list[list[Cell]] = [[name, score] for name, score in classifier.reliability.items()]
    return Section(title="The attribute classifier", text=text, table=(["attribute", "reliability"], rows))


def _model_sections(result: Faithfulness, picture: Path) -> list[Section]:
    swaps, moves = swap_table(result), move_table(result)
    names = list(result.swaps[0].shares) if result.swaps else []
    sections = []
    if result.swaps:
        heatmap_chart(
            picture,
            [[score.shares[name].value for name in names] for score in result.swaps],
            rows=[f"{chunk_text(s.chunks)} (t {s.timesteps[0]}-{s.timesteps[1] - 1})" for s in result.swaps],
            columns=names,
            title="Transfer rate of exchanged chunks",
        )
        text = (
            f"{result.images} images in pairs, inverted and decoded in {result.facts['steps_run']} steps each; "
            f"reconstruction {result.reconstruction_psnr:.1f} dB. Transfer rate: the share of the "
            "partner's attribute that the edited image gets, by the attribute classifier's predictions: 0 is nothing, "
            "also where the own one is only erased, 1 is all of it. Other change: root mean square of all change that "
            "is not towards the partner, in standard deviations."
        )
        if result.swaps[0].drift is not None:
            text += (
                " Drift: mean change in grey levels of the pixels that a perfect exchange of the moved attributes "
                "leaves alone; dB to truth: edits against the drawing of that perfect exchange, and what doing nothing "
                "would score."
            )
        sections.append(Section(title=f"{result.model}: exchanged chunks", text=text, picture=picture, table=swaps))
    if result.moves:
        text = (
            f"Each image moved by {result.facts['amount']:g} both ways along the {result.facts['along']} of a linear "
            "probe; half the mean difference, in standard deviations. Selectivity: share of the attribute itself in "
            "the sum of all changes."
        )
        sections.append(Section(title=f"{result.model}: moved attributes", text=text, table=moves))
    return sections
