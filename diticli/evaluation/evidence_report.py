"""Evidence as pictures and sections of the HTML report."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.evaluation.attribute_survival import SurvivalCurves
from diticli.evaluation.chunk_ablation import IGNORED, FeatureAblation
from diticli.evaluation.denoising import ModelGap
from diticli.evaluation.evidence import Evidence
from diticli.evaluation.evidence_tables import (
    atlas_table,
    between,
    chunk_text,
    composition_table,
    gap_table,
    lost_table,
    missing_text,
    realism_table,
    use_table,
)
from diticli.evaluation.order import OrderAgreement
from diticli.evaluation.swap_effects import MIN_EFFECT, TRANSFER_CENTRE, SwapEffects
from diticli.pictures.charts import bar_table_chart
from diticli.pictures.heatmaps import chunk_heatmap
from diticli.pictures.report import Section
from diticli.pictures.time_charts import gap_chart, lost_chart
from diticli.statistics import Estimate

Mark = tuple[float, float, float] | None


def evidence_sections(evidence: Evidence, name: str, layout: ChunkLayout, out: Path, index: int) -> list[Section]:
    """Draw the pictures of one model into `out`, and what the report says of it.

    Args:
        evidence: what was measured.
        name: the model's.
        layout: its chunks.
        out: folder of the pictures.
        index: of the model, part of their names.

    Raises:
        DataError: when a picture cannot be written.
    """
    sections = []
    if evidence.atlas is not None:
        sections.append(_atlas(evidence.atlas, name, layout, out / f"atlas-{index}.png"))
    if evidence.lost is not None:
        sections.append(_lost(evidence.lost, evidence.atlas, evidence.order, name, out / f"lost-{index}.png"))
    if evidence.gap is not None:
        sections.append(_gap(evidence.gap, name, layout, out / f"gap-{index}.png"))
    if evidence.use is not None:
        sections.append(_use(evidence.use, name, out / f"use-{index}.png"))
    if evidence.composition is not None:
        text = (
            f"{evidence.composition.images} images encoded, inverted and decoded again and again without a change "
            "(composition: Monteiro et al., 2023), compared with the originals."
        )
        table = composition_table(evidence.composition)
        sections.append(Section(title=f"{name}: edits by nothing", text=text, table=table))
    if evidence.realism is not None:
        text = (
            f"{evidence.realism.images} images and as many originals. SSIM and MS-SSIM: 1 for equal images; LPIPS, FID "
            "and KID: 0 for equal ones. FID depends on the number of images: compare scores of equal numbers only. FID "
            f"and KID of exchanges are their realism (Melistas et al., 2024). {missing_text(evidence.realism)}"
        )
        table = realism_table(evidence.realism)
        sections.append(Section(title=f"{name}: reconstructions and realism", text=text, table=table))
    return sections


def order_text(order: OrderAgreement | None) -> str:
    """Whether chunks act in the order in which attributes are lost, in a sentence."""
    if order is None:
        return "Too few attributes have a half-life and transfer centres that differ: there is no order to compare."
    return (
        f"Spearman's correlation of the {len(order.attributes)} transfer centres with the half-lives of the attributes "
        f"under noise: {between(order.spearman)}; attributes in random order agree as well in "
        f"{order.p_value:.1%} of cases."
    )


def use_text(use: FeatureAblation) -> str:
    """What the features give, and which chunks give nothing, in a sentence or two."""
    ignored = f"Ignored: chunks {', '.join(map(str, use.ignored))}." if use.ignored else "No chunk is ignored."
    return f"The features take {use.gain.value:.1%} off the loss of the base alone. {ignored}"


def modularity_text(atlas: SwapEffects) -> str:
    """The two scores in a sentence."""
    if len(atlas.groups) < 2:
        return "A single group of chunks has no modularity."
    return (
        f"Completeness (an attribute is moved by one chunk alone) {between(atlas.completeness)}, disentanglement (a "
        f"chunk moves one attribute alone) {between(atlas.disentanglement)}; 1 perfect, 0 everything everywhere."
    )


def _atlas(atlas: SwapEffects, name: str, layout: ChunkLayout, picture: Path) -> Section:
    chunk_heatmap(
        picture,
        np.array([[_shown(share, name, atlas) for share in shares] for name, shares in atlas.shares.items()]),
        rows=atlas.attributes,
        layout=_grouped_layout(layout, atlas.groups),
        title=f"Transfer rate of each {_unit(atlas)} exchanged alone",
        limit=1.0,
        totals=[_shown(share, name, atlas) for name, share in atlas.together.items()],
        chunk_names=[chunk_text(group) for group in atlas.groups],
        marks=[_mark(centre) for centre in atlas.centres.values()],
        marks_label=f"{TRANSFER_CENTRE}, with 95 % interval",
    )
    text = (
        f"Each chunk of the partner alone is put into an image ({atlas.pairs} pairs, both ways, "
        f"{atlas.facts['steps_run']} steps), and the attribute classifier gives the transfer rate: 0 is nothing, "
        f"1 is all of the partner's attribute. {TRANSFER_CENTRE.capitalize()}; attributes of which no chunk transfers "
        f"{MIN_EFFECT:g} significantly have none. "
        f"{modularity_text(atlas)} Such scores are DCI's (Eastwood & Williams, 2018) on this matrix in place of a "
        "regressor's importances."
    )
    if atlas.unreadable:
        text += f" Grey, as the classifier cannot read them: {', '.join(atlas.unreadable)}."
    words = ("chunk", "transfer rate", "transfer centre")
    title = f"{name}: what each chunk changes"
    return Section(title=title, text=text, words=words, picture=picture, table=atlas_table(atlas))


def _lost(
    lost: SurvivalCurves, atlas: SwapEffects | None, order: OrderAgreement | None, name: str, picture: Path
) -> Section:
    names = [*lost.order, *(attribute for attribute in lost.half if attribute not in lost.order)]
    unknown = [float("nan")] * len(lost.timesteps)
    lost_chart(
        picture,
        lost.timesteps,
        [lost.left[attribute] or unknown for attribute in names],
        rows=names,
        lost=[_mark(lost.half[attribute]) for attribute in names],
        act=None if atlas is None else [_mark(atlas.centres.get(attribute)) for attribute in names],
    )
    text = (
        f"A classifier that knows the noise level learned the attributes from {lost.learned_from:,} noisy images. What "
        f"it cannot predict on {lost.held_out:,} others, the noise has hidden: explained variance at t, over that of "
        "clean images. No model has a part in this."
    )
    if atlas is not None:
        text += (
            f"\n\n{order_text(order)} By the paper's idea chunks act near an attribute's half-life; where the transfer "
            "centre lies far below it, the first chunks hold the attribute already."
        )
    words = ("half-life", *(() if atlas is None else ("transfer centre",)))
    title = f"{name}: when attributes are lost"
    return Section(title=title, text=text, words=words, picture=picture, table=lost_table(lost, atlas))


def _gap(gap: ModelGap, name: str, layout: ChunkLayout, picture: Path) -> Section:
    curves = {"base alone": gap.without_features, "with features": gap.with_features}
    gap_chart(picture, gap.without_features.timesteps, {n: c.clamped for n, c in curves.items()}, layout=layout)
    text = (
        f"Mean squared error of the image that is predicted from a noisy one, pixels in [-1, 1] and predictions held "
        f"there, over {gap.without_features.images} images; features are masked as in training."
    )
    return Section(title=f"{name}: the gap", text=text, picture=picture, table=gap_table(gap))


def _use(use: FeatureAblation, name: str, picture: Path) -> Section:
    bar_table_chart(
        picture,
        [f"{chunk_text(g.chunks)} (t {g.timesteps[0]}-{g.timesteps[1] - 1})" for g in use.groups],
        {
            "own range": [100 * g.own.value for g in use.groups],
            "others that see it": [float("nan") if g.beyond is None else 100 * g.beyond.value for g in use.groups],
        },
        title="Rise of the loss without a chunk",
        x_label="% of the base's loss there",
    )
    text = (
        f"{use_text(use)} A chunk is taken away by setting its dims to their mean, at its own timesteps and at all "
        f"others that see it. It counts as ignored where the rise does not differ from 0 significantly, or is below "
        f"{IGNORED:.0%} of an equal share."
    )
    return Section(title=f"{name}: rise of the loss without a chunk", text=text, picture=picture, table=use_table(use))


def _grouped_layout(layout: ChunkLayout, groups: tuple[tuple[int, ...], ...]) -> ChunkLayout:
    """A layout whose chunks are the groups."""
    return ChunkLayout(
        timestep_ends=tuple(layout.timestep_ends[group[-1]] for group in groups),
        ends=tuple(layout.ends[group[-1]] for group in groups),
        visible=layout.visible,
    )


def _unit(atlas: SwapEffects) -> str:
    return "chunk" if all(len(group) == 1 for group in atlas.groups) else "group of chunks"


def _shown(share: Estimate, name: str, atlas: SwapEffects) -> float:
    return math.nan if name in atlas.unreadable else share.value


def _mark(estimate: Estimate | None) -> Mark:
    if estimate is None or estimate.low is None or estimate.high is None:
        return None
    return estimate.value, estimate.low, estimate.high
