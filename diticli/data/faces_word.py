"""The word `faces` on the command line: one grammar, faces[:NUMBER[:SEED]], wherever images are named.

For data NUMBER is how many faces; for an edit it is which face. The word always means the built-in faces; a file or
folder of that name is written with its folder, `./faces`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

WORD = "faces"
IN_WORDS = "built-in faces"
_GRAMMAR = re.compile(rf"{WORD}(?::([0-9]{{1,19}}))?(?::([0-9]{{1,20}}))?")


@dataclass(frozen=True, kw_only=True)
class FacesWord:
    """Built-in faces as the user named them.

    Attributes:
        number: how many (data), or which (an edit); None when not given.
        seed: None when not given.
    """

    number: int | None = None
    seed: int | None = None


def is_faces(source: str) -> bool:
    """Whether a source means the built-in faces, rightly spelt or not."""
    return source.partition(":")[0] == WORD


def parse_faces(source: str) -> FacesWord | None:
    """The parts of faces[:NUMBER[:SEED]]; None for anything else."""
    match = _GRAMMAR.fullmatch(source)
    if match is None:
        return None
    number, seed = (None if part is None else int(part) for part in match.groups())
    return FacesWord(number=number, seed=seed)


def faces_beside(source: str) -> str | None:
    """What to say where `source` means the built-in faces and a file or folder has the same name; else None."""
    if not is_faces(source) or not os.path.lexists(source):
        return None
    return f"{source!r} means the built-in faces; write ./{source} for what is here under that name."
