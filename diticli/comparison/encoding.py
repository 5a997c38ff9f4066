"""Cache of every entry's features, keyed by the contents that they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

from diticli.comparison.entries import Entries, Entry
from diticli.comparison.images import ComparedImages
from diticli.comparison.settings import CompareSettings
from diticli.data.labels import LabelTable
from diticli.distributed import Rank
from diticli.encoding.encode import DEFAULT_SHARD, encode_images
from diticli.errors import FeatureFileError
from diticli.features.manifest import MANIFEST
from diticli.features.read import Features, read_features
from diticli.identity import digest
from diticli.models.device import resolve_precision
from diticli.progress import Reporter
from diticli.reading import check_regular, quoted
from diticli.types import Rows

SMALL_SHARD, SHARES = 512, 32
"""Work is cut into so many shards, or more where they would be larger than those of `diti encode`."""


class FeatureStore:
    """Features of all entries in one folder, each under a hash of weights, images and preprocessing.

    Args:
        folder: made when something is encoded.
        images: what is encoded.
        entries: the encoders.
        settings: precision, batch size, workers.
        rank: this process among those that share the work.
        device: where models encode.
        reporter: receiver of progress.
    """

    def __init__(
        self,
        folder: Path,
        images: ComparedImages,
        entries: Entries,
        settings: CompareSettings,
        *,
        rank: Rank,
        device: torch.device,
        reporter: Reporter,
    ) -> None:
        self.folder, self.images, self.entries = folder, images, entries
        self.settings, self.rank, self.device, self.reporter = settings, rank, device, reporter

    def key(self, entry: Entry) -> str:
        """Hash (16 hex digits) of everything that the entry's features depend on."""
        if entry.spec.kind == "features":
            return file_key(Path(entry.spec.source))
        fingerprint = self.images.read_by(entry).fingerprint()
        meta = self.entries.meta(entry, self._precision(entry))
        facts = [entry.model_hash, dict(meta.preprocessing), fingerprint, self._shard_size]
        return digest(facts)

    def path(self, entry: Entry) -> Path:
        """Where its features are: a folder of shards, or the file that was named."""
        given = entry.spec.kind == "features"
        return Path(entry.spec.source) if given else self.folder / self.key(entry)

    def has(self, entry: Entry) -> bool:
        """Whether they are complete."""
        return entry.spec.kind == "features" or (self.path(entry) / MANIFEST).is_file()

    def encode(self, entry: Entry) -> None:
        """This process's share of what is missing.

        Raises:
            DataError: when no image is readable.
            FeatureFileError: when the folder cannot be written.
            ModelError: for features that are not finite.
        """
        if self.has(entry):
            return
        encode, meta = self.entries.encode(entry, self.settings.precision, self.reporter)
        encode_images(
            encode,
            self.images.read_by(entry),
            self.path(entry),
            meta=meta,
            shard_size=self._shard_size,
            rank=self.rank,
            reporter=self.reporter,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            device=self.device if entry.spec.kind in ("model", "untrained", "base") else None,
        )

    def read(self, entry: Entry) -> Features:
        """Its features.

        Raises:
            FeatureFileError: when they are missing or damaged.
        """
        return read_features(self.path(entry))

    @property
    def _shard_size(self) -> int:
        """Independent of the number of processes, so that a restart may have another."""
        return min(DEFAULT_SHARD, max(SMALL_SHARD, -(-len(self.images.any) // SHARES)))

    def _precision(self, entry: Entry) -> str:
        if entry.spec.kind in ("pixels", "pca"):
            return "fp32"
        return resolve_precision(self.settings.precision, self.device)


def rows_by_name(entry: Entry, features: Features, names: list[str]) -> tuple[Rows, Rows]:
    """Pairs of an image and its row: indices into `names`, and into the features.

    Raises:
        FeatureFileError: for features without names that are not as many as the images, or that belong to others.
    """
    meta, source = features.meta, entry.spec.source
    if meta is None:
        if len(features.values) != len(names):
            raise FeatureFileError(
                f"{source} has {len(features.values):,} rows without names, the data {len(names):,} images.",
                remedy="Encode all of them in order, or name the file of each row in a JSON beside it: "
                '{"files": [...]}.',
            )
        return np.arange(len(names)), np.arange(len(names))
    wanted, rows = LabelTable(tuple(meta.files), {}).match(names)
    if not len(rows):
        some, first = ", ".join(map(quoted, names[:2])), quoted(meta.files[0])
        raise FeatureFileError(
            f"The features of {entry.name} are of other images: {first} and so on, the data has {some}.",
            remedy="Encode the images that are compared.",
        )
    return wanted, rows


def file_key(path: Path) -> str:
    """Hash of a feature file's bytes, or of a folder's manifest (which holds the checksums of its shards)."""
    target = path / MANIFEST if path.is_dir() else path
    hasher = hashlib.sha256()
    try:
        check_regular(target)
        with target.open("rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
        sidecar = target.with_suffix(".json")
        if not path.is_dir() and sidecar.is_file():
            hasher.update(sidecar.read_bytes())
    except OSError as error:
        raise FeatureFileError(f"Cannot read {target} ({error.strerror}).", remedy="Check its permissions.") from error
    return hasher.hexdigest()[:16]
