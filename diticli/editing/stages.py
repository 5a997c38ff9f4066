"""Sets of chunks that show a whole partition: its stages, or equal groups."""

from __future__ import annotations

from itertools import pairwise

from diticli.chunks import PAPER_STAGE_ENDS, ChunkLayout
from diticli.errors import ChunkError

OVERVIEW_ROWS, GRID_ROWS = 4, 8


def grouped(layout: ChunkLayout, groups: int) -> list[tuple[int, ...]]:
    """All chunks in (up to) so many consecutive sets of nearly equal size, from fine to coarse."""
    rows = min(groups, layout.chunks)
    cuts = [layout.chunks * row // rows for row in range(rows + 1)]
    return [tuple(range(low, high)) for low, high in pairwise(cuts)]


def stages(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """Every stage of a staged partition; for a uniform one its chunks, in at most 8 groups.

    The paper's stages are recognised; others are told apart by their chunks' numbers of dims: equal within a stage,
    the remainder going to its last chunk (`ChunkLayout.staged`).
    """
    sizes = [end - start for start, end in zip(layout.starts, layout.ends, strict=True)]
    if max(sizes) - min(sizes) <= 1:
        return grouped(layout, GRID_ROWS)
    cuts = _paper_cuts(layout) or _cuts(sizes)
    found = [tuple(range(low, high)) for low, high in pairwise(cuts)]
    return found if len(found) <= 2 * GRID_ROWS else grouped(layout, GRID_ROWS)


def _paper_cuts(layout: ChunkLayout) -> list[int] | None:
    try:
        paper = ChunkLayout.staged(chunks=layout.chunks, latent_dim=layout.latent_dim, timesteps=layout.timesteps)
    except ChunkError:
        return None
    if paper != layout:
        return None
    starts = layout.timestep_starts
    return [0, *(sum(start < end for start in starts) for end in PAPER_STAGE_ENDS)]


def _cuts(sizes: list[int]) -> list[int]:
    """First chunk of every stage, and the number of chunks."""
    cuts, chunk = [0], 0
    while chunk < len(sizes):
        first, begin = sizes[chunk], chunk
        while chunk < len(sizes) and sizes[chunk] == first:
            chunk += 1
        count = chunk - begin + 1
        alone = chunk + 1 == len(sizes) or (chunk + 1 < len(sizes) and sizes[chunk + 1] != sizes[chunk])
        if chunk < len(sizes) and alone and 0 < sizes[chunk] - first < count:
            chunk += 1
        cuts.append(chunk)
    return cuts
