"""Writing a picture or page beside its place and renaming it into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from diticli.errors import DataError


def write_atomically(path: Path, what: str, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then rename it; missing folders are made.

    Args:
        path: where the file shall be.
        what: its name in an error, e.g. "picture".
        write: fills the file it is given.

    Raises:
        DataError: when it cannot be written; what was at `path` stays.
    """
    beside = path.with_name(f".{path.name[:200]}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"Cannot write the {what} {path}: {error.strerror or error}.", remedy="Choose another place."
        ) from error
    return path
