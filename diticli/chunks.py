"""The one map from timestep to chunk and from chunk to feature dimensions.

Training, sampling, probing and editing all ask a `ChunkLayout`; nobody else derives a chunk index.
Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 4; the official "balanced" configurations for
the staged partition. Pure Python and NumPy, so that the command line can check a range without torch.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from diticli.errors import ChunkError
from diticli.reading import quoted, shortened

if TYPE_CHECKING:  # every command imports this file, and NumPy takes a third of the start of `diti --help`
    import numpy as np
    import numpy.typing as npt

Visible = Literal["prefix", "all"]
"""What a timestep sees of the features: the dims of its own chunk and all before it, or everything."""
PAPER_STAGE_ENDS = (50, 100, 300, 500, 1000)
PAPER_STAGE_DIMS = (10, 25, 327, 100, 50)
MAX_TIMESTEPS = 100_000
MAX_DIMS = 1_000_000
"""A layout makes tables of both lengths; numbers of a damaged file must not fill the memory."""


@dataclass(frozen=True, kw_only=True)
class ChunkLayout:
    """K consecutive ranges of timesteps, each owning a consecutive slice of the feature vector.

    Attributes:
        timestep_ends: [K] exclusive end of each chunk's range of timesteps; the last is T.
        ends: [K] exclusive end of each chunk's slice of dimensions; the last is d.
        visible: "prefix", as published: the timesteps of chunk k see chunks 0..k. "all", ours: every chunk, so that
            only what gets gradient (`own_dims`) keeps chunks apart.

    Raises:
        ChunkError: when the ends are not strictly increasing, the two differ in length, or the last of them lie
            beyond 100,000 timesteps or 1,000,000 dimensions, and for another `visible`.
    """

    timestep_ends: tuple[int, ...]
    ends: tuple[int, ...]
    visible: Visible = "prefix"

    def __post_init__(self) -> None:
        if self.visible not in get_args(Visible):
            raise ChunkError(
                f"What a timestep sees is {' or '.join(get_args(Visible))}, not {quoted(self.visible)}.",
                remedy="Use one of them.",
            )
        if not self.ends or len(self.ends) != len(self.timestep_ends):
            raise ChunkError(
                f"A chunk layout needs as many dimension ends as timestep ends, got {len(self.ends)} and "
                f"{len(self.timestep_ends)}.",
                remedy="Give one of each for every chunk.",
            )
        for name, ends, most in (("dimension", self.ends, MAX_DIMS), ("timestep", self.timestep_ends, MAX_TIMESTEPS)):
            if max(ends) > most:
                raise ChunkError(
                    f"A chunk layout covers at most {most:,} {name}s, these ends reach {quoted(max(ends))}.",
                    remedy="If a file says so, it is damaged: copy it again.",
                )
            if any(low >= high for low, high in pairwise((0, *ends))):
                raise ChunkError(
                    f"Every chunk needs at least one {name}; these ends are not strictly increasing: "
                    f"{quoted(list(ends))}.",
                    remedy="Use fewer chunks, or more dimensions.",
                )

    @classmethod
    def uniform(cls, *, chunks: int, latent_dim: int, timesteps: int = 1000) -> ChunkLayout:
        """Chunks equal in time and (up to rounding) in dimensions. `chunks=1` is PDAE.

        Raises:
            ChunkError: when there are more chunks than dimensions or timesteps.
        """
        _check_counts(chunks, latent_dim, timesteps)
        ends = tuple(latent_dim * (k + 1) // chunks for k in range(chunks))
        return cls(timestep_ends=_equal_time(chunks, timesteps), ends=ends)

    @classmethod
    def staged(
        cls,
        *,
        chunks: int,
        stage_ends: Sequence[int] = PAPER_STAGE_ENDS,
        stage_dims: Sequence[int] = PAPER_STAGE_DIMS,
        latent_dim: int | None = None,
        timesteps: int = 1000,
    ) -> ChunkLayout:
        """Chunks equal in time; each stage of timesteps has its own number of dimensions.

        A chunk belongs to the stage in which it starts. A stage's dimensions are spread evenly over its
        chunks and the remainder goes to its last chunk, as in the official "balanced" configurations.

        Args:
            chunks: K.
            stage_ends: exclusive ends of the stages in timesteps; the last must be `timesteps`.
            stage_dims: dimensions of each stage.
            latent_dim: d. When `stage_dims` sums to something else the stages are rescaled to d in
                proportion (largest remainder), so the paper's stages serve any width.
            timesteps: T.

        Raises:
            ChunkError: when the stages do not fit the timesteps, or a stage has fewer dimensions than
                chunks, or no chunk at all.
        """
        latent_dim = sum(stage_dims) if latent_dim is None else latent_dim
        _check_counts(chunks, latent_dim, timesteps)
        if len(stage_ends) != len(stage_dims):
            raise ChunkError(
                f"{len(stage_ends)} stage ends but {len(stage_dims)} stage dims.", remedy="Give one of each per stage."
            )
        if any(dims < 1 for dims in stage_dims):
            raise ChunkError(
                f"Stage dims must be above zero, got {list(stage_dims)}.", remedy="Give every stage a dimension."
            )
        if not stage_ends or stage_ends[-1] != timesteps or any(a >= b for a, b in pairwise((0, *stage_ends))):
            raise ChunkError(
                f"Stage ends must increase and the last must be {timesteps}, got {list(stage_ends)}.",
                remedy=f"Write e.g. {timesteps // 2},{timesteps}.",
            )
        if chunks == 1:  # PDAE: one chunk holds everything, stages or not
            return cls.uniform(chunks=1, latent_dim=latent_dim, timesteps=timesteps)
        timestep_ends = _equal_time(chunks, timesteps)
        starts = (0, *timestep_ends[:-1])
        stage_of = [next(s for s, end in enumerate(stage_ends) if start < end) for start in starts]
        per_stage = [stage_of.count(s) for s in range(len(stage_ends))]
        if 0 in per_stage:
            empty = per_stage.index(0)
            raise ChunkError(
                f"No chunk starts in the stage that ends at timestep {stage_ends[empty]}: with {chunks} chunks "
                f"each spans {timesteps / chunks:.1f} timesteps.",
                remedy="Use more chunks, --partition uniform, or longer stages (--stage-ends).",
            )
        dims = _rescale(stage_dims, latent_dim, at_least=per_stage)
        sizes: list[int] = []
        for count, total in zip(per_stage, dims, strict=True):
            sizes += [total // count] * (count - 1) + [total - (total // count) * (count - 1)]
        return cls(timestep_ends=timestep_ends, ends=tuple(accumulate(sizes)))

    @classmethod
    def quadratic(cls, *, chunks: int, latent_dim: int, timesteps: int = 1000) -> ChunkLayout:
        """Chunks equal in dimensions, their timesteps growing as the square: chunk k ends at ((k + 1) / K)^2 T.

        Small pictures lose their attributes at small timesteps, where chunks equal in time are few. The same spacing
        as the quadratic timesteps of DDIM (Song et al., ICLR 2021, appendix D.2). Every chunk has a timestep at least.

        Raises:
            ChunkError: when there are more chunks than dimensions or timesteps.
        """
        equal = cls.uniform(chunks=chunks, latent_dim=latent_dim, timesteps=timesteps)
        squares = (-(-((k + 1) ** 2) * timesteps // chunks**2) for k in range(chunks))
        late_enough = accumulate(squares, lambda end, square: max(end + 1, square))
        return cls(
            timestep_ends=tuple(min(end, timesteps - (chunks - 1 - k)) for k, end in enumerate(late_enough)),
            ends=equal.ends,
        )

    @classmethod
    def in_proportion(cls, amounts: Sequence[float], *, latent_dim: int, timesteps: int = 1000) -> ChunkLayout:
        """Chunks equal in time, their dimensions in proportion to `amounts`; every chunk has at least one.

        Args:
            amounts: [K] what each chunk has to hold, such as `GapCurve.lost_between` its timesteps; 0 or more.
            latent_dim: d.
            timesteps: T.

        Raises:
            ChunkError: for amounts that are negative, not finite or all 0, or too many chunks.
        """
        chunks = len(amounts)
        _check_counts(chunks, latent_dim, timesteps)
        if not all(math.isfinite(a) and a >= 0 for a in amounts) or not sum(amounts) > 0:
            raise ChunkError(
                f"Amounts must not be negative, and not all 0, got {list(amounts)}.", remedy="Check the base."
            )
        spare = _share_out(amounts, latent_dim - chunks)
        return cls(timestep_ends=_equal_time(chunks, timesteps), ends=tuple(accumulate(1 + s for s in spare)))

    @property
    def chunks(self) -> int:
        """K, the number of chunks."""
        return len(self.ends)

    @property
    def latent_dim(self) -> int:
        """d, the width of the feature vector."""
        return self.ends[-1]

    @property
    def timesteps(self) -> int:
        """T, the number of training timesteps."""
        return self.timestep_ends[-1]

    @property
    def starts(self) -> tuple[int, ...]:
        """[K] first dimension of each chunk."""
        return (0, *self.ends[:-1])

    @property
    def timestep_starts(self) -> tuple[int, ...]:
        """[K] first timestep of each chunk."""
        return (0, *self.timestep_ends[:-1])

    def timestep_to_chunk(self) -> npt.NDArray[np.int64]:
        """[T] chunk of every timestep."""
        import numpy as np

        return np.searchsorted(np.array(self.timestep_ends), np.arange(self.timesteps), side="right").astype(np.int64)

    def chunk_of(self, timestep: int) -> int:
        """Chunk of one timestep in 0..T-1."""
        if not 0 <= timestep < self.timesteps:
            raise ChunkError(
                f"Timestep {timestep} lies outside 0..{self.timesteps - 1}.", remedy="Use a timestep within them."
            )
        return int(self.timestep_to_chunk()[timestep])

    def dims_of(self, chunk: int) -> slice:
        """Feature dimensions that chunk `chunk` owns.

        Raises:
            ChunkError: for a chunk that does not exist; -1 is the last one, as in a list.
        """
        try:
            return slice(self.starts[chunk], self.ends[chunk])
        except (IndexError, TypeError) as error:
            raise self._no_chunk(chunk) from error

    def visible_dims(self) -> npt.NDArray[np.int64]:
        """[T, 2] first dimension that timestep t may see, and the end of those that it may."""
        windows_T2 = self.own_dims()
        windows_T2[:, 0] = 0
        if self.visible == "all":
            windows_T2[:, 1] = self.latent_dim
        return windows_T2

    def own_dims(self) -> npt.NDArray[np.int64]:
        """[T, 2] first dimension and end of the chunk of timestep t: no others get gradient in `detached` mode."""
        import numpy as np

        return np.array([self.starts, self.ends], dtype=np.int64).T[self.timestep_to_chunk()]

    def seen_by(self, chunk: int) -> range:
        """Chunks that the timesteps of chunk `chunk` see."""
        return range(chunk + 1 if self.visible == "prefix" else self.chunks)

    def dim_mask(self, chunks: Sequence[int]) -> npt.NDArray[np.bool_]:
        """[d] True where a dimension belongs to one of `chunks`."""
        import numpy as np

        mask = np.zeros(self.latent_dim, dtype=bool)
        for chunk in chunks:
            mask[self.dims_of(chunk)] = True
        return mask

    def parse(self, spec: str) -> tuple[int, ...]:
        """Chunks named by a specification like "10-20" or "0-3,8": inclusive, zero-based, sorted.

        Raises:
            ChunkError: for anything that is not such a list, or that lies outside 0..K-1.
        """
        chosen: set[int] = set()
        for part in spec.split(","):
            match = re.fullmatch(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?", part)
            if match is None:
                raise ChunkError(
                    f"Cannot read the chunks {quoted(spec)}.",
                    remedy="Write inclusive ranges like 10-20, or lists like 0-3,8.",
                )
            low = int(match[1])
            high = int(match[2]) if match[2] is not None else low
            if low > high:
                raise ChunkError(f"The chunk range {part.strip()} runs backwards.", remedy=f"Write {high}-{low}.")
            if high >= self.chunks:
                raise self._no_chunk(high)
            chosen.update(range(low, high + 1))
        return tuple(sorted(chosen))

    def _no_chunk(self, chunk: object) -> ChunkError:
        return ChunkError(
            f"Chunk {chunk} does not exist: this model has {self.chunks} chunks, 0-{self.chunks - 1}.",
            remedy=f"Use chunks within 0-{self.chunks - 1}.",
        )

    def describe(self, chunks: Sequence[int]) -> str:
        """Short text naming chunks and the timesteps they cover, e.g. "chunks 10-20 (t 160-328)"."""
        spans = ",".join(f"{self.timestep_starts[a]}-{self.timestep_ends[b] - 1}" for a, b in _runs(chunks))
        return f"{'chunk' if len(chunks) == 1 else 'chunks'} {spell_chunks(chunks)} (t {spans})"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `from_dict`."""
        return {"timestep_ends": list(self.timestep_ends), "ends": list(self.ends), "visible": self.visible}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChunkLayout:
        """Inverse of `to_dict`.

        Raises:
            ChunkError: when a key is missing or the values do not form a layout.
        """
        try:
            return cls(
                timestep_ends=tuple(operator.index(end) for end in data["timestep_ends"]),
                visible=data.get("visible", "prefix"),
                ends=tuple(operator.index(end) for end in data["ends"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, ChunkError):
                raise
            raise ChunkError(
                f"This is not a chunk layout: {quoted(data)} ({shortened(error)}).",
                remedy="Make the file that holds it again.",
            ) from error


def _check_counts(chunks: int, latent_dim: int, timesteps: int) -> None:
    if not 1 <= chunks <= min(latent_dim, timesteps):
        raise ChunkError(
            f"{chunks} chunks do not fit {latent_dim} dimensions and {timesteps} timesteps.",
            remedy=f"Choose between 1 and {min(latent_dim, timesteps)} chunks.",
        )


def _equal_time(chunks: int, timesteps: int) -> tuple[int, ...]:
    """Chunk of t is floor(t * K / T), so chunk k ends at ceil((k + 1) * T / K)."""
    return tuple(-(-(k + 1) * timesteps // chunks) for k in range(chunks))


def _rescale(dims: Sequence[int], total: int, at_least: Sequence[int]) -> list[int]:
    """Scale `dims` to sum to `total`, none below `at_least`; the largest remainders get the spare ones."""
    if total < sum(at_least):
        raise ChunkError(
            f"{total} dimensions are too few for {sum(at_least)} chunks.", remedy="Use more dimensions or fewer chunks."
        )
    if sum(dims) == total:
        return list(dims)
    scaled = _share_out(dims, total)
    for i, minimum in enumerate(at_least):
        while scaled[i] < minimum:
            richest = max(range(len(scaled)), key=lambda j: scaled[j] - at_least[j])
            scaled[richest] -= 1
            scaled[i] += 1
    return scaled


def _share_out(amounts: Sequence[float], total: int) -> list[int]:
    """Whole numbers that sum to `total`, in proportion; the largest remainders get the spare ones."""
    exact = [a * total / sum(amounts) for a in amounts]
    shares = [int(e) for e in exact]
    by_remainder = sorted(range(len(amounts)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def spell_chunks(chunks: Sequence[int]) -> str:
    """Chunks as `ChunkLayout.parse` reads them, e.g. "0-3,8"."""
    return ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in _runs(chunks))


def _runs(chunks: Sequence[int]) -> list[list[int]]:
    """(first, last) of each stretch of neighbours."""
    runs: list[list[int]] = []
    for chunk in sorted(chunks):
        if runs and chunk == runs[-1][1] + 1:
            runs[-1][1] = chunk
        else:
            runs.append([chunk, chunk])
    return runs
