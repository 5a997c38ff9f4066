"""A trained linear probe: weights to predict attributes with, and directions to edit along."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from diticli.errors import FeatureFileError, LabelError
from diticli.files import write_tensors
from diticli.reading import check_regular, parse_json, printable, quoted, shortened
from diticli.types import FloatArray

_META_KEY = "diti_probe"
_TENSORS = ("weights", "bias", "mean", "std")
_LISTED, _LISTED_LENGTH = 100, 40
"""Attributes that a message lists, and characters of each."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Rows of weights on standardised features z' = (z - mean) / std.

    A row belongs to a binary attribute (its output is a logit), to a number (its output is the number), or to
    one class of a category (a logit; the largest wins).

    Attributes:
        weights: float32 [A, d] in standardised feature space.
        bias: float32 [A].
        mean: float32 [d] of the training rows.
        std: float32 [d] of the training rows, never 0.
        names: [A] attribute of each row.
        kinds: [A] "binary", "number" or "category".
        classes: [A] class of a category's row, else "".
        model_hash: weights of the model whose features these are; "" when unknown.
    """

    weights: FloatArray
    bias: FloatArray
    mean: FloatArray
    std: FloatArray
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    classes: tuple[str, ...]
    model_hash: str = ""

    def predict(self, values: FloatArray) -> FloatArray:
        """Outputs [N, A] for features [N, d]."""
        return np.asarray((values - self.mean) / self.std @ self.weights.T + self.bias, dtype=np.float32)

    @property
    def labels(self) -> tuple[str, ...]:
        """[A] what each row is called: its attribute, or "attribute=class" for a class."""
        return tuple(f"{n}={c}" if c else n for n, c in zip(self.names, self.classes, strict=True))

    def row_of(self, label: str) -> int:
        """Row of an attribute, or of a class written as "attribute=class"; capitals count only to tell two apart.

        Raises:
            LabelError: when there is none; suggests similar names and lists all.
        """
        labels = self.labels
        if label in labels:
            return labels.index(label)
        alike = [row for row, other in enumerate(labels) if other.casefold() == label.casefold()]
        if len(alike) == 1:
            return alike[0]
        own = [other for other, name in zip(labels, self.names, strict=True) if name.casefold() == label.casefold()]
        if own:
            raise LabelError(f"{quoted(label)} is a category.", remedy=f"Choose one of {_listed(own)}.")
        near = _similar(label, labels)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        remedy = f"{hint}Choose one of {_listed(labels)}."
        raise LabelError(f"The probe has no attribute {quoted(label)}.", remedy=remedy)


def _listed(labels: Sequence[str]) -> str:
    """All names, each cut where it is endless."""
    names = [label if len(label) <= _LISTED_LENGTH else f"{label[: _LISTED_LENGTH - 1]}…" for label in labels]
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(printable, names[:_LISTED])) + more


def _similar(label: str, labels: Sequence[str]) -> list[str]:
    by_lower = {other.lower(): other for other in labels}
    return [by_lower[found] for found in get_close_matches(label.lower(), by_lower, n=3)]


def save_probe(probe: LinearProbe, path: Path) -> None:
    """Write `probe` as safetensors with its names as JSON metadata, by a rename.

    Raises:
        FeatureFileError: when it cannot be written.
    """
    rows = {"names": probe.names, "kinds": probe.kinds, "classes": probe.classes}
    tensors = {key: np.ascontiguousarray(getattr(probe, key), dtype=np.float32) for key in _TENSORS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {_META_KEY: json.dumps(rows | {"model_hash": probe.model_hash})})
    except (OSError, SafetensorError) as error:
        raise FeatureFileError(f"Cannot write {path} ({error}).", remedy="Choose another place.") from error


def load_probe(path: Path) -> LinearProbe:
    """Read what `save_probe` wrote.

    Raises:
        FeatureFileError: when it is missing, damaged, or no probe.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="numpy") as file:
            meta = parse_json((file.metadata() or {})[_META_KEY])
            tensors = {key: file.get_tensor(key) for key in _TENSORS}
        return checked_probe(
            **tensors,
            names=tuple(map(str, meta["names"])),
            kinds=tuple(map(str, meta["kinds"])),
            classes=tuple(map(str, meta["classes"])),
            model_hash=str(meta["model_hash"]),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FeatureFileError(
            f"{path} is missing or no probe ({shortened(reason)}).", remedy="Make it with `diti probe ... -o DIR`."
        ) from error


def checked_probe(**parts: Any) -> LinearProbe:
    """A `LinearProbe` of these fields, e.g. from a file.

    Raises:
        ValueError: when they do not fit together.
        TypeError: when one is missing or unknown.
    """
    probe = LinearProbe(**parts)
    for key in _TENSORS:
        values = getattr(probe, key)
        if values.dtype != np.float32:
            raise ValueError(f"its {key} are {values.dtype}, not float32")
        if not np.isfinite(values).all():
            raise ValueError(f"its {key} are not finite (NaN or infinite)")
    if unknown := sorted({*probe.kinds} - {"binary", "number", "category"}):
        raise ValueError(f"there are no attributes of kind {quoted(unknown[0])}")
    if probe.weights.ndim != 2:
        raise ValueError("the weights are no matrix")
    rows, width = probe.weights.shape
    shapes = [probe.bias.shape, probe.mean.shape, probe.std.shape]
    counts = {len(probe.names), len(probe.kinds), len(probe.classes)}
    if shapes != [(rows,), (width,), (width,)] or counts != {rows} or not (probe.std > 0).all():
        raise ValueError("its parts do not fit together")
    return probe
