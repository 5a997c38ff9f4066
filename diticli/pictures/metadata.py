"""Picture files: their formats, and which facts about a picture are written into them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

from PIL import ExifTags, Image

from diticli._version import __version__
from diticli.data.own_files import SOFTWARE
from diticli.errors import ConfigError
from diticli.pictures.captions import clean

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Formats of pictures, by suffix."""
KEY = "diti:key"
"""A hash by which finished pictures of a table are known again. Says nothing to people, so it is always written."""

_left_out: ContextVar[bool] = ContextVar("_left_out", default=False)
_made_by: ContextVar[Mapping[str, str]] = ContextVar("_made_by", default=MappingProxyType({}))


def check_picture(path: Path) -> str:
    """The format that a file name asks for.

    Raises:
        ConfigError: for a suffix that is none of `FORMATS`.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise ConfigError(
            f"A picture is a {', '.join(FORMATS)} file, not {path.name!r}.", remedy=f"Write {path.stem or 'edit'}.png."
        )
    return FORMATS[suffix]


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


@contextmanager
def made_by(facts: Mapping[str, str]) -> Iterator[None]:
    """Within the block every picture holds these entries, e.g. those of `provenance`, beside its own."""
    token = _made_by.set(facts)
    try:
        yield
    finally:
        _made_by.reset(token)


def provenance(model_name: str, command: str = "") -> dict[str, str]:
    """By which version and which model a picture was made, and the command that makes it again."""
    facts = {"diti:version": __version__, "diti:model_name": model_name}
    return facts | ({"diti:command": command} if command else {})


def written(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """The entries that go into a file."""
    entries = {**_made_by.get(), **(metadata or {})}
    return {key: value for key, value in entries.items() if key == KEY or not _left_out.get()}


def note(metadata: Mapping[str, str] | None) -> str:
    """The entries as JSON, for formats that hold a single text."""
    # Software first: by this mark the picture is never taken for data.
    return json.dumps({"Software": SOFTWARE} | {key: clean(value) for key, value in written(metadata).items()})


def exif(metadata: Mapping[str, str] | None) -> bytes:
    """EXIF with the entries as JSON in the image description."""
    found = Image.Exif()
    found[ExifTags.Base.ImageDescription] = note(metadata)
    found[ExifTags.Base.Software] = SOFTWARE
    return found.tobytes()
