"""Batch encoding: images in, a feature file or a folder of shards out.

encode_with(pipeline, open_images(["photos/"], pipeline.resolution), Path("feats.npy"))
encode_with(pipeline, open_images(["{000..999}.tar"], pipeline.resolution), Path("feats"), shard_size=DEFAULT_SHARD)
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.config import Precision
from diticli.data.depth import reading_facts
from diticli.data.images import ImageSource, Skipped, UnreadableImageError, iter_decoded
from diticli.data.sources import how_read
from diticli.distributed import Rank
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import DataError, ModelError
from diticli.features.manifest import MANIFEST, FeatureMeta
from diticli.features.shard_reader import FeatureShards
from diticli.features.shard_writer import ShardFolder
from diticli.features.writer import FeatureWriter
from diticli.models.base_features import BaseFeatures, BaseSpec, base_hash, describe_features
from diticli.models.device import resolve_precision
from diticli.models.encoder import SemanticEncoder
from diticli.models.largest_batch import SMALLER_MODEL, batch_fits
from diticli.models.model import DiTiModel
from diticli.models.transfer import Download, prefetched, upload
from diticli.progress import Reporter, SilentReporter

Encode = Callable[[torch.Tensor], torch.Tensor]
"""uint8 [B, 3, R, R] -> float [B, d], on any device; of a GPU it should not wait."""

DEFAULT_SHARD = 100_000
"""Images per shard: 200 MB of 512 dims, and names of 20 MB while it is written."""
_COMPILED_FROM = 200_000
"""Images from which the encoder is compiled for a GPU, where nothing was measured: fewer are over in seconds."""
DEFAULT_BATCH = 128
_NAMED = 3
"""Unreadable images that a message names."""


@dataclass(frozen=True, kw_only=True)
class EncodeResult:
    """What this process encoded, and what the output holds.

    Attributes:
        rows: N of the file or of all shards; 0 while shards are missing, as are `dim` and `images`.
        dim: d, their width.
        images: inputs, readable or not.
        skipped: inputs without a row, and why; of a folder they are read where they are asked for.
        units: shards of a folder, 0 for a file.
        missing: shards that other processes are still to do.
        own: images of this process's part.
        resumed: of these, images that an interrupted run had already dealt with.
        seconds: wall time of this run of this process.
        images_per_second: images of this run (not the resumed ones) by that time.
    """

    rows: int = 0
    dim: int = 0
    images: int = 0
    skipped: Sequence[Skipped] = ()
    units: int = 0
    missing: int = 0
    own: int
    resumed: int
    seconds: float
    images_per_second: float

    @property
    def complete(self) -> bool:
        """All images are dealt with, by whichever process, and the file or the manifest is in place."""
        return not self.missing

    def to_dict(self) -> dict[str, Any]:
        """JSON form; the skipped images of a folder are counted, those of a file listed."""
        skipped = len(self.skipped) if self.units else [asdict(item) for item in self.skipped]
        return vars(self) | {"skipped": skipped, "complete": self.complete}


def encode_with(
    pipeline: DiTiModel,
    source: ImageSource,
    out: Path,
    *,
    precision: Precision = "auto",
    base: BaseSpec | None = None,
    warnings: Sequence[str] = (),
    **options: Any,
) -> EncodeResult:
    """`encode_images` by a model, which fills in all that the metadata says of it; `options` as there.

    Args:
        pipeline: the model, on the device that encodes.
        source: the images.
        out: the feature file, or the folder of shards.
        precision: of the arithmetic, see `BatchEncoder`; features are float32 in any case, and the metadata says it.
        base: takes these features of the frozen base instead of the encoder's; they have no chunks.
        warnings: of `input_warnings`, for the metadata.

    Raises:
        ConfigError: for a timestep or a block that the base does not have.
        DeviceError: when bf16 is asked for on a GPU without it.
        ModelError: for features of the base of an encoder alone.
        DiTiError: as `encode_images`.
    """
    image = {"resolution": source.resolution, "crop": source.crop, "range": [-1, 1]}
    image |= reading_facts(source.channels, source.value_range)
    inputs = how_read(source)
    if base is not None:
        unet = pipeline.denoisers()[0]
        features = BaseFeatures(unet, pipeline.schedule, base, precision=precision)
        meta = FeatureMeta(
            files=(),
            model=pipeline.model_id,
            model_hash=base_hash(unet, pipeline.schedule),
            preprocessing=image
            | describe_features(features.timesteps, features.blocks)
            | {"precision": features.precision},
            inputs=inputs,
            warnings=tuple(warnings),
        )
        return encode_images(features, source, out, meta=meta, device=features.device, **options)
    batch = options.get("batch_size", DEFAULT_BATCH)
    compile = pipeline.device.type == "cuda" and len(source) >= _compiled_from(pipeline.encoder, batch, precision)
    encoder = BatchEncoder(pipeline.encoder, precision, compile=compile, reporter=options.get("reporter"))
    meta = FeatureMeta(
        files=(),
        model=pipeline.model_id,
        model_hash=pipeline.model_hash,
        chunk_ends=pipeline.chunks.ends,
        timestep_ends=pipeline.chunks.timestep_ends,
        visible=pipeline.chunks.visible,
        preprocessing=image | {"precision": encoder.precision},
        inputs=inputs,
        warnings=tuple(warnings),
    )
    return encode_images(encoder, source, out, meta=meta, device=encoder.device, **options)


def _compiled_from(encoder: SemanticEncoder, batch: int, precision: Precision) -> float:
    """Images from which the encoder is compiled on its GPU."""
    from diticli.tuning.compiling import compiled_from, encoding_site

    site = encoding_site(encoder, batch, resolve_precision(precision, encoder.device))
    batches = compiled_from(site, encoder.device)
    return _COMPILED_FROM if batches is None else batches * batch


def encode_images(
    encode: Encode,
    source: ImageSource,
    out: Path,
    *,
    meta: FeatureMeta | None = None,
    shard_size: int | None = None,
    suffix: str = ".npy",
    rank: Rank | None = None,
    batch_size: int = DEFAULT_BATCH,
    workers: int | None = None,
    resume: bool = True,
    checkpoint_seconds: float = 5.0,
    device: torch.device | None = None,
    reporter: Reporter | None = None,
) -> EncodeResult:
    """Encode every readable image of `source` into the feature file `out`, or this process's part into a folder.

    Reading, encoding and writing overlap: threads decode the next batches, and on a GPU a batch is written while
    the next one is computed. Interrupted by Ctrl-C or a kill, the same call goes on where it stopped.

    A folder's shard i, images [i * shard_size, (i + 1) * shard_size), belongs to process i mod `rank.count`. The
    process that finds all of them done writes the manifest, which `read_features(folder)` opens. The number of
    processes may change between restarts, and memory does not grow with the number of shards.

    Args:
        encode: uint8 [B, 3, R, R] to float [B, d].
        source: the images, the same ones in every process.
        out: `.npy`, `.npz`, `.safetensors` or `.parquet`, replaced only when all is done; or the folder.
        meta: of the file or of all shards, without names. What was begun is continued only for the same images, model
            hash, preprocessing and chunks.
        shard_size: images of each shard but the last; None writes one file.
        suffix: of the shards: ".npy" (memory-mapped when read) or ".parquet".
        rank: this process among those that fill the folder; None is alone.
        batch_size: images per call of `encode`.
        workers: decoding threads, see `iter_decoded`.
        resume: False starts again in any case.
        checkpoint_seconds: how much work a kill may cost.
        device: where `encode` takes its images; None leaves them on the CPU.
        reporter: receiver of progress.

    Raises:
        DataError: no images, or none readable.
        FeatureFileError: the output cannot be written, or the folder holds something else.
        ModelError: features that are not finite, or of the wrong shape.
    """
    if batch_size < 1:
        raise DataError(f"A batch of {batch_size} images is none.", remedy="Use a batch size of at least 1.")
    if len(source) == 0:
        raise DataError(f"There are no images in {source.name}.", remedy="Name a folder that holds images.")
    rank, reporter, started = rank or Rank(), reporter or SilentReporter(), time.monotonic()
    meta = meta or FeatureMeta(files=(), preprocessing={"resolution": source.resolution})
    fingerprint = source.fingerprint()
    folder, todo, own = None, [(0, range(len(source)), out)], len(source)
    if shard_size is not None:
        identity = _identity(fingerprint, meta, shard_size, suffix)
        folder = ShardFolder(out, identity=identity, images=len(source), shard_size=shard_size, suffix=suffix)
        units = folder.claim(rank.index, rank.count, resume=resume)
        todo = [(unit, folder.images(unit), folder.path(unit)) for unit in units]
        own = sum(len(folder.images(unit)) for unit in range(rank.index, folder.count, rank.count))
    resumed = own - sum(len(images) for _, images, _ in todo)
    output: dict[str, Any] = {}
    for number, (unit, images, path) in enumerate(todo):
        part = fingerprint if folder is None else {"slice": [images.start, images.stop], "of": fingerprint}
        with FeatureWriter(path, identity=_identity(part, meta), resume=resume) as writer:
            resumed += writer.resumed
            if not number:
                _begin(reporter, own, resumed)
            elif writer.resumed:
                reporter.advance(writer.resumed)
            if writer.discarded:
                reporter.warn("The partial file of another model or other images is replaced.")
            batches = prefetched(_batches(source, images[writer.resumed :], batch_size, workers))
            _encode_all(encode, batches, _Rows(writer, reporter, checkpoint_seconds), device or torch.device("cpu"))
            written: dict[str, Any] = {"rows": len(writer.files), "dim": writer.dim, "skipped": tuple(writer.skipped)}
            if written["rows"]:
                writer.finish(meta)
            else:
                writer.discard()
        if folder is None:
            output = written | {"images": len(source)}
        else:
            folder.finish(unit, **written)
    reporter.finish()
    if folder is not None:
        output = _merged(folder, meta, rank, reporter)
    elif not output["rows"]:
        raise DataError(
            f"None of the {len(source):,} images of {source.name} can be read ({_some(output['skipped'])}).",
            remedy="Repair or replace these files.",
        )
    if skipped := output.get("skipped"):
        count = f"{len(skipped):,} of {output['images']:,} images"
        reporter.warn(f"{count} cannot be read and have no row ({_some(skipped)}).")
    seconds = time.monotonic() - started
    return EncodeResult(
        **output, own=own, resumed=resumed, seconds=seconds, images_per_second=(own - resumed) / max(seconds, 1e-9)
    )


def _begin(reporter: Reporter, images: int, resumed: int) -> None:
    if resumed:
        reporter.note(f"Going on after {resumed:,} of {images:,} images.")
    reporter.start("Encoding", images, unit="images", done=resumed)


def _identity(fingerprint: Mapping[str, Any], meta: FeatureMeta, *layout: int | str) -> str:
    """Hash of everything the rows depend on; of a folder also how its images are cut into shards."""
    facts = [fingerprint, meta.model_hash, dict(meta.preprocessing), meta.chunk_ends, *layout]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _merged(folder: ShardFolder, meta: FeatureMeta, rank: Rank, reporter: Reporter) -> dict[str, Any]:
    """What the folder holds, by field of `EncodeResult`; its manifest is written once all shards are there."""
    manifest = folder.merge(meta)
    if manifest is None:
        missing = len(folder.missing())
        where = f"{missing:,} of {folder.count:,} units of {folder.folder}"
        reporter.note(f"{where} are left to other processes; the last one writes {MANIFEST}.")
        return {"units": folder.count, "missing": missing}
    skipped = FeatureShards(folder.folder, manifest).meta.skipped
    held = {"rows": manifest.rows, "dim": manifest.dim, "images": manifest.images}
    return held | {"skipped": skipped, "units": folder.count}


def _some(skipped: Sequence[Skipped]) -> str:
    """The first of them with their reasons, and how many more there are."""
    named = "; ".join(f"{item.file}: {item.reason}" for item in skipped[:_NAMED])
    return named + (f"; and {len(skipped) - _NAMED:,} more" if len(skipped) > _NAMED else "")


@dataclass(kw_only=True)
class _Batch:
    """Consecutive images of the source; `images` and `files` belong together."""

    images: list[npt.NDArray[np.uint8]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


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

    def features(count: int) -> torch.Tensor:
        images_BHWC = upload(torch.from_numpy(np.stack(batch.images[:count])), device)
        return encode(images_BHWC.permute(0, 3, 1, 2)).float()

    with torch.no_grad(), batch_fits(len(batch.images), features, device=device, smallest=SMALLER_MODEL):
        return Download(features(len(batch.images)))


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
