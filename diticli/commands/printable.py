"""Text from outside (names of files, folders and columns) on its way to a terminal."""

from __future__ import annotations

import re

# C0 but tab and line feed, DEL, C1, overrides of the writing direction, and bytes that were no UTF-8.
_UNSAFE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str) -> str:
    """The text with "?" for whatever could command a terminal, hide what is written, or fail to be encoded."""
    return _UNSAFE.sub("?", text)
