"""Batch encoding: images in, a feature file out.

encode_with(pipeline, open_images(["photos/"], pipeline.resolution), Path("feats.npy"))
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.data.decode import CROP_NOTES
from diticli.data.feature_writer import FeatureWriter
from diticli.data.features import FeatureMeta
from diticli.data.images import ImageSource, Skipped, UnreadableImageError, iter_decoded
from diticli.errors import DataError, ModelError
from diticli.models.pipeline import DiTiPipeline
from diticli.progress import Reporter, SilentReporter

Encode = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, R, R] -> float [B, d]."""

_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What `encode_images` did.

    Attributes:
        rows: N, rows of the feature file.
        dim: d, their width.
        skipped: images without a row, and why.
        resumed: images that an interrupted run had already dealt with.
        seconds: wall time of this run.
        images_per_second: images of this run (not the resumed ones) by that time.
    """

    rows: int
    dim: int
    skipped: tuple[Skipped, ...]
    resumed: int
    seconds: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(kw_only=True)
class _Batch:
    """Consecutive images of the source; `images` and `files` belong together."""

    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def encode_with(pipeline: DiTiPipeline, source: ImageSource, out: Path, **options: Any) -> EncodeResult:
    """`encode_images` by a model, which fills in all that the metadata says of it; `options` as there."""
    return encode_images(
        pipeline.encode_uint8,
        source,
        out,
        model=pipeline.model_id,
        model_hash=pipeline.model_hash,
        chunk_ends=pipeline.chunks.ends,
        timestep_ends=pipeline.chunks.timestep_ends,
        preprocessing={"resolution": source.resolution, "crop": CROP_NOTES[source.crop], "range": [-1, 1]},
        **options,
    )


def encode_images(
    encode: Encode,
    source: ImageSource,
    out: Path,
    *,
    model: str = "",
    model_hash: str = "",
    chunk_ends: Sequence[int] = (),
    timestep_ends: Sequence[int] = (),
    preprocessing: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 5.0,
    reporter: Reporter | None = None,
) -> EncodeResult:
    """Encode every readable image of `source` into the feature file `out`.

    Interrupted by Ctrl-C or a kill, it leaves `out.partial`; the same call goes on from there.

    Args:
        encode: uint8 [B, 3, R, R] to float [B, d].
        source: the images.
        out: `.npy`, `.npz`, `.safetensors` or `.parquet`; replaced only when all is done.
        model: id of the model, for the metadata.
        model_hash: hash of its weights. A partial file is continued only for the same hash, source and
            preprocessing.
        chunk_ends: [K] ends of the chunks in dimensions, for the metadata.
        timestep_ends: [K] ends of the chunks in time-steps, for the metadata.
        preprocessing: how pictures become inputs, for the metadata; None says the resolution.
        batch_size: images per call of `encode`.
        workers: decoding threads, see `iter_decoded`.
        resume: False starts again in any case.
        checkpoint_seconds: how much work a kill may cost.
        reporter: receiver of progress.

    Raises:
        DataError: no images, or none readable.
        FeatureFileError: the output cannot be written.
        ModelError: features that are not finite, or of the wrong shape.
    """
    if batch_size < 1:
        raise DataError(f"A batch of {batch_size} images is none.", remedy="Use a batch size of at least 1.")
    if len(source) == 0:
        raise DataError(f"There are no images in {source.name}.", remedy="Name a folder that holds images.")
    reporter = reporter or SilentReporter()
    started = time.monotonic()
    meta = FeatureMeta(
        files=(),
        chunk_ends=tuple(chunk_ends),
        timestep_ends=tuple(timestep_ends),
        model=model,
        model_hash=model_hash,
        preprocessing=dict(preprocessing or {"resolution": source.resolution}),
    )
    with FeatureWriter(out, identity=_identity(source, meta), resume=resume) as writer:
        _announce(writer, source, reporter)
        _encode_all(encode, source, writer, batch_size, workers, checkpoint_seconds, reporter)
        if not writer.files:
            writer.discard()
            raise DataError(
                f"None of the {len(source):,} images of {source.name} can be read ({_some(writer.skipped)}).",
                remedy="Repair or replace these files.",
            )
        meta = writer.finish(meta)
    if meta.skipped:
        count = f"{len(meta.skipped):,} of {len(source):,} images"
        reporter.warn(f"{count} cannot be read and have no row ({_some(meta.skipped)}).")
    seconds = time.monotonic() - started
    return EncodeResult(
        rows=len(meta.files),
        dim=writer.dim,
        skipped=meta.skipped,
        resumed=writer.resumed,
        seconds=seconds,
        images_per_second=(len(source) - writer.resumed) / max(seconds, 1e-9),
    )


def _identity(source: ImageSource, meta: FeatureMeta) -> str:
    """Hash of everything the rows depend on."""
    facts = [source.fingerprint(), meta.model_hash, dict(meta.preprocessing), meta.chunk_ends]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _announce(writer: FeatureWriter, source: ImageSource, reporter: Reporter) -> None:
    if writer.resumed:
        reporter.note(f"Going on after {writer.resumed:,} of {len(source):,} images.")
    elif writer.discarded:
        reporter.warn("The partial file of another model or other images is replaced.")


def _encode_all(
    encode: Encode,
    source: ImageSource,
    writer: FeatureWriter,
    batch_size: int,
    workers: int | None,
    checkpoint_seconds: float,
    reporter: Reporter,
) -> None:
    reporter.start("Encoding", len(source) - writer.resumed, unit="images")
    saved = time.monotonic()
    for batch in _batches(source, range(writer.resumed, len(source)), batch_size, workers):
        values = _encode_batch(encode, batch, writer.dim)
        writer.append(values, batch.files, batch.skipped)
        if time.monotonic() - saved >= checkpoint_seconds:
            writer.checkpoint()
            saved = time.monotonic()
        reporter.advance(len(batch.files) + len(batch.skipped))
    reporter.finish()


def _batches(source: ImageSource, indices: range, batch_size: int, workers: int | None) -> Iterator[_Batch]:
    """Batches of `batch_size` readable images; the last may be smaller, or only have skipped ones."""
    batch = _Batch()
    for index, decoded in iter_decoded(source, indices, workers=workers):
        if isinstance(decoded, UnreadableImageError):
            batch.skipped.append(Skipped(source.file_name(index), decoded.reason))
        else:
            batch.images.append(decoded)
            batch.files.append(source.file_name(index))
        if len(batch.images) == batch_size:
            yield batch
            batch = _Batch()
    if batch.images or batch.skipped:
        yield batch


def _encode_batch(encode: Encode, batch: _Batch, dim: int) -> npt.NDArray[np.float32]:
    """Float32 [B, d], checked."""
    if not batch.images:
        return np.empty((0, dim), dtype=np.float32)
    images_BHWC = torch.from_numpy(np.stack(batch.images))
    with torch.no_grad():
        features = encode(images_BHWC.permute(0, 3, 1, 2).contiguous()).float().cpu()
    if features.ndim != 2 or len(features) != len(batch.images) or (dim and features.shape[1] != dim):
        raise ModelError(
            f"The encoder gave {list(features.shape)} for {len(batch.images)} images.",
            remedy="It must give one row of fixed width per image.",
        )
    finite = features.isfinite().all(dim=1)
    if not finite.all():
        first = batch.files[int(finite.logical_not().nonzero()[0])]
        raise ModelError(
            f"The encoder gave NaN or infinite features for {first}.",
            remedy="Check that its training did not diverge, or encode in fp32.",
        )
    return features.numpy()


def _some(skipped: Sequence[Skipped]) -> str:
    named = "; ".join(f"{item.file}: {item.reason}" for item in skipped[:_NAMED])
    return named + (f"; and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else "")
