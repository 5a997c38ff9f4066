"""Evidence as tables: rows of plain cells, for the terminal and for the report alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from diticli.evaluation.attribute_survival import SurvivalCurves
from diticli.evaluation.chunk_ablation import FeatureAblation
from diticli.evaluation.composition import Composition
from diticli.evaluation.denoising import ModelGap
from diticli.evaluation.realism import Realism
from diticli.evaluation.swap_effects import SwapEffects
from diticli.pictures.report import Cell
from diticli.statistics import Estimate

Table = tuple[list[str], list[list[Cell]]]
GAP_ROWS = 10


def chunk_text(chunks: Sequence[int]) -> str:
    """Consecutive chunks as a range."""
    return str(chunks[0]) if len(chunks) == 1 else f"{chunks[0]}-{chunks[-1]}"


def chunk_heading(chunks: Sequence[int], timesteps: Sequence[int]) -> str:
    """Chunks and their timesteps [first, last), on two lines."""
    return f"chunk{'s' if len(chunks) > 1 else ''} {chunk_text(chunks)}\nt {timesteps[0]}-{timesteps[1] - 1}"


def digits(value: float | None, count: int = 2) -> str | None:
    """A number with so many decimals, never "-0.00"; None stays."""
    return None if value is None else f"{round(value, count) + 0.0:.{count}f}"


def between(estimate: Estimate | None, most: int = 2, *, scale: float = 1) -> str | None:
    """A number times `scale` and its interval as text, with so many decimals at most; None stays."""
    return None if estimate is None else estimate.text(scale=scale, most=most)


def atlas_table(atlas: SwapEffects) -> Table:
    """A row per readable attribute: the highest transfer rates and where, all together, centre, concentration."""
    columns = ["attribute", "best chunk", "second", "all chunks", "transfer centre t", "concentration"]
    rows: list[list[Cell]] = []
    for name, shares in atlas.shares.items():
        if name in atlas.unreadable:
            continue
        order = sorted(range(len(shares)), key=lambda g: -shares[g].value)[:2]
        best: list[Cell] = [f"{between(shares[g])} in {chunk_text(atlas.groups[g])}" for g in order]
        best += [None] * (2 - len(best))
        alone = atlas.concentration[name]
        ending: list[Cell] = [between(atlas.centres[name], 0), digits(alone)]
        rows.append([name, *best, digits(atlas.together[name].value), *ending])
    return columns, rows


def use_table(use: FeatureAblation) -> Table:
    """A row per group of chunks: rise of the loss without it, at its own timesteps and others, and its share."""
    columns = ["chunk", "timesteps", "own range, %", "others that see it, %", "share of all, %", "ignored"]
    rows: list[list[Cell]] = [
        [
            chunk_text(group.chunks),
            f"{group.timesteps[0]}-{group.timesteps[1] - 1}",
            *(between(part, scale=100) for part in (group.own, group.beyond)),
            between(group.share, 1, scale=100),
            "ignored" if group.ignored else "",
        ]
        for group in use.groups
    ]
    return columns, rows


def lost_table(lost: SurvivalCurves, atlas: SwapEffects | None = None) -> Table:
    """A row per readable attribute, first lost first: when, how well it is read from clean images, where chunks act."""
    columns = ["attribute", "half-life, t", "explained, clean", "transfer centre t"]
    rest = (name for name, left in lost.left.items() if left is not None and name not in lost.order)
    names = [*lost.order, *rest]
    centres = atlas.centres if atlas is not None else {}
    rows: list[list[Cell]] = [
        [name, between(lost.half[name], 0), f"{lost.explained[name][0]:.2f}", between(centres.get(name), 0)]
        for name in names
    ]
    return (columns, rows) if atlas is not None else (columns[:3], [row[:3] for row in rows])


def gap_table(gap: ModelGap) -> Table:
    """About ten rows of the curves."""
    columns = ["t", "base alone", "with features", "taken away, %"]
    without, with_z = gap.without_features, gap.with_features
    step = max(1, len(without.timesteps) // GAP_ROWS)
    rows: list[list[Cell]] = [
        [t, _short(without.clamped[i]), _short(with_z.clamped[i]), f"{100 * gap.filled[i]:.1f}"]
        for i, t in enumerate(without.timesteps)
        if i % step == step // 2
    ]
    return columns, rows


def _short(value: float) -> str:
    return f"{value:.3g}"


REALISM_COLUMNS = {"ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS", "fid": "FID", "kid": "KID"}


def realism_table(realism: Realism) -> Table:
    """A row for the reconstructions and for each set of exchanged chunks, a column for each measure."""
    measures = [key for key in REALISM_COLUMNS if key in realism.reconstructions]
    scored = {"reconstructions": realism.reconstructions}
    scored |= {f"chunks {name} exchanged": own for name, own in realism.edits.items() if own}
    rows: list[list[Cell]] = [[name, *(digits(own.get(key), 3) for key in measures)] for name, own in scored.items()]
    return ["images", *(REALISM_COLUMNS[key] for key in measures)], rows


def missing_text(realism: Realism) -> str:
    """Which measures could not be taken, and why; "" where all could."""
    reasons: dict[str, list[str]] = {}
    for key, reason in realism.missing.items():
        reasons.setdefault(reason, []).append(REALISM_COLUMNS[key])
    return " ".join(f"No {', '.join(names)}: {reason}." for reason, names in reasons.items())


def composition_table(composition: Composition) -> Table:
    """A row for each number of edits by nothing: change of the pixels and PSNR."""
    rows: list[list[Cell]] = [
        [str(times), digits(change), "exact" if math.isinf(quality) else digits(quality, 1)]
        for times, (change, quality) in enumerate(zip(composition.change, composition.psnr, strict=True), 1)
    ]
    return ["edits by nothing", "mean change, grey levels", "PSNR, dB"], rows
