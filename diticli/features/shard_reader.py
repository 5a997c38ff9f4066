"""A finished folder of feature shards, read where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.features.formats import DAMAGE, READERS, Array
from diticli.features.manifest import FeatureMeta, Manifest, Shard, read_manifest
from diticli.features.rows import ShardedItems, ShardedRows
from diticli.files import sha256_of
from diticli.types import FloatArray

_SCAN_VALUES = 2**22
_REMEDY = "Remove it and run the same `diti encode` again, which makes what is missing."


class FeatureShards:
    """The rows and names of a folder.

    Nothing but the manifest is read until rows or names are asked for. A shard is checked against its checksum, and
    for finite float32, the first time it is opened; this is one reading of the file.

    Args:
        folder: that holds them.
        manifest: of the folder.

    Attributes:
        rows: float32 [N, d].
        meta: names and skipped images shard by shard, the rest from the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._checked: set[int] = set()
        counts = [shard.rows for shard in manifest.shards]
        lost = [shard.images - shard.rows for shard in manifest.shards]
        self.rows = ShardedRows(counts, manifest.dim, self._load)
        self.meta = replace(
            manifest.meta, files=ShardedItems(counts, self._names), skipped=ShardedItems(lost, self._skipped)
        )

    @classmethod
    def open(cls, folder: Path) -> FeatureShards:
        """The shards of `folder`.

        Raises:
            FeatureFileError: when the folder is unfinished, its manifest is damaged, or a shard is missing or of
                another size.
        """
        manifest = read_manifest(folder)
        for shard in manifest.shards:
            _check_size(folder / shard.file, shard)
        ends = manifest.meta.chunk_ends
        if ends and ends[-1] != manifest.dim:
            raise FeatureFileError(
                f"{folder} has {manifest.dim} columns, but its chunks end at {ends[-1]}.", remedy=_REMEDY
            )
        return cls(folder, manifest)

    def _load(self, index: int) -> FloatArray:
        shard = self._manifest.shards[index]
        path = self._folder / shard.file
        if index not in self._checked:
            check_sha256(path, shard.sha256)
        try:
            values, _ = READERS[path.suffix](path)
        except DAMAGE as error:
            raise FeatureFileError(f"{path} is damaged ({error}).", remedy=_REMEDY) from error
        if index not in self._checked:
            check_values(path, values)
            self._checked.add(index)
        wanted = (shard.rows, self._manifest.dim)
        if values.shape != wanted:
            raise FeatureFileError(f"{path} holds {list(values.shape)}, not {list(wanted)}.", remedy=_REMEDY)
        return values

    def _sidecar(self, index: int) -> FeatureMeta:
        shard = self._manifest.shards[index]
        path = self._folder / shard.sidecar
        check_sha256(path, shard.sidecar_sha256)
        meta = FeatureMeta.from_json(path.read_bytes())
        if (len(meta.files), len(meta.skipped)) != (shard.rows, shard.images - shard.rows):
            raise FeatureFileError(f"{path} does not name {shard.rows} rows.", remedy=_REMEDY)
        return meta

    def _names(self, index: int) -> Sequence[str]:
        return self._sidecar(index).files

    def _skipped(self, index: int) -> Sequence[Skipped]:
        return self._sidecar(index).skipped


def check_sha256(path: Path, wanted: str) -> None:
    """Whether a file holds what the manifest says.

    Raises:
        FeatureFileError: when it does not, or cannot be read.
    """
    try:
        found = sha256_of(path)
    except OSError as error:
        raise FeatureFileError(f"Cannot read {path} ({error.strerror}).", remedy=_REMEDY) from error
    if found != wanted:
        raise FeatureFileError(f"{path} is damaged: its checksum is not that of the manifest.", remedy=_REMEDY)


def _check_size(path: Path, shard: Shard) -> None:
    if not shard.rows:
        return
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FeatureFileError(f"The shard {path} is missing ({error.strerror}).", remedy=_REMEDY) from error
    if size != shard.bytes:
        raise FeatureFileError(f"{path} has {size:,} bytes, not {shard.bytes:,}.", remedy=_REMEDY)


def check_values(path: Path, values: Array) -> None:
    """Check the array that `path` held, block by block.

    Raises:
        FeatureFileError: when it is not finite float32 [N >= 1, d >= 1].
    """
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
