"""Read features and what they are: `read_features("feats.npy")`.

Formats are those of `diticli.data.feature_formats`; `diticli.data.feature_writer` makes the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diticli.data.feature_formats import DAMAGE, READERS, Array, FloatArray, check_suffix, sidecar_path
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError

_REMEDY = "Make the file again with `diti encode`."
_SCAN_VALUES = 2**22


@dataclass(frozen=True, kw_only=True)
class FeatureMeta:
    """What the rows and the columns of a feature file are.

    Attributes:
        files: [N] names in row order, as the image source gave them.
        chunk_ends: [K] exclusive end of each chunk's slice of columns; empty for foreign features.
        timestep_ends: [K] exclusive end of each chunk's time-steps; empty for foreign features.
        model: id of the model: a folder or a Hub id.
        model_hash: hash of the weights.
        preprocessing: how a picture became the model's input, e.g. resolution and crop.
        skipped: inputs left out of the rows.
        created: ISO 8601 date and time, UTC.
        version: version of this package that wrote the file.
    """

    files: tuple[str, ...]
    chunk_ends: tuple[int, ...] = ()
    timestep_ends: tuple[int, ...] = ()
    model: str = ""
    model_hash: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    created: str = ""
    version: str = ""

    def to_json(self) -> str:
        """JSON text, read back by `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureMeta:
        """Inverse of `to_json`; only `files` is required and unknown keys are ignored, for foreign sidecars.

        Raises:
            FeatureFileError: when this is not such JSON.
        """
        try:
            data = json.loads(text)
            return cls(
                files=tuple(_strings(data["files"])),
                chunk_ends=tuple(int(end) for end in data.get("chunk_ends", ())),
                timestep_ends=tuple(int(end) for end in data.get("timestep_ends", ())),
                preprocessing=dict(data.get("preprocessing", {})),
                skipped=tuple(Skipped(*_strings([s["file"], s["reason"]])) for s in data.get("skipped", ())),
                **{key: str(data.get(key, "")) for key in ("model", "model_hash", "created", "version")},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FeatureFileError(f"The metadata is damaged ({error!r}).", remedy=_REMEDY) from error


@dataclass(frozen=True, kw_only=True)
class Features:
    """A feature file.

    Attributes:
        values: float32 [N, d]; a read-only memory map for `.npy`.
        meta: what they are, or None for an array without a sidecar.
    """

    values: FloatArray
    meta: FeatureMeta | None


def read_features(path: Path) -> Features:
    """Read and check a feature file.

    Raises:
        FeatureFileError: when it is missing, damaged, not finite float32 [N >= 1, d >= 1], or when its
            metadata names another number of files than it has rows.
    """
    path = Path(path)
    suffix = check_suffix(path)
    if not path.is_file():
        raise FeatureFileError(f"There is no feature file {path}.", remedy=f"Run `diti encode IMAGES -o {path}`.")
    try:
        values, embedded = READERS[suffix](path)
    except DAMAGE as error:
        raise FeatureFileError(f"{path} is damaged or no feature file ({error}).", remedy=_REMEDY) from error
    _check_values(path, values)
    meta = _read_meta(path, embedded)
    if meta is not None and len(meta.files) != len(values):
        raise FeatureFileError(
            f"{path} has {len(values)} rows, but its metadata names {len(meta.files)} files.", remedy=_REMEDY
        )
    if meta is not None and meta.chunk_ends and meta.chunk_ends[-1] != values.shape[1]:
        raise FeatureFileError(
            f"{path} has {values.shape[1]} columns, but its chunks end at {meta.chunk_ends[-1]}.",
            remedy=_REMEDY,
        )
    return Features(values=values, meta=meta)


def _read_meta(path: Path, embedded: str | None) -> FeatureMeta | None:
    """Metadata inside the file goes where the file goes, so it outranks a sidecar."""
    sidecar = sidecar_path(path)
    try:
        if embedded is not None:
            return FeatureMeta.from_json(embedded)
        return FeatureMeta.from_json(sidecar.read_bytes()) if sidecar.is_file() else None
    except FeatureFileError as error:
        source = path if embedded is not None else sidecar
        raise FeatureFileError(f"{source}: {error.message}", remedy=error.remedy) from error
    except OSError as error:
        raise FeatureFileError(f"Cannot read {sidecar} ({error}).", remedy="Check its permissions.") from error


def _check_values(path: Path, values: Array) -> None:
    if values.dtype != np.dtype("<f4") or values.ndim != 2 or 0 in values.shape:
        raise FeatureFileError(
            f"{path} holds {values.dtype} of shape {list(values.shape)}, not float32 [N, d].",
            remedy="Save `features.astype(np.float32)` with one row per image, or run `diti encode`.",
        )
    block = max(1, _SCAN_VALUES // values.shape[1])
    bad = sum(
        int((~np.isfinite(values[start : start + block])).any(axis=1).sum()) for start in range(0, len(values), block)
    )
    if bad:
        raise FeatureFileError(
            f"{bad} of {len(values)} rows of {path} hold NaN or infinite values.",
            remedy="Encode again, in fp32 if a lower precision overflowed.",
        )


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("a name or a reason is no text")
    return values
