"""The environment variables of diti: which there are, and which of those that are set mean nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from diticli.errors import ConfigError
from diticli.reading import quoted

KNOWN = (
    "DITI_ATTENTION",
    "DITI_CUDA_GRAPH",
    "DITI_JOIN_SECONDS",
    "DITI_KERNELS",
    "DITI_LAYOUT",
    "DITI_MODEL",
    "DITI_TUNE",
)
CUDA_GRAPH, CUDA_GRAPH_CHOICES = "DITI_CUDA_GRAPH", ("1", "0")


def word_of(name: str, choices: Collection[str]) -> str:
    """The word that a variable holds, in lower case; the first choice where it is unset or empty.

    Raises:
        ConfigError: for a word that is no choice.
    """
    word = os.environ.get(name, "").strip().lower() or next(iter(choices))
    if word not in choices:
        raise ConfigError(f"{name}={quoted(word)} is unknown.", remedy=f"Use one of {', '.join(choices)}, or unset it.")
    return word


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each variable that looks like one of diti's and is none."""
    found = sorted(name for name in environment if name.startswith("DITI_") and name not in KNOWN)
    return [f"{quoted(name)[1:-1]} is ignored: diti knows no such variable{_meant(name)}" for name in found]


def _meant(name: str) -> str:
    near = get_close_matches(name, KNOWN, n=1)
    return f"; {near[0]} is meant?" if near else "."
