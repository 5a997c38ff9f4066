"""The chunk layout of an official `ssl_config`.

The tables are computed as the official trainer computes them, rounding included, and then read as a `ChunkLayout`,
so that a converted model sees at every timestep exactly the dimensions it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from diticli.chunks import ChunkLayout
from diticli.errors import ModelError
from diticli.reading import quoted

MAX_STAGES = 1_000

RESTORE_CONFIG = "Restore the config file that the official training wrote."
NOT_CONVERTIBLE = "Convert another run, or train one with `diti train`."


class OfficialChunks(NamedTuple):
    """A layout, how it was cut ("uniform", "staged" or "staged in time"), and notes about it."""

    layout: ChunkLayout
    partition: str
    notes: tuple[str, ...] = ()


def official_chunks(ssl_config: Mapping[str, Any] | None, latent_dim: int, timesteps: int) -> OfficialChunks:
    """Layout of a run; without `ssl_config` or `k` it is PDAE, one chunk.

    Args:
        ssl_config: with `k`, and perhaps `stages`, `dims_per_stage`, `k_per_stage` ("50,100,1000").
        latent_dim: d.
        timesteps: T.

    Raises:
        ModelError: for values that the official trainer could not have run with.
        ChunkError: when they form no layout.
    """
    config = ssl_config or {}
    count = _integer(config.get("k", 1), "k")
    if not 1 <= count <= min(latent_dim, timesteps):
        raise ModelError(
            f"ssl_config.k = {quoted(count)} does not fit {latent_dim} dimensions and {timesteps} timesteps.",
            remedy=RESTORE_CONFIG,
        )
    if count == 1:
        return OfficialChunks(ChunkLayout.uniform(chunks=1, latent_dim=latent_dim, timesteps=timesteps), "uniform")
    stages, dims, counts = (_integers(config, key) for key in ("stages", "dims_per_stage", "k_per_stage"))
    _check_stages(stages, dims, counts, latent_dim=latent_dim, timesteps=timesteps, chunks=count)
    chunk_of = _chunk_of_timestep(count, timesteps, stages, counts)
    ends = _dim_ends(chunk_of, count, latent_dim, stages, dims)
    if ends[-1] != latent_dim:
        raise ModelError(
            f"With k = {count} and {latent_dim} dimensions the official code rounds the last chunk's end to "
            f"{ends[-1]}, and no timestep sees the rest; such a run cannot be converted.",
            remedy=NOT_CONVERTIBLE,
        )
    used = sorted(set(chunk_of))
    layout = ChunkLayout(
        timestep_ends=tuple(timesteps - chunk_of[::-1].index(chunk) for chunk in used),
        ends=tuple(ends[chunk] for chunk in used),
    )
    notes = () if len(used) == count else (_joined(count, used),)
    return OfficialChunks(layout, _partition(dims, counts), notes)


def _joined(count: int, used: list[int]) -> str:
    return (
        f"No timestep falls into {count - len(used)} of the {count} chunks (k_per_stage); "
        f"their dimensions were joined to the next chunk, {len(used)} remain."
    )


def _partition(dims: list[int] | None, counts: list[int] | None) -> str:
    if counts is not None:
        return "staged in time"
    return "uniform" if dims is None else "staged"


def _chunk_of_timestep(count: int, timesteps: int, stages: list[int] | None, counts: list[int] | None) -> list[int]:
    if counts is None or stages is None:
        return [int(t / (timesteps / count)) for t in range(timesteps)]
    chunk_of = []
    for t in range(timesteps):
        stage = next(s for s, end in enumerate(stages) if t < end)
        # Officially t is divided by the stage's end, not by its length, so later stages skip chunks.
        chunk_of.append(int(t / stages[stage] * counts[stage] + sum(counts[:stage])))
    return chunk_of


def _dim_ends(
    chunk_of: list[int], count: int, latent_dim: int, stages: list[int] | None, dims: list[int] | None
) -> list[int]:
    if dims is None or stages is None:
        return [int(latent_dim / count * (k + 1)) for k in range(count)]
    if missing := sorted(set(range(count)) - set(chunk_of)):
        raise ModelError(
            f"ssl_config gives no timestep to chunk {missing[0]}, so dims_per_stage cannot be read.",
            remedy=RESTORE_CONFIG,
        )
    stage_of = [next(s for s, end in enumerate(stages) if chunk_of.index(k) < end) for k in range(count)]
    ends: list[int] = []
    for k, stage in enumerate(stage_of):
        first, size = stage_of.index(stage), stage_of.count(stage)
        before = sum(dims[:stage])
        last = k == first + size - 1
        ends.append(before + dims[stage] if last else before + dims[stage] // size * (k - first + 1))
    return ends


def _check_stages(
    stages: list[int] | None,
    dims: list[int] | None,
    counts: list[int] | None,
    *,
    latent_dim: int,
    timesteps: int,
    chunks: int,
) -> None:
    if dims is None and counts is None:
        return
    if stages is None:
        raise ModelError("ssl_config has dims_per_stage or k_per_stage but no stages.", remedy=RESTORE_CONFIG)
    if len(stages) > MAX_STAGES:
        raise ModelError(
            f"ssl_config.stages has {len(stages):,} entries, more than {MAX_STAGES:,}.", remedy=RESTORE_CONFIG
        )
    if stages[-1] != timesteps or stages != sorted(set(stages)):
        raise ModelError(f"ssl_config.stages must rise to {timesteps}, got {quoted(stages)}.", remedy=RESTORE_CONFIG)
    for key, values, total in (("dims_per_stage", dims, latent_dim), ("k_per_stage", counts, chunks)):
        if values is not None and (len(values) != len(stages) or sum(values) != total):
            raise ModelError(
                f"ssl_config.{key} must be {len(stages)} numbers that sum to {total}, got {quoted(values)}.",
                remedy=RESTORE_CONFIG,
            )


def _integers(config: Mapping[str, Any], key: str) -> list[int] | None:
    """A comma-separated list, as the official configs write it (YAML reads a single number as such)."""
    if key not in config:
        return None
    value = config[key]
    parts = value if isinstance(value, list) else str(value).split(",")
    return [_integer(part, key) for part in parts]


def _integer(value: Any, key: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(
            f"ssl_config.{key} should hold whole numbers, got {quoted(value)}.", remedy=RESTORE_CONFIG
        ) from error
