"""Lists of sources: `@tars.txt` names a file of them, `-` takes them from stdin."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO

from diticli.data.names import expand_pattern
from diticli.errors import DataError
from diticli.reading import STDIN_PATHS, check_regular, quoted

STDIN = "-"
MAX_BYTES = 2**29
"""Of a list; more is no list but, say, /dev/zero."""


def expand_source(spec: str) -> list[Path]:
    """Paths that `spec` means.

    `-` stands for the lines of stdin and `@FILE` for those of a file (of UTF-8 or whatever the file system's names
    are in), each of them a path or a pattern as `expand_pattern` reads it, relative to the working folder. Blank lines
    are skipped. Anything else, and `@FILE` where a file of that whole name exists, is a path or a pattern itself.

    Raises:
        DataError: when the list cannot be read or is empty, or as `expand_pattern`.
    """
    if spec == STDIN:
        return _expand(_lines(sys.stdin.buffer, "stdin"), "stdin")
    if not spec.startswith("@") or os.path.exists(spec):
        return expand_pattern(spec)
    name = os.path.expanduser(spec[1:])
    try:
        if name not in STDIN_PATHS:
            check_regular(name)
        with open(name, "rb") as file:
            return _expand(_lines(file, name), name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"Cannot read the list {quoted(name)} ({reason}).", remedy="Give @FILE with one path or pattern a line."
        ) from error


def _lines(file: IO[bytes], name: str) -> list[str]:
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise DataError(f"{name} has more than {MAX_BYTES:,} bytes.", remedy="Name folders or patterns instead.")
    return [os.fsdecode(line) for line in map(bytes.strip, data.splitlines()) if line]


def _expand(lines: list[str], name: str) -> list[Path]:
    if not lines:
        raise DataError(f"The list {name} is empty.", remedy="Write one path or pattern a line.")
    return [path for line in lines for path in expand_pattern(line)]
