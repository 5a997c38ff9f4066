"""Batch encoding: images in, a feature file out.

encode_with(pipeline, open_images(["photos/"], pipeline.resolution), Path("feats.npy"))
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.chunks import Visible
from diticli.config import Precision
from diticli.data.decode import CROP_NOTES
from diticli.data.images import ImageSource, Skipped, UnreadableImageError, iter_decoded
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode_result import EncodeResult, NothingReadableError, some_skipped
from diticli.errors import DataError, ModelError
from diticli.features.read import FeatureMeta
from diticli.features.writer import FeatureWriter
from diticli.memory import batch_fits
from diticli.models.model import DiTiModel
from diticli.models.transfer import Download, prefetched, upload
from diticli.progress import Reporter, SilentReporter

Encode = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, R, R] -> float [B, d], on any device; of a GPU it should not wait."""

_COMPILED_FROM = 200_000
"""Images from which compiling the encoder for a GPU can be worth its time: fewer are over in seconds."""


@dataclass(kw_only=True)
class _Batch:
    """Consecutive images of the source; `images` and `files` belong together."""

    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def encode_with(
    pipeline: DiTiModel, source: ImageSource, out: Path, *, precision: Precision = "auto", **options: Any
) -> EncodeResult:
    """`encode_images` by a model, which fills in all that the metadata says of it; `options` as there.

    Args:
        pipeline: the model, on the device that encodes.
        source: the images.
        out: the feature file.
        precision: of the arithmetic, see `BatchEncoder`; the file is float32 in any case, and its metadata says it.

    Raises:
        DeviceError: when bf16 is asked for on a GPU without it.
        DiTiError: as `encode_images`.
    """
    encoder, facts = model_facts(pipeline, source, precision, options.get("reporter"))
    return encode_images(encoder, source, out, **facts, device=encoder.device, **options)


def model_facts(
    pipeline: DiTiModel, source: ImageSource, precision: Precision, reporter: Reporter | None
) -> tuple[BatchEncoder, dict[str, Any]]:
    """The encoder of a model for this many images, and what the metadata says of both, by field of `FeatureMeta`.

    Raises:
        DeviceError: when bf16 is asked for on a GPU without it.
    """
    compile = pipeline.device.type == "cuda" and len(source) >= _COMPILED_FROM
    encoder = BatchEncoder(pipeline.encoder, precision, compile=compile, reporter=reporter)
    image = {"resolution": source.resolution, "crop": CROP_NOTES[source.crop], "range": [-1, 1]}
    return encoder, {
        "model": pipeline.model_id,
        "model_hash": pipeline.model_hash,
        "chunk_ends": pipeline.chunks.ends,
        "timestep_ends": pipeline.chunks.timestep_ends,
        "visible": pipeline.chunks.visible,
        "preprocessing": image | {"precision": encoder.precision},
    }


def encode_images(
    encode: Encode,
    source: ImageSource,
    out: Path,
    *,
    model: str = "",
    model_hash: str = "",
    chunk_ends: Sequence[int] = (),
    timestep_ends: Sequence[int] = (),
    visible: Visible = "prefix",
    preprocessing: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    workers: int | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 5.0,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> EncodeResult:
    """Encode every readable image of `source` into the feature file `out`.

    Reading, encoding and writing overlap: threads decode the next batches, and on a GPU a batch is written while
    the next one is computed.

    Interrupted by Ctrl-C or a kill, it leaves `out.partial`; the same call goes on from there.

    Args:
        encode: uint8 [B, 3, R, R] to float [B, d].
        source: the images.
        out: `.npy`, `.npz`, `.safetensors` or `.parquet`; replaced only when all is done.
        model: id of the model, for the metadata.
        model_hash: hash of its weights. A partial file is continued only for the same hash, source and
            preprocessing.
        chunk_ends: [K] ends of the chunks in dimensions, for the metadata.
        timestep_ends: [K] ends of the chunks in timesteps, for the metadata.
        visible: which chunks a timestep sees, for the metadata.
        preprocessing: how pictures become inputs, for the metadata; None says the resolution.
        batch_size: images per call of `encode`.
        workers: decoding threads, see `iter_decoded`.
        resume: False starts again in any case.
        checkpoint_seconds: how much work a kill may cost.
        device: where `encode` takes its images; None leaves them on the CPU.
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
        visible=visible,
        model=model,
        model_hash=model_hash,
        preprocessing=dict(preprocessing or {"resolution": source.resolution}),
    )
    with FeatureWriter(out, identity=_identity(source, meta), resume=resume) as writer:
        _announce(writer, source, reporter)
        reporter.start("Encoding", len(source) - writer.resumed, unit="images")
        batches = prefetched(_batches(source, range(writer.resumed, len(source)), batch_size, workers))
        _encode_all(encode, batches, _Rows(writer, reporter, checkpoint_seconds), device or torch.device("cpu"))
        reporter.finish()
        if not writer.files:
            writer.discard()
            raise NothingReadableError(source, writer.skipped)
        meta = writer.finish(meta)
    if meta.skipped:
        count = f"{len(meta.skipped):,} of {len(source):,} images"
        reporter.warn(f"{count} cannot be read and have no row ({some_skipped(meta.skipped)}).")
    seconds = time.monotonic() - started
    return EncodeResult(
        rows=len(meta.files),
        dim=writer.dim,
        skipped=tuple(meta.skipped),
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


class _Rows:
    """Takes batches in order and writes what became of them.

    Args:
        writer: of the feature file.
        reporter: receiver of progress.
        checkpoint_seconds: time between checkpoints of the file.
    """

    def __init__(self, writer: FeatureWriter, reporter: Reporter, checkpoint_seconds: float) -> None:
        self.writer, self.reporter, self.checkpoint_seconds = writer, reporter, checkpoint_seconds
        self._saved = time.monotonic()

    def take(self, batch: _Batch, arriving: Download | None) -> None:
        """Append a batch, whose features may still be arriving; None without images."""
        if arriving is None:
            values = np.empty((0, self.writer.dim), dtype=np.float32)
        else:
            values = _checked(arriving.wait(), batch, self.writer.dim)
        self.writer.append(values, batch.files, batch.skipped)
        if time.monotonic() - self._saved >= self.checkpoint_seconds:
            self.writer.checkpoint()
            self._saved = time.monotonic()
        self.reporter.advance(len(batch.files) + len(batch.skipped))


def _encode_all(encode: Encode, batches: Iterator[_Batch], rows: _Rows, device: torch.device) -> None:
    """Keeps a GPU one batch ahead of the file; what is computed is written, whatever ends the loop."""
    ahead = 1 if device.type == "cuda" else 0
    under_way: deque[tuple[_Batch, Download | None]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, _launch(encode, batch, device)))
            if len(under_way) > ahead:
                rows.take(*under_way.popleft())
    finally:
        while under_way:
            rows.take(*under_way.popleft())


def _launch(encode: Encode, batch: _Batch, device: torch.device) -> Download | None:
    if not batch.images:
        return None
    with torch.no_grad(), batch_fits(len(batch.images)):
        images_BHWC = upload(torch.from_numpy(np.stack(batch.images)), device)
        return Download(encode(images_BHWC.permute(0, 3, 1, 2)).float())


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


def _checked(features: torch.Tensor, batch: _Batch, dim: int) -> npt.NDArray[np.float32]:
    """Float32 [B, d], or an error that names what is wrong."""
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
