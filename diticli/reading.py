"""Read files from others safely: regular files only, JSON without NaN, quotations of bounded length, harmless text."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import reprlib
import stat
from pathlib import Path
from typing import Any, NoReturn

QUOTED = 200
"""Characters of a value that a message quotes at most."""
STDIN_PATHS = frozenset({"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"})
"""Names under which a table may come from a pipe."""

# C0 but tab and line feed, DEL, C1, marks and overrides of the writing direction, other ends of a line, and bytes that
# were no UTF-8.
_UNSAFE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
_LONGEST_NUMBER = 300
"""Digits of a whole number in JSON: what no float holds would end in an error wherever it is converted to one."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = QUOTED
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxlevel = 3


def printable(text: str) -> str:
    """The text with "?" for whatever could command a terminal, hide what is written, or fail to be encoded."""
    return _UNSAFE.sub("?", text)


def quoted(value: object) -> str:
    """`repr(value)` with at most 200 characters; the cost is bounded as well, whatever the value is nested in."""
    return shortened(_REPR.repr(value))


def shortened(text: object) -> str:
    """The text in one line, cut to 200 characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= QUOTED else f"{line[: QUOTED - 3]}..."


def check_regular(path: Path | str) -> None:
    """Refuse what is no regular file: opening a named pipe waits for ever, and a device never ends.

    Raises:
        OSError: with the reason in `strerror`, also when there is no such file.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """Contents of a regular file.

    Raises:
        OSError: as `check_regular`, and when it cannot be read.
    """
    check_regular(path)
    return path.read_bytes()


def read_table_bytes(path: Path) -> bytes:
    """Contents of a regular file, or of stdin where the path names it.

    Raises:
        OSError: as `read_regular`.
    """
    return path.read_bytes() if str(path) in STDIN_PATHS else read_regular(path)


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; NaN and infinities, which JSON does not know, and numbers that no float holds are
    refused.

    Raises:
        ValueError: when it is no JSON.
        RecursionError: when it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def _whole(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shortened(text)} is too large a number")
    return number
