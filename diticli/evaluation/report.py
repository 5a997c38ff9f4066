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
from diticli.errors import ConfigError
from diticli.evaluation.attribute_classifier import AttributeClassifier, unreadable
from diticli.evaluation.evaluate import Faithfulness
from diticli.evaluation.evidence import Evidence
from diticli.evaluation.evidence_report import evidence_sections
from diticli.evaluation.evidence_tables import Table, chunk_heading, chunk_text, digits
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.scores import to_json
from diticli.files import write_atomically
from diticli.pictures.charts import heatmap_chart
from diticli.pictures.grids import captioned_strip, save_png
from diticli.pictures.report import Cell, Section, write_report

FEW_PAIRS = 10
"""Edited pairs below which resampled intervals are far off: of four, nearly all resamples hold one pair twice."""


def check_readable(classifier: AttributeClassifier, *, force: bool) -> None:
    """Make sure that there is something to judge by.

    Raises:
        ConfigError: for a classifier that can read no attribute, unless `force`.
    """
    if len(unreadable(classifier)) == len(classifier.reliability) and not force:
        raise ConfigError(
            "The attribute classifier can read none of the attributes, so no edit can be judged.",
            remedy="Give it more --learn images or --epochs; --force goes on all the same.",
        )


def classifier_text(classifier: AttributeClassifier) -> str:
    """How many attributes can be judged, and which cannot."""
    names, poor = list(classifier.reliability), unreadable(classifier)
    text = f"The attribute classifier reads {len(names) - len(poor)} of {len(names)} attributes well enough to judge."
    if not poor:
        return text
    worse = worse_than_guessing(classifier)
    guessing = f" Worse than guessing: {', '.join(worse)}." if worse else ""
    return f"{text} Not judged: {', '.join(poor)}.{guessing} More --learn images or --epochs may help."


def worse_than_guessing(classifier: AttributeClassifier) -> list[str]:
    """Attributes whose reliability is below 0, which is what guessing scores."""
    return [name for name, score in classifier.reliability.items() if score < 0]


def swap_table(result: Faithfulness, *, rates: bool = True) -> Table:
    """A column per set of chunks: transfer rate of each attribute, other change, drift, PSNR to the truth.

    Attributes that the classifier cannot read are left out; without `rates` all are.
    """
    swaps = result.swaps
    columns = ["chunks", *(chunk_text(score.chunks) for score in swaps)]
    rows: list[list[Cell]] = [["timesteps", *(f"{s.timesteps[0]}-{s.timesteps[1] - 1}" for s in swaps)]]
    names = [name for name in (swaps[0].shares if swaps else ()) if name not in result.unreadable]
    rows += [[name, *(digits(score.shares[name].value) for score in swaps)] for name in names if rates]
    if names:
        rows.append(["other change", *(f"{np.mean([s.unexplained[n] for n in names]):.2f}" for s in swaps)])
    if any(score.drift is not None for score in swaps):
        rows.append(["drift, grey levels", *(digits(_known(score.drift), 1) for score in swaps)])
        rows.append(["dB to truth", *(digits(score.truth_psnr, 1) for score in swaps)])
        rows.append(["dB of doing nothing", *(digits(score.still_psnr, 1) for score in swaps)])
    return columns, rows if swaps else []


def swap_legend(result: Faithfulness) -> str:
    """What the rows below the rates are, and why some are missing."""
    text = (
        "Other change: root mean square of all change that is not towards the partner, in standard deviations. Drift: "
    )
    if why := result.facts.get("no_drift"):
        return f"{text}not measured, as {why}."
    return (
        f"{text}mean change in grey levels of the pixels that a perfect exchange of the moved attributes leaves alone. "
        "dB to truth: edits against the drawing of that perfect exchange; dB of doing nothing: the unedited images "
        "against it."
    )


def move_legend(result: Faithfulness) -> str:
    """What the columns are."""
    text = (
        f"Each image moved by {result.facts['amount']:g} both ways along the {result.facts['along']} of a linear "
        "probe; half the mean difference, in standard deviations. Selectivity: share of the attribute itself in "
        "the sum of all changes."
    )
    if any(score.drift is not None for score in result.moves):
        text += " Drift: mean change in grey levels of pixels that the attribute cannot change, if any."
    return text


def move_table(result: Faithfulness) -> Table:
    """One row per attribute: change of itself, mean and largest change of another one, selectivity, drift if known."""
    columns = ["attribute", "itself", "others, mean", "largest", "of", "selectivity", "drift"]
    rows: list[list[Cell]] = []
    for score in result.moves:
        leak = score.change.leakage
        worst = max(leak, key=lambda name: abs(leak[name]), default="")
        row: list[Cell] = [score.attribute, *map(digits, (score.change.target, score.change.mean_leakage))]
        most = digits(leak.get(worst), 2)
        rows.append([*row, most, worst, f"{score.change.selectivity:.2f}", digits(_known(score.drift), 1)])
    known = len(columns) - all(score.drift is None for score in result.moves)
    return columns[:known], [row[:known] for row in rows]


def _chunks(chunks: Sequence[int]) -> str:
    return f"chunk{'s' if len(chunks) > 1 else ''} {chunk_text(chunks)}"


def write_evaluation(
    results: Sequence[Faithfulness],
    classifier: AttributeClassifier,
    images: EvaluationImages,
    out: Path,
    *,
    evidence: Sequence[tuple[Evidence, ChunkLayout]] = (),
    command: str = "",
) -> dict[str, Any]:
    """Write evaluation.json, pictures and report.html into `out`; returns what the JSON holds.

    Args:
        results: one per model.
        classifier: that judged them.
        images: on these images.
        out: folder.
        evidence: what else was measured of each model, and its chunks; none, or one per model.
        command: that repeats it.

    Raises:
        DataError: when `out` cannot be written.
    """
    facts = {
        "images": images.name,
        "reader": {"learned_from": len(images.learn_NCHW), "reliability": to_json(classifier.reliability)},
        "unreadable": unreadable(classifier),
        "worse_than_guessing": worse_than_guessing(classifier),
        "models": [
            {**result.to_dict(), **(evidence[index][0].to_dict() if evidence else {})}
            for index, result in enumerate(results)
        ],
        "version": __version__,
        "command": command,
    }
    text = json.dumps(facts, indent=1, allow_nan=False) + "\n"
    write_atomically(out / "evaluation.json", "evaluation", text)
    sections = [_verdict(results, classifier)]
    for index, result in enumerate(results):
        sections += _examples(result, out / f"edits-{index}.png")
    for index, result in enumerate(results):
        sections += _model_sections(result, out / f"shares-{index}.png")
        if evidence:
            sections += evidence_sections(evidence[index][0], result.model, evidence[index][1], out, index)
    sections.append(_classifier_section(classifier, images))
    if command:
        sections.append(Section(title="Repeat it", code=command))
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
        "attribute; guessing scores 0."
    )
    rows: list[list[Cell]] = [
        [name, f"{score:.2f}", ("not judged" if name in poor else "") + ", worse than guessing" * (score < 0)]
        for name, score in classifier.reliability.items()
    ]
    return Section(title="The attribute classifier", text=text, table=(["attribute", "reliability", ""], rows))


def _verdict(results: Sequence[Faithfulness], classifier: AttributeClassifier) -> Section:
    """What is found, in a sentence a model, after whatever makes it worthless."""
    lines = [f"Warning, {result.model}: {text}" for result in results for text in result.warnings]
    lines += [f"Model: {origin}." for result in results if (origin := result.facts.get("model_origin"))]
    lines += [verdict_text(result) for result in results]
    return Section(title="The verdict", text="\n\n".join([*lines, classifier_text(classifier)]))


def verdict_text(result: Faithfulness) -> str:
    """What the largest exchange transfers, and how well images come back."""
    text = f"{result.model}: reconstruction {result.reconstruction_psnr:.1f} dB over {result.images} images"
    readable = [name for name in (result.swaps[0].shares if result.swaps else ()) if name not in result.unreadable]
    if not readable:
        return f"{text}."
    largest = max(result.swaps, key=lambda score: len(score.chunks))
    rates = {name: largest.shares[name] for name in readable}
    worst, best = (choose(rates, key=lambda name: rates[name].value) for choose in (min, max))
    mean = largest.mean.text() if largest.mean else ""
    pairs = result.images // 2
    few = f" {pairs} pairs are too few for these intervals to be trusted." if pairs < FEW_PAIRS else ""
    return (
        f"{text}. {_chunks(largest.chunks).capitalize()} of the partner: mean transfer rate {mean}, "
        f"{pairs} pairs, over the {len(rates)} of {len(largest.shares)} attributes that the classifier "
        f"reads; least {rates[worst].text(most=2)} ({worst}), most {rates[best].text(most=2)} ({best}). In brackets: "
        f"95 % intervals.{few}"
    )


def _examples(result: Faithfulness, picture: Path) -> list[Section]:
    """A strip of edited pairs."""
    if (shown := result.examples) is None or not len(shown.first):
        return []
    tiles = (shown.first, shown.again, *shown.edits, shown.second)
    columns = ["A", "A again", *(_chunks(score.chunks) for score in result.swaps), "B"]
    strip = captioned_strip(
        [list(row) for row in zip(*tiles, strict=True)],
        row_captions=[f"pair {index + 1}" for index in range(len(shown.first))],
        column_captions=columns,
        title="A with B's chunks",
        mark={(row, column) for row in range(len(shown.first)) for column in (0, len(columns) - 1)},
    )
    text = "A again: inverted and decoded. The columns before B: A with these chunks of B. A and B are the originals."
    return [Section(title=f"{result.model}: edits", text=text, picture=save_png(strip, picture))]


def _model_sections(result: Faithfulness, picture: Path) -> list[Section]:
    swaps, moves = swap_table(result, rates=False), move_table(result)  # the heatmap has the rates
    names = list(result.swaps[0].shares) if result.swaps else []
    sections = []
    if result.swaps:
        heatmap_chart(
            picture,
            [
                [math.nan if name in result.unreadable else score.shares[name].value for score in result.swaps]
                for name in names
            ],
            rows=names,
            columns=[chunk_heading(score.chunks, score.timesteps) for score in result.swaps],
            title="Transfer rate of exchanged chunks",
        )
        text = (
            f"{result.images} images in pairs, inverted and decoded in {result.facts['steps_run']} steps each; "
            f"reconstruction {result.reconstruction_psnr:.1f} dB. Transfer rate: the share of the "
            "partner's attribute that the edited image gets, by the attribute classifier's predictions: 0 is nothing, "
            "also where the own one is only erased, 1 is all of it. Grey: attributes that the classifier cannot read. "
            f"{swap_legend(result)}"
        )
        words, title = ("chunk", "timestep", "transfer rate"), f"{result.model}: exchanged chunks"
        sections.append(Section(title=title, text=text, words=words, picture=picture, table=swaps))
    if result.moves:
        title = f"{result.model}: moved attributes"
        sections.append(Section(title=title, text=move_legend(result), words=("probe",), table=moves))
    return sections
