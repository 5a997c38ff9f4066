"""One fact that `diti doctor` reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact, and whether something should be done about it."""

    topic: str
    """Group of facts: software, hardware, speed, attention, tuning, compile, storage."""
    name: str
    value: str
    status: Literal["ok", "note", "broken"] = "ok"
    """`broken` when commands cannot work like this, `note` when they could work better."""
    remedy: str = ""
    """What to do, unless ok."""
