"""Names: which paths a pattern means, and names of images that stay unique when several places are read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from diticli.errors import DataError
from diticli.reading import quoted

MAX_PATHS = 100_000
MAX_MATCHES = 5_000_000
"""Files that wildcards may match: two links to their own folder make `**` match without end."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")


def expand_pattern(spec: str) -> list[Path]:
    """Paths that `spec` means: itself where it exists, else its braces and wildcards as a shell reads them.

    `{000..012}` counts (padded as written), `{a,b}` lists, `*`, `?`, `[...]` and `**` match files that are
    there, in sorted order.

    Raises:
        DataError: when wildcards match nothing, too much (`MAX_MATCHES`) or cannot be a name, or braces stand for
            more than `MAX_PATHS` paths.
    """
    if not _can_be_path(spec):
        raise DataError(f"{quoted(spec)} can be no path.", remedy="Name a file or a folder.")
    text = os.path.expanduser(spec)  # unlike Path's, leaves the home of an unknown user as it is written
    if os.path.exists(text):
        return [Path(text)]
    return [path for pattern in _expand_braces(text, spec) for path in _matches(pattern)]


def _can_be_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _matches(text: str) -> list[Path]:
    if not glob.has_magic(text) or os.path.exists(text):
        return [Path(text)]
    matches = sorted(islice(glob.iglob(text, recursive=True), MAX_MATCHES + 1))
    if not matches:
        raise DataError(f"Nothing matches {quoted(text)}.", remedy="Check the pattern and the folder it starts in.")
    if len(matches) > MAX_MATCHES:
        raise DataError(f"{quoted(text)} matches more than {MAX_MATCHES:,} files.", remedy="Name their folder instead.")
    return list(map(Path, matches))


def unique_names(roots: Sequence[Path], names: Sequence[str]) -> list[str]:
    """The names, with as many trailing folders of their roots in front as it takes to make all differ.

    Args:
        roots: [N] absolute place that each name is relative to.
        names: [N] with forward slashes, each unique within its root.
    """
    unique = list(names)
    for parents in range(1, max((len(root.parts) for root in roots), default=0) + 1):
        if len(set(unique)) == len(unique):
            break
        prefixes = {root: "/".join(root.parts[max(1, len(root.parts) - parents) :]) for root in set(roots)}
        unique = [f"{prefixes[root]}/{name}" for root, name in zip(roots, names, strict=True)]
    return unique


def visible_entries(folder: Path) -> list[Path]:
    """What lies right in a folder, sorted, without hidden files; nothing when it cannot be listed."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _expand_braces(text: str, spec: str) -> list[str]:
    texts = [text]
    while match := _BRACES.search(texts[0]):
        choices = _choices(match[1], spec)
        if len(texts) * len(choices) > MAX_PATHS:
            raise DataError(f"{quoted(spec)} stands for more than {MAX_PATHS:,} files.", remedy="Name fewer.")
        # All texts have the same braces left, at places that differ by the choices made before.
        cuts = [(known, found) for known in texts if (found := _BRACES.search(known))]
        texts = [known[: cut.start()] + choice + known[cut.end() :] for known, cut in cuts for choice in choices]
    return texts


def _choices(inside: str, spec: str) -> list[str]:
    if span := _RANGE.fullmatch(inside):
        first, last = int(span[1]), int(span[2])
        if not 0 <= last - first < MAX_PATHS:
            raise DataError(f"{{{inside}}} in {quoted(spec)} counts no files.", remedy="Write e.g. {000..012}.")
        width = max(map(len, span.groups())) if any(end.startswith("0") for end in span.groups()) else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if "," in inside:
        return inside.split(",")
    raise DataError(f"Cannot read {{{inside}}} in {quoted(spec)}.", remedy="Write a range {000..012} or a list {a,b}.")
