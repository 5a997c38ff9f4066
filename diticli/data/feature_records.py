"""Records of units that are done: one small JSON each, written last."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from diticli.data.feature_manifest import Shard
from diticli.data.feature_shards import sha256_of

_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class UnitRecord:
    """A unit that is done.

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
    def of_files(cls, shard_path: Path, *, identity: str, images: int, rows: int, dim: int) -> UnitRecord:
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
            data = json.loads(path.read_bytes())
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
