"""JSON files with a checksum of themselves, so that what was damaged or written by others is not taken as ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diticli.files import write_atomically
from diticli.reading import parse_json, quoted, read_regular

_SEAL = "state_sha256"
_ENTRY = "sealed_as"


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """`content` with the checksum of itself, which a damaged number would not have."""
    own = {key: value for key, value in content.items() if key != _SEAL}
    return own | {_SEAL: hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()}


def read_sealed(path: Path) -> dict[str, Any]:
    """What `sealed` gave, from a JSON file.

    Raises:
        OSError: when it cannot be read, or is no regular file.
        ValueError: when it is anything else.
    """
    try:
        content: dict[str, Any] = parse_json(read_regular(path))
        if content != sealed(content):
            raise ValueError(f"{path.name} is damaged: its checksum differs")
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged ({error!r})") from error
    return content


def keep_result(path: Path, what: str, content: dict[str, Any], *, default: Callable[[Any], Any] | None = None) -> None:
    """Put a result in place that `kept_result` finds under this name alone.

    Args:
        path: where it shall be; its name says what the result depends on.
        what: its name in an error, e.g. "scores".
        content: the result.
        default: turns what JSON cannot say into what it can, as of `json.dumps`.

    Raises:
        DataError: when it cannot be written.
    """
    plain = json.loads(json.dumps({**content, _ENTRY: path.name}, allow_nan=False, default=default))
    text = json.dumps(sealed(plain), indent=1)
    write_atomically(path, what, f"{text}\n")


def kept_result(path: Path) -> dict[str, Any]:
    """What `keep_result` was given.

    Raises:
        OSError: when it is not there, or is no regular file.
        ValueError: when it is damaged, or was not written under this name.
    """
    content = read_sealed(path)
    if content.get(_ENTRY) != path.name:
        raise ValueError(f"{path.name} is the result {quoted(content.get(_ENTRY))}")
    return {key: value for key, value in content.items() if key not in (_ENTRY, _SEAL)}
