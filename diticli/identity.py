"""Cache keys: hashes of the contents that a result was made from, never of a path, a name or a version.

cache_key("pictures", model_hash, images, steps)   # changes with any of them, and with the code
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("diticli", "diti_kernels")
BLOCK = 2**20


def cache_key(*facts: Any) -> str:
    """16 hex digits of the facts, which JSON must be able to say, and of the code that makes what is kept.

    Raises:
        TypeError: for a fact that JSON cannot say: a path, say, whose content is meant.
    """
    return digest([code_digest(), *facts])


def digest(facts: Any) -> str:
    """SHA-256 (first 16 hex digits) of anything that JSON can say.

    Raises:
        TypeError: for anything else.
    """
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 (first 16 hex digits) of a file's content.

    Raises:
        OSError: when it cannot be read.
    """
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()[:16]


@cache
def code_digest() -> str:
    """SHA-256 (first 16 hex digits) of all Python source of the package and its kernels.

    A version number stays the same through many changes of the code; this does not.
    """
    hasher = hashlib.sha256()
    for package in PACKAGES:
        for root in _roots(package):
            for path in sorted(root.rglob("*.py")):
                hasher.update(f"{package}/{path.relative_to(root).as_posix()}\0".encode())
                hasher.update(path.read_bytes())
    return hasher.hexdigest()[:16]


def _roots(package: str) -> list[Path]:
    from importlib.util import find_spec

    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
