"""Metadata of picture files: which facts about a picture are written into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

KEY = "diti:key"
"""A hash by which finished pictures of a table are known again. Says nothing to people, so it is always written."""

_left_out: ContextVar[bool] = ContextVar("_left_out", default=False)


@contextmanager
def metadata_left_out(left_out: bool = True) -> Iterator[None]:
    """Within the block pictures do not say how they were made: their command names files, and so people and places.

    The mark `Software` stays, by which a picture is never taken for data.
    """
    token = _left_out.set(left_out)
    try:
        yield
    finally:
        _left_out.reset(token)


def written(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The entries that go into a file."""
    return {key: value for key, value in (metadata or {}).items() if key == KEY or not _left_out.get()}
