"""What batch encoding did, or why it could not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diticli.data.images import ImageSource, Skipped
from diticli.errors import DataError

_NAMED = 3


class NothingReadableError(DataError):
    """Not one image of a source can be read.

    Attributes:
        skipped: all of them, and why.
    """

    def __init__(self, source: ImageSource, skipped: Sequence[Skipped]) -> None:
        super().__init__(
            f"None of the {len(source):,} images of {source.name} can be read ({some_skipped(skipped)}).",
            remedy="Repair or replace these files.",
        )
        self.skipped = tuple(skipped)


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode_images` did.

    Attributes:
        rows: N, rows of the feature file.
        dim: d, their width.
        skipped: images without a row, and why.
        resumed: images that an interrupted run had already dealt with.
        seconds: wall time of this run.
        images_per_second: images of this run (not the resumed ones) by that time.
    """

    rows: int
    dim: int
    skipped: tuple[Skipped, ...]
    resumed: int
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def some_skipped(skipped: Sequence[Skipped]) -> str:
    """The first of them with their reasons, and how many more there are."""
    named = "; ".join(f"{item.file}: {item.reason}" for item in skipped[:_NAMED])
    return named + (f"; and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else "")
