"""Features of every contender, encoded once and kept by what they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from diticli.comparing.crew import Crew
from diticli.comparing.images import ComparedImages
from diticli.comparing.lineup import Lineup, Subject
from diticli.comparing.settings import CompareSettings
from diticli.data.labels import LabelTable
from diticli.encoding.encode_shards import DEFAULT_SHARD, encode_sharded
from diticli.errors import FeatureFileError
from diticli.features.manifest import MANIFEST
from diticli.features.read import Features, read_features
from diticli.identity import digest
from diticli.models.device import resolve_precision

Rows = npt.NDArray[np.int64]
SMALL_SHARD, SHARES = 512, 32
"""Work is cut into so many shards, or more where they would be larger than those of `diti encode`."""


class FeatureStore:
    """Features of all subjects in one folder, each under a hash of weights, images and preprocessing.

    Args:
        folder: made when something is encoded.
        images: what is encoded.
        lineup: the encoders.
        settings: precision, batch size, workers.
        crew: the processes that share the work.
    """

    def __init__(
        self, folder: Path, images: ComparedImages, lineup: Lineup, settings: CompareSettings, crew: Crew
    ) -> None:
        self.folder, self.images, self.lineup = folder, images, lineup
        self.settings, self.crew = settings, crew

    def key(self, subject: Subject) -> str:
        """Hash (16 hex digits) of everything that the subject's features depend on."""
        if subject.contender.kind == "features":
            return file_key(Path(subject.contender.source))
        fingerprint = self.images.at(subject.resolution, subject.crop).fingerprint()
        meta = self.lineup.meta(subject, self._precision(subject))
        facts = [subject.model_hash, dict(meta.preprocessing), fingerprint, self._shard_size]
        return digest(facts)

    def path(self, subject: Subject) -> Path:
        """Where its features are: a folder of shards, or the file that was named."""
        given = subject.contender.kind == "features"
        return Path(subject.contender.source) if given else self.folder / self.key(subject)

    def has(self, subject: Subject) -> bool:
        """Whether they are complete."""
        return subject.contender.kind == "features" or (self.path(subject) / MANIFEST).is_file()

    def encode(self, subject: Subject) -> None:
        """This process's share of what is missing.

        Raises:
            DataError: when no image is readable.
            FeatureFileError: when the folder cannot be written.
            ModelError: for features that are not finite.
        """
        if self.has(subject):
            return
        encode, meta = self.lineup.encode(subject, self.settings.precision, self.crew.reporter)
        encode_sharded(
            encode,
            self.images.at(subject.resolution, subject.crop),
            self.path(subject),
            meta=meta,
            shard_size=self._shard_size,
            team=self.crew.team,
            reporter=self.crew.reporter,
            batch_size=self.settings.batch_size,
            workers=self.settings.workers,
            device=self.crew.device if subject.contender.kind in ("model", "untrained") else None,
        )

    def read(self, subject: Subject) -> Features:
        """Its features.

        Raises:
            FeatureFileError: when they are missing or damaged.
        """
        return read_features(self.path(subject))

    @property
    def _shard_size(self) -> int:
        """Independent of the number of processes, so that a restart may have another."""
        return min(DEFAULT_SHARD, max(SMALL_SHARD, -(-len(self.images.any) // SHARES)))

    def _precision(self, subject: Subject) -> str:
        if subject.contender.kind in ("pixels", "pca"):
            return "fp32"
        return resolve_precision(self.settings.precision, self.crew.device)


def rows_by_name(subject: Subject, features: Features, names: list[str]) -> tuple[Rows, Rows]:
    """Pairs of an image and its row: indices into `names`, and into the features.

    Raises:
        FeatureFileError: for features without names that are not as many as the images, or that belong to others.
    """
    meta, source = features.meta, subject.contender.source
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
        some = ", ".join(map(repr, names[:2]))
        raise FeatureFileError(
            f"The features of {subject.name} are of other images: {meta.files[0]!r} and so on, the data has {some}.",
            remedy="Encode the images that are compared.",
        )
    return wanted, rows


def file_key(path: Path) -> str:
    """Hash of a feature file's bytes, or of a folder's manifest (which holds the checksums of its shards)."""
    target = path / MANIFEST if path.is_dir() else path
    hasher = hashlib.sha256()
    try:
        with target.open("rb") as file:
            while block := file.read(2**20):
                hasher.update(block)
        sidecar = target.with_suffix(".json")
        if not path.is_dir() and sidecar.is_file():
            hasher.update(sidecar.read_bytes())
    except OSError as error:
        raise FeatureFileError(f"Cannot read {target} ({error}).", remedy="Check its permissions.") from error
    return hasher.hexdigest()[:16]
