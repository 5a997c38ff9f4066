"""Directions on disk: `directions.safetensors` holds the numbers, `directions.json` says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diticli._version import __version__
from diticli.chunks import ChunkLayout
from diticli.errors import FeatureFileError
from diticli.pictures.files import write_atomically
from diticli.probing.linear_probe import LinearProbe, checked_probe

TENSORS_NAME = "directions.safetensors"
FACTS_NAME = "directions.json"
FORMAT = "diti-directions/1"
_FULL = ("weights", "bias", "mean", "std")
_MASKED = ("weights", "bias")
_REMEDY = "Make them with `diti probe ... -o DIR`."


def write_parts(
    folder: Path,
    *,
    full: LinearProbe,
    masked: LinearProbe | None,
    chosen: Mapping[str, tuple[int, ...]],
    patterns: npt.NDArray[np.float32] | None,
    layout: ChunkLayout | None,
    model: str,
) -> None:
    """Write both files, each by a rename. The second knows the hash of the first, so a mixture is noticed.

    Raises:
        DataError: when they cannot be written.
    """
    tensors = {key: getattr(full, key) for key in _FULL}
    if masked is not None:
        tensors |= {f"masked_{key}": getattr(masked, key) for key in _MASKED}
    if patterns is not None:
        tensors["patterns"] = patterns
    data = save({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in tensors.items()})
    facts = {
        "format": FORMAT,
        "version": __version__,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "model": model,
        "model_hash": full.model_hash,
        "latent_dim": len(full.mean),
        "chunks": layout.to_dict() if layout else None,
        "rows": [
            {"attribute": name, "kind": kind, "class": cls, "towards": _towards(name, kind, cls)}
            for name, kind, cls in zip(full.names, full.kinds, full.classes, strict=True)
        ],
        "chosen_dims": {name: list(dims) for name, dims in chosen.items()},
    }
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(folder / TENSORS_NAME, "directions", lambda path: path.write_bytes(data))
    write_atomically(folder / FACTS_NAME, "directions", lambda path: path.write_text(text, encoding="utf-8"))


def read_parts(folder: Path) -> dict[str, Any]:
    """Read what `write_parts` wrote, by its arguments.

    Raises:
        FeatureFileError: when it is missing, damaged, or of two probes.
    """
    try:
        facts = json.loads((folder / FACTS_NAME).read_text(encoding="utf-8"))
        data = (folder / TENSORS_NAME).read_bytes()
        return _parts(facts, data)
    except OSError as error:
        reason = error.strerror or error
        raise FeatureFileError(f"There are no directions in {folder} ({reason}).", remedy=_REMEDY) from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FeatureFileError(f"The directions in {folder} are damaged ({error}).", remedy=_REMEDY) from error


def _towards(name: str, kind: str, class_name: str) -> str:
    """What a positive amount means."""
    return {"binary": f"{name} = 1", "number": f"larger {name}", "category": f"{name} = {class_name}"}[kind]


def _parts(facts: dict[str, Any], data: bytes) -> dict[str, Any]:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']!r} is not {FORMAT!r}")
    if hashlib.sha256(data).hexdigest() != facts["tensors_sha256"]:
        raise ValueError(f"{TENSORS_NAME} and {FACTS_NAME} are not of one probe")
    tensors = load(data)
    common: dict[str, Any] = {
        "mean": tensors["mean"],
        "std": tensors["std"],
        "names": tuple(str(row["attribute"]) for row in facts["rows"]),
        "kinds": tuple(str(row["kind"]) for row in facts["rows"]),
        "classes": tuple(str(row["class"]) for row in facts["rows"]),
        "model_hash": str(facts["model_hash"]),
    }
    masked = None
    if "masked_weights" in tensors:
        masked = checked_probe(**common, **{key: tensors[f"masked_{key}"] for key in _MASKED})
    full = checked_probe(**common, **{key: tensors[key] for key in _MASKED})
    patterns = tensors.get("patterns")
    if patterns is not None and patterns.shape != full.weights.shape:
        raise ValueError("the patterns do not fit the weights")
    return {
        "full": full,
        "patterns": patterns,
        "masked": masked,
        "chosen": {str(name): tuple(map(int, dims)) for name, dims in facts["chosen_dims"].items()},
        "layout": ChunkLayout.from_dict(facts["chunks"]) if facts["chunks"] else None,
        "model": str(facts["model"]),
    }
