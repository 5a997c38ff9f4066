"""A comparison as one HTML page, JSON for scripts, and the commands that repeat it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from diticli.chunks import ChunkLayout
from diticli.comparison.charts import score_chart
from diticli.comparison.pictures import side_by_side
from diticli.comparison.probes import METRIC_DIMS
from diticli.comparison.repeat import commands
from diticli.comparison.run import Comparison
from diticli.comparison.scores import verdicts
from diticli.comparison.tables import (
    Table,
    attribute_table,
    benchmark_table,
    centre_table,
    difference_table,
    entry_table,
    metric_table,
    readable,
    score_table,
    statistics_table,
    swap_table,
)
from diticli.evaluation.evidence_tables import chunk_heading
from diticli.evaluation.scores import to_json
from diticli.files import write_atomically
from diticli.pictures.charts import heatmap_chart
from diticli.pictures.grids import save_png
from diticli.pictures.heatmaps import chunk_heatmap
from diticli.pictures.report import Section, write_report
from diticli.probing.chunk_probe import AGAINST_THE_IDEA, GAIN_CENTRE, OWN_SKILL_CENTRE
from diticli.probing.report import guessing_doubts
from diticli.training.rundir import versions

REPORT, DATA, COMMANDS = "report.html", "compare.json", "commands.sh"


def write_comparison(result: Comparison, out: Path, own: Sequence[str]) -> dict[str, Any]:
    """Write report.html, compare.json, commands.sh and the pictures into `out`; returns what the JSON holds.

    Args:
        result: what was found.
        out: made when missing.
        own: the command line of the comparison.

    Raises:
        DataError: when `out` cannot be written.
    """
    script = commands(result, own)
    data: dict[str, Any] = to_json(_facts(result) | {"command": list(own), "commands": script})
    text = json.dumps(data, indent=1, allow_nan=False, default=str) + "\n"
    write_atomically(out / DATA, "comparison", text)
    write_atomically(out / COMMANDS, "commands", script)
    sections = [
        *_differences(result),
        *_pictures(result, out),
        _scores(result, out / "scores.png"),
        *_benchmark(result),
        _entries(result),
        _attributes(result),
        *_measured(result),
        *_atlases(result, out),
        *_swaps(result, out),
        _repeat(result, script),
    ]
    write_report(out / REPORT, title=f"{len(result.entries)} entries, one protocol", sections=sections)
    return data


def _facts(result: Comparison) -> dict[str, Any]:
    first = result.entries[0].name
    return {
        "versions": versions(),
        "data": result.data,
        "protocol": result.protocol.to_dict(),
        "settings": {key: str(v) if isinstance(v, Path) else v for key, v in vars(result.settings).items()},
        "notes": list(result.notes),
        "compared_with": first,
        "benchmark": None if result.benchmark is None else result.benchmark.to_dict(),
        "entries": [_entry_facts(result, index) for index in range(len(result.entries))],
    }


def _entry_facts(result: Comparison, index: int) -> dict[str, Any]:
    entry = result.entries[index]
    scores = result.scores[entry.name]
    return {
        "name": entry.name,
        "kind": entry.spec.kind,
        "about": entry.describe(),
        "source": entry.spec.source,
        "seed": entry.spec.seed if entry.spec.kind == "untrained" else None,
        "dims": result.probed[entry.name].report["latent_dim"],
        "resolution": entry.resolution or None,
        "crop": entry.crop if entry.resolution else None,
        "chunks": entry.layout.chunks if entry.layout and entry.spec.kind != "untrained" else None,
        "model_hash": entry.model_hash,
        "features": result.features[entry.name],
        **asdict(scores),
        "probe": result.probed[entry.name].report,
        "swaps": result.swaps.get(entry.name),
    }


def _entries(result: Comparison) -> Section:
    counts = result.protocol.counts
    text = (
        f"{counts['rows']:,} labelled images of {result.data['name'] or 'the feature files'}. "
        f"{result.protocol.describe()} Every entry is frozen; a linear probe on its standardised features is "
        "fitted on the training images, the validation images choose its regularisation, and only the test images "
        "are scored."
    )
    text += "".join(f"\n\n{note}" for note in result.notes)
    return Section(title="What is compared", text=text, table=entry_table(result))


def _scores(result: Comparison, picture: Path) -> Section:
    text = (
        "Means over the attributes of each kind: average precision (AP) of binary ones, Pearson's r, R2 and mean "
        "squared error (MSE, in variances of the training images) of numbers, accuracy of categories. In brackets the "
        "95 % interval of a bootstrap over test images"
        + (", whole groups drawn together" if result.protocol.groups is not None else "")
        + "; it says nothing of other seeds of training."
    )
    baselines = [entry.name for entry in result.entries if entry.spec.kind in ("pixels", "pca", "untrained", "base")]
    chart = score_chart(picture, result.scores, baselines)
    return Section(title="Scores", text=text, picture=chart, table=score_table(result), sortable=True)


def _differences(result: Comparison) -> list[Section]:
    if not (table := difference_table(result))[1]:
        return []
    first = result.entries[0].name
    text = "".join(f"{line}\n\n" for line in verdicts(result.scores, len(result.protocol.split.test)))
    text += (
        f"The table: score of each entry minus that of {first}, on the same resamples of the test images (paired "
        "bootstrap), with 95 % intervals. "
        "p is how often resamples fall on the other side of 0, doubled; adjusted for being several "
        "entries (Holm). Below 0.05 the verdict names the direction. One trained model stands for each "
        "method: whether a method is better takes several seeds of each."
    )
    return [Section(title="The verdict: are the differences real?", text=text, table=table, sortable=True)]


def _attributes(result: Comparison) -> Section:
    text = (
        f"The main metric of every attribute. + and - mark what is better or worse than {result.entries[0].name} "
        "(adjusted p below 0.05). A click on a heading sorts."
    )
    report = next(iter(result.probed.values())).report
    if skipped := report.get("skipped"):
        skipped_text = "; ".join(f"{item['name']} ({item['reason']})" for item in skipped)
        text += f"\n\nNot probed: {skipped_text}."
    for name, probed in result.probed.items():
        text += "".join(f"\n\n{name}: {doubt}" for doubt in guessing_doubts(probed.report["attributes"]))
    return Section(title="Attribute by attribute", text=text, table=attribute_table(result), sortable=True)


def _benchmark(result: Comparison) -> list[Section]:
    """Disentanglement over seeds, where it was measured."""
    found = result.benchmark
    if found is None or not found.methods:
        return []
    split = "its own split, rows and votes" if found.drawn else "rows and votes of the given split"
    text = (
        f"Seeds {found.seeds[0]} to {found.seeds[-1]}, each with {split}. Mean and half of the 95 % interval: over the "
        "runs where a method has several, else over the splits, which share images (variance of Nadeau and Bengio, "
        "2003); such an interval says nothing of other trainings. + and - mark what is better or worse than "
        f"{found.methods[0].name} (t tests on the same splits, Holm-adjusted p below 0.05). Units: every dim, or every "
        "chunk, represented by its first principal component on the training images, as in papers whose units are "
        "vectors (Du et al., 2021; DisDiff, 2023). Chunks and dims are not marked against each other. D, C and I: DCI "
        "by boosted trees. 1 is perfect, except for TAD, which sums over the attributes that it captures."
    )
    text += "".join(f"\n\n{note}" for note in found.notes)
    return [Section(title="Benchmark of disentanglement", text=text, table=benchmark_table(found), sortable=True)]


def _measured(result: Comparison) -> list[Section]:
    """What was measured beside scores, where it was."""
    metrics, statistics = metric_table(result), statistics_table(result)
    sections = []
    if metrics[1]:
        text = (
            "The attributes as factors, dims as units, and chunks where there are some. Higher is better; 1 is "
            "perfect, except for TAD, which sums over the attributes that it captures. DCI: informativeness (I), "
            "disentanglement (D) and completeness (C) of boosted trees. Metrics of dims depend on the "
            "axes of the features, linear probes do not. InfoMEC: modularity (InfoM), compactness (InfoC) and "
            "explicitness (InfoE) in information. A chunk is represented by its best linear readout of each factor, "
            "in a benchmark (--benchmark) by its first principal component. "
            f"Features of more than {METRIC_DIMS:,} dims are left out. "
            "Definitions and sources: docs/metrics.md."
        )
        sections.append(Section(title="Disentanglement", text=text, table=metrics, sortable=True))
    if statistics[1]:
        text = (
            "How the features vary over all images, without labels. Active: dims with at least 1 % of the mean "
            "variance. Effective rank: exp of the entropy of the covariance's eigenvalues. Correlation between chunks: "
            "mean RV coefficient, 0 unrelated, 1 the same."
        )
        sections.append(Section(title="The features themselves", text=text, table=statistics, sortable=True))
    return sections


def _atlases(result: Comparison, out: Path) -> list[Section]:
    """Probes of each chunk, for entries with chunks."""
    sections = []
    for index, (name, probed) in enumerate(result.probed.items()):
        if not (found := probed.report.get("atlas")):
            continue
        items = found["attributes"]
        marks = [c and (c["value"], c["low"], c["high"]) for c in (item["centre_alone"] for item in items)]
        chart = chunk_heatmap(
            out / f"knows-{index}.png",
            [item["alone"]["value"] for item in items],
            rows=[item["name"] for item in items],
            layout=ChunkLayout.from_dict(found["chunks"]),
            title="Skill of each chunk alone",
            totals=[item["all"]["value"] for item in items],
            marks=[None if mark is None or None in mark else mark for mark in marks],
            marks_label=f"{OWN_SKILL_CENTRE}, with 95 % interval",
        )
        text = (
            "A probe on each chunk alone; skill 0 is the base rate, 1 is everything, R2 for numbers. Skill "
            "of a chunk does not mean that it changes pictures: see the transfer rates (--edits). In the table, with "
            f"95 % intervals: {GAIN_CENTRE}; {OWN_SKILL_CENTRE}. {found['as_if_flat']}\n\n{AGAINST_THE_IDEA}"
        )
        title = f"{name}: probes of each chunk"
        table = centre_table(found)
        words = ("skill", "gain centre", "own-skill centre")
        sections.append(Section(title=title, text=text, words=words, picture=chart, table=table, sortable=True))
    return sections


def _swaps(result: Comparison, out: Path) -> list[Section]:
    if not result.swaps:
        return []
    first = next(iter(result.swaps.values()))
    text = (
        f"{first['images'] // 2} pairs of images that no model was trained on exchange some chunks. An attribute "
        "classifier, trained on pixels alone, gives the transfer rate: the share of the partner's attribute that the "
        "edited image gets, 0 is nothing, 1 is all. Other change: root mean square of all change that is not towards "
        "the partner, in standard deviations. In brackets: 95 % intervals."
    )
    if poor := sorted(set(first["swaps"][0]["shares"]) - set(readable(first))):
        text += f"\n\nIts predictions of these are too poor, and the means leave them out: {', '.join(poor)}."
    sections = [Section(title="Transfer rates of exchanged chunks", text=text, table=swap_table(result), sortable=True)]
    for index, (name, found) in enumerate(result.swaps.items()):
        swaps, attributes = found["swaps"], list(found["swaps"][0]["shares"])
        chart = heatmap_chart(
            out / f"swaps-{index}.png",
            [[_readable(found, swap, attribute) for swap in swaps] for attribute in attributes],
            rows=attributes,
            columns=[chunk_heading(swap["chunks"], swap["timesteps"]) for swap in swaps],
            title="Transfer rate of exchanged chunks",
        )
        sections.append(Section(title=f"{name}: exchanged chunks", picture=chart))
    return sections


def _readable(found: dict[str, Any], swap: dict[str, Any], attribute: str) -> float:
    return math.nan if attribute in found["unreadable"] else swap["shares"][attribute]["value"]


def _pictures(result: Comparison, out: Path) -> list[Section]:
    sections: list[Section] = []
    for index, (first, second) in enumerate(result.pairs):
        rows = [(name, found[index]) for name, found in result.pictures.items() if index < len(found)]
        if not rows:
            continue
        sections.append(
            Section(
                title=f"Test images {first} and {second}",
                text=""
                if sections
                else "\n\n".join(f"Warning, {name}: {text}" for name, row in rows for text in row.warnings)
                + "\n\nA again: inverted and decoded, its noise inferred. From its features alone: from the mean "
                "noise. The others keep A's noise and take some of B's chunks, from fine to coarse, or all.",
                picture=save_png(side_by_side(rows), out / f"pair-{index}.png"),
                caption="one row a model; below, PSNR against A or the timesteps of the exchanged chunks",
            )
        )
    return sections


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _repeat(result: Comparison, script: str) -> Section:
    rows: list[list[Any]] = [[name, number] for name, number in versions().items()]
    rows += [["seed", result.settings.seed], ["split", "as given" if result.protocol.seed is None else "drawn"]]
    fingerprint = result.data["fingerprint"] or {}
    rows += [[f"images, {key}", _plain(value)] for key, value in fingerprint.items()]
    table: Table = ["", ""], [[a, str(b)] for a, b in rows]
    text = "Everything above comes from these commands, with these versions and the weights named at the top."
    return Section(title="Repeat it", text=text, table=table, code=script)
