"""Encoding into a folder of shards: bounded memory, several processes, done units skipped on restart.

encode_sharded_with(pipeline, open_images(["shards/{000..999}.tar"], pipeline.resolution), Path("feats"))
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diticli.config import Precision
from diticli.data.image_slice import ImageSlice
from diticli.data.images import ImageSource
from diticli.distributed import Rank
from diticli.encoding.encode import Encode, encode_images, model_facts
from diticli.encoding.encode_result import NothingReadableError
from diticli.errors import DataError
from diticli.features.manifest import MANIFEST, Manifest
from diticli.features.read import FeatureMeta
from diticli.features.shard_writer import FeatureUnits
from diticli.models.model import DiTiModel
from diticli.progress import Reporter, SilentReporter

DEFAULT_SHARD = 100_000
"""Images per unit: 200 MB of 512 dims, and names of 20 MB while it is written."""


@dataclass(frozen=True, kw_only=True)
class ShardedResult:
    """What `encode_sharded` did.

    Attributes:
        complete: all units are done, by whomever, and the manifest is in place.
        units: of the folder.
        missing: units that other processes are still to do; 0 when complete.
        own: images of this process's units.
        resumed: of these, images of units that were done before.
        images: inputs of all units, 0 before all are done.
        rows: N of all shards, 0 before all are done.
        dim: d, 0 before all are done.
        skipped: inputs without a row, 0 before all are done.
        seconds: wall time of this run of this process.
        images_per_second: images of this run of this process by that time.
    """

    complete: bool
    units: int
    missing: int
    own: int
    resumed: int
    images: int
    rows: int
    dim: int
    skipped: int
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def encode_sharded_with(
    pipeline: DiTiModel, source: ImageSource, folder: Path, *, precision: Precision = "auto", **options: Any
) -> ShardedResult:
    """`encode_sharded` by a model, which fills in all that the metadata says of it; `options` as there.

    Raises:
        DeviceError: when bf16 is asked for on a GPU without it.
        DiTiError: as `encode_sharded`.
    """
    encoder, facts = model_facts(pipeline, source, precision, options.get("reporter"))
    meta = FeatureMeta(files=(), **facts)
    return encode_sharded(encoder, source, folder, meta=meta, device=encoder.device, **options)


def encode_sharded(
    encode: Encode,
    source: ImageSource,
    folder: Path,
    *,
    meta: FeatureMeta,
    shard_size: int = DEFAULT_SHARD,
    suffix: str = ".npy",
    rank: Rank | None = None,
    resume: bool = True,
    reporter: Reporter | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    checkpoint_seconds: float = 5.0,
    device: torch.device | None = None,
) -> ShardedResult:
    """Encode this process's share of `source` into shards of `folder`.

    Unit i, images [i * shard_size, (i + 1) * shard_size), belongs to process i mod `rank.count`. Rows are in the order
    of the source. The process that finds all units done writes the manifest, which `read_features(folder)` opens. The
    number of processes may change between restarts. Memory does not grow with the number of units.

    Args:
        encode: uint8 [B, 3, R, R] to float [B, d].
        source: the images, the same ones in every process.
        folder: of the shards, new or of an earlier run of this call.
        meta: of all shards, without names.
        shard_size: images of each unit but the last.
        suffix: ".npy" (memory-mapped when read) or ".parquet".
        rank: this process among all; None is alone.
        resume: False does all units again.
        reporter: receiver of progress.
        batch_size: images per call of `encode`.
        workers: decoding threads, see `iter_decoded`.
        checkpoint_seconds: how much work a kill may cost.
        device: where `encode` takes its images; None leaves them on the CPU.

    Raises:
        DataError: no images, or none readable.
        FeatureFileError: the folder cannot be written, or holds something else.
        ModelError: features that are not finite, or of the wrong shape.
    """
    if len(source) == 0:
        raise DataError(f"There are no images in {source.name}.", remedy="Name a folder that holds images.")
    rank, reporter = rank or Rank(), reporter or SilentReporter()
    started = time.monotonic()
    fingerprint = source.fingerprint()
    identity = _identity(fingerprint, meta, shard_size, suffix)
    units = FeatureUnits(folder, identity=identity, images=len(source), shard_size=shard_size, suffix=suffix)
    todo = units.claim(rank.index, rank.count, resume=resume)
    own = _images(units, range(rank.index, units.count, rank.count))
    left = _images(units, todo)
    reporter.start("Encoding", own, unit="images", done=own - left)
    for unit in todo:
        part = ImageSlice(source, *units.span(unit), fingerprint)
        try:
            result = encode_images(
                encode,
                part,
                units.path(unit),
                **_fields(meta),
                resume=resume,
                reporter=_WithinAll(reporter, len(part)),
                batch_size=batch_size,
                workers=workers,
                checkpoint_seconds=checkpoint_seconds,
                device=device,
            )
            units.finish(unit, rows=result.rows, dim=result.dim)
        except NothingReadableError as error:
            units.finish_empty(unit, error.skipped)
    reporter.finish()
    manifest = units.merge(meta, writer=rank.index)
    missing = 0 if manifest else len(units.missing())
    _tell(reporter, folder, manifest, missing, units.count)
    return _result(manifest, units.count, missing, own, left, time.monotonic() - started)


def _identity(fingerprint: dict[str, Any], meta: FeatureMeta, shard_size: int, suffix: str) -> str:
    facts = [fingerprint, meta.model_hash, dict(meta.preprocessing), meta.chunk_ends, shard_size, suffix]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _images(units: FeatureUnits, chosen: range | list[int]) -> int:
    return sum(stop - start for start, stop in map(units.span, chosen))


def _fields(meta: FeatureMeta) -> dict[str, Any]:
    names = ("model", "model_hash", "chunk_ends", "timestep_ends", "visible", "preprocessing")
    return {name: getattr(meta, name) for name in names}


def _tell(reporter: Reporter, folder: Path, manifest: Manifest | None, missing: int, count: int) -> None:
    if manifest is None:
        reporter.note(
            f"{missing:,} of {count:,} units of {folder} are left to other processes; the last one writes {MANIFEST}."
        )
    elif manifest.images > manifest.rows:
        lost = f"{manifest.images - manifest.rows:,} of {manifest.images:,} images"
        reporter.warn(f"{lost} cannot be read and have no row; the JSON beside each shard says why.")


def _result(manifest: Manifest | None, units: int, missing: int, own: int, left: int, seconds: float) -> ShardedResult:
    return ShardedResult(
        complete=manifest is not None,
        units=units,
        missing=missing,
        own=own,
        resumed=own - left,
        images=manifest.images if manifest else 0,
        rows=manifest.rows if manifest else 0,
        dim=manifest.dim if manifest else 0,
        skipped=manifest.images - manifest.rows if manifest else 0,
        seconds=seconds,
        images_per_second=left / max(seconds, 1e-9),
    )


class _WithinAll(SilentReporter):
    """Progress of one unit within that of all; what an interrupted run had done of it counts at once."""

    def __init__(self, whole: Reporter, images: int) -> None:
        self._whole, self._images = whole, images

    def start(self, title: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        """See `Reporter.start`."""
        if total is not None and total < self._images:
            self._whole.advance(self._images - total)

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""
        self._whole.advance(amount, **fields)
