"""The writing side of a folder of feature shards: units of work that several processes share without talking.

Unit i is images [i * shard_size, (i + 1) * shard_size) and belongs to process i mod `world`. A unit that is done has
its shard, the shard's sidecar and, last, a record in `units/`, each renamed into place. Whoever finds all records
writes the manifest. A process that dies leaves the units of the others alone; a restart, with any number of processes,
does what has no record. The layout is that of `diticli.features.manifest`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from diticli._version import __version__
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.features.manifest import MANIFEST, SHARD_SUFFIXES, FeatureMeta, Manifest, Shard, read_manifest
from diticli.files import refuse_links, sha256_of, write_bytes
from diticli.reading import parse_json, read_regular

RECORDS = "units"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """Record of a finished unit of work.

    Attributes:
        identity: hash of everything its rows depend on.
        dim: d, width of its rows, 0 without any.
        shard: what it became.
        mtimes: modification times of shard and sidecar in ns: an untouched file need not be read again.
    """

    identity: str
    dim: int
    shard: Shard
    mtimes: tuple[int, int]

    @classmethod
    def from_files(cls, shard_path: Path, *, identity: str, images: int, rows: int, dim: int) -> UnitRecord:
        """The record of a shard and a sidecar that are in place; without rows of a sidecar alone.

        Raises:
            OSError: when they cannot be read.
        """
        sidecar = shard_path.with_suffix(".json")
        status = shard_path.stat() if rows else None
        shard = Shard(
            file=shard_path.name,
            images=images,
            rows=rows,
            bytes=status.st_size if status else 0,
            sha256=sha256_of(shard_path) if rows else "",
            sidecar_sha256=sha256_of(sidecar),
        )
        mtimes = (status.st_mtime_ns if status else 0, sidecar.stat().st_mtime_ns)
        return cls(identity=identity, dim=dim, shard=shard, mtimes=mtimes)

    @classmethod
    def read(cls, path: Path) -> UnitRecord | None:
        """A record from its file; None when it is missing or damaged."""
        try:
            data = parse_json(read_regular(path))
            shard_time, sidecar_time = map(int, data["mtimes"])
            return cls(
                identity=str(data["identity"]),
                dim=int(data["dim"]),
                shard=Shard.from_dict(data["shard"]),
                mtimes=(shard_time, sidecar_time),
            )
        except _DAMAGE:
            return None

    def to_json(self) -> str:
        """JSON text, read back by `read`."""
        return json.dumps(asdict(self))

    def still_holds(self, shard_path: Path) -> bool:
        """Whether the files are those of the record: by size and modification time, else by checksum."""
        sidecar = shard_path.with_suffix(".json")
        try:
            if sidecar.stat().st_mtime_ns != self.mtimes[1] and sha256_of(sidecar) != self.shard.sidecar_sha256:
                return False
            if not self.shard.rows:
                return True
            status = shard_path.stat()
            same_time = status.st_mtime_ns == self.mtimes[0]
            return status.st_size == self.shard.bytes and (same_time or sha256_of(shard_path) == self.shard.sha256)
        except OSError:
            return False


class ShardFolder:
    """Units of one folder.

    Args:
        folder: of the shards; made when missing.
        identity: hash of everything the rows depend on, the shard size and the format included.
        images: N, inputs of all units.
        shard_size: images of each unit but the last.
        suffix: ".npy" or ".parquet".

    Attributes:
        count: number of units.

    Raises:
        FeatureFileError: an unknown suffix, or a folder that cannot be made. Every method may raise it.
    """

    def __init__(self, folder: Path, *, identity: str, images: int, shard_size: int, suffix: str = ".npy") -> None:
        if suffix not in SHARD_SUFFIXES:
            raise FeatureFileError(f"Shards cannot be {suffix!r}.", remedy=f"Use {' or '.join(SHARD_SUFFIXES)}.")
        if shard_size < 1:
            raise FeatureFileError(f"Shards of {shard_size} images are none.", remedy="Use at least 1.")
        self.folder, self._identity, self._suffix = Path(folder), identity, suffix
        self._images, self._size = images, shard_size
        self.count = -(-images // shard_size)

    def images(self, unit: int) -> range:
        """Indices of a unit's images."""
        return range(unit * self._size, min((unit + 1) * self._size, self._images))

    def path(self, unit: int) -> Path:
        """Where the unit's shard goes."""
        return self.folder / f"{unit:06d}{self._suffix}"

    def claim(self, rank: int, world: int, *, resume: bool = True) -> list[int]:
        """This process's units that are still to be done.

        Units with a record are checked: size and modification time of the shard as recorded, or else its checksum.
        What does not agree is done again.

        Args:
            rank: of this process.
            world: number of processes.
            resume: False does all units again, and lets go of those of another model or other images.

        Raises:
            FeatureFileError: when the folder holds something else, or units of another identity.
        """
        with self._file_errors():
            self._make_folder()
            if resume:
                self._refuse_others()
            else:
                (self.folder / MANIFEST).unlink(missing_ok=True)
                self._forget_all(rank, world)
            todo = [unit for unit in range(rank, self.count, world) if not self._is_done(unit)]
            if todo:
                (self.folder / MANIFEST).unlink(missing_ok=True)
            return todo

    def finish(self, unit: int, *, rows: int, dim: int, skipped: Sequence[Skipped]) -> None:
        """Record that the shard and the sidecar of a unit are in place; without rows it gets a sidecar alone here."""
        path = self.path(unit)
        with self._file_errors():
            if not rows:
                path.unlink(missing_ok=True)
                empty = FeatureMeta(files=(), skipped=tuple(skipped))
                write_bytes(path.with_suffix(".json"), empty.to_json().encode())
            images = len(self.images(unit))
            record = UnitRecord.from_files(path, identity=self._identity, images=images, rows=rows, dim=dim)
            write_bytes(self._record_path(unit), record.to_json().encode())

    def missing(self) -> list[int]:
        """Units without a record."""
        return [unit for unit in range(self.count) if self._record(unit) is None]

    def merge(self, meta: FeatureMeta) -> Manifest | None:
        """The manifest of all units, put in place; None while some are missing.

        Processes may merge at the same time: each writes the same shards, whole.

        Args:
            meta: of all shards; its names and skipped images are left out, date and version filled in.

        Raises:
            FeatureFileError: when no unit has a row, or shards are of different widths.
        """
        records = [self._record(unit) for unit in range(self.count)]
        found = [record for record in records if record is not None]
        if len(found) < self.count:
            return None
        widths = {record.dim for record in found if record.shard.rows}
        if len(widths) != 1:
            what = f"rows of {sorted(widths)} values" if widths else "no rows"
            raise FeatureFileError(
                f"The shards of {self.folder} hold {what}.", remedy="Encode readable images by one model."
            )
        manifest = Manifest(
            identity=self._identity,
            dim=widths.pop(),
            shard_size=self._size,
            meta=replace(meta, created=datetime.now(UTC).isoformat(timespec="seconds"), version=__version__),
            shards=tuple(record.shard for record in found),
        )
        if self._merged() != manifest.shards:
            with self._file_errors():
                write_bytes(self.folder / MANIFEST, manifest.to_json().encode())
        return manifest

    def _merged(self) -> tuple[Shard, ...] | None:
        try:
            manifest = read_manifest(self.folder)
        except FeatureFileError:
            return None
        return manifest.shards if manifest.identity == self._identity else None

    def _make_folder(self) -> None:
        refuse_links(self.folder, [RECORDS])
        records = self.folder / RECORDS
        if not records.is_dir() and self.folder.is_dir():
            others = sorted(entry.name for entry in self.folder.iterdir() if entry.name != RECORDS)
            if others:
                raise FeatureFileError(
                    f"{self.folder} is not empty: it holds {others[0]!r}.", remedy="Name a new folder for the shards."
                )
        records.mkdir(parents=True, exist_ok=True)

    def _refuse_others(self) -> None:
        for path in self._record_files():
            record = UnitRecord.read(path)
            if record is not None and record.identity != self._identity:
                raise FeatureFileError(
                    f"{self.folder} holds features of another model, other images or other settings.",
                    remedy="Name another folder, or start again with --no-resume.",
                )

    def _forget_all(self, rank: int, world: int) -> None:
        for path in self._record_files():
            if int(path.stem) % world == rank:
                path.unlink(missing_ok=True)
                for suffix in (*SHARD_SUFFIXES, ".json"):
                    (self.folder / path.with_suffix(suffix).name).unlink(missing_ok=True)

    def _record_files(self) -> Iterator[Path]:
        return (path for path in (self.folder / RECORDS).glob("*.json") if path.stem.isdecimal())

    def _is_done(self, unit: int) -> bool:
        record = self._record(unit)
        if record is not None and record.still_holds(self.path(unit)):
            return True
        self._record_path(unit).unlink(missing_ok=True)
        return False

    def _record(self, unit: int) -> UnitRecord | None:
        """The record of a unit of this identity; None without one."""
        record = UnitRecord.read(self._record_path(unit))
        if record is None or record.identity != self._identity:
            return None
        shard = record.shard
        return record if (shard.file, shard.images) == (self.path(unit).name, len(self.images(unit))) else None

    def _record_path(self, unit: int) -> Path:
        return self.folder / RECORDS / f"{unit:06d}.json"

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FeatureFileError(
                f"Cannot write {self.folder} ({error.strerror or error}).",
                remedy="Make room or choose another place, then run the same command again: done units stay.",
            ) from error
