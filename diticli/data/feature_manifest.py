"""The manifest of a folder of feature shards: which files, how many rows, their checksums, the model. Small JSON.

    feats/features.json     the manifest; it appears when all shards are there
    feats/000000.npy        float32 rows of the first unit of work, a feature file like any other
    feats/000000.json       its names and what it had to skip
    feats/units/000000.json one record per unit that is done, for restarts

Names of rows lie beside their shards, so the manifest of a billion images in shards of 100,000 is 3 MB.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diticli.data.feature_meta import FeatureMeta
from diticli.errors import FeatureFileError

MANIFEST = "features.json"
FORMAT = "diti feature shards 1"
SHARD_SUFFIXES = (".npy", ".parquet")
_SHARD_NAME = re.compile(r"[0-9]{6,}\.(npy|parquet)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESUME = "Run the same `diti encode` again: it makes what is missing."


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one unit of work became.

    Attributes:
        file: name of the shard within the folder.
        images: inputs of the unit, readable or not.
        rows: rows of the shard; 0 when no input was readable, then there is no file but its sidecar.
        bytes: size of the file.
        sha256: of the file, "" for none.
        sidecar_sha256: of the JSON beside it.
    """

    file: str
    images: int
    rows: int
    bytes: int
    sha256: str
    sidecar_sha256: str

    @property
    def sidecar(self) -> str:
        """Name of the JSON with the names of the rows."""
        return self.file.rpartition(".")[0] + ".json"

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Shard:
        """Inverse of `dataclasses.asdict`.

        Raises:
            ValueError, TypeError, KeyError: for values that no shard has; a file name can name nothing outside the
                folder.
        """
        shard = cls(**{key: data[key] for key in cls.__dataclass_fields__})
        numbers, texts = (shard.images, shard.rows, shard.bytes), (shard.file, shard.sha256, shard.sidecar_sha256)
        if not all(type(number) is int for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise TypeError("a shard's numbers are whole and its names are text")
        if not _SHARD_NAME.fullmatch(shard.file) or not 0 <= shard.rows <= shard.images or shard.bytes < 0:
            raise ValueError(f"no shard: {shard}")
        if not _SHA256.fullmatch(shard.sidecar_sha256) or (shard.rows and not _SHA256.fullmatch(shard.sha256)):
            raise ValueError(f"no checksum: {shard}")
        return shard


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All shards of a folder.

    Attributes:
        identity: hash of everything the rows depend on, see `diticli.data.feature_units`.
        dim: d, width of the rows.
        shard_size: images of each unit but the last.
        meta: as of a feature file, without names.
        shards: in row order.
    """

    identity: str
    dim: int
    shard_size: int
    meta: FeatureMeta
    shards: tuple[Shard, ...]

    @property
    def rows(self) -> int:
        """N."""
        return sum(shard.rows for shard in self.shards)

    @property
    def images(self) -> int:
        """Inputs, readable or not."""
        return sum(shard.images for shard in self.shards)

    def to_json(self) -> str:
        """JSON text, read back by `read_manifest`; one line per shard."""
        meta = {key: value for key, value in asdict(self.meta).items() if key not in ("files", "skipped")}
        head = {"format": FORMAT, "identity": self.identity, "images": self.images, "rows": self.rows}
        head |= {"dim": self.dim, "shard_size": self.shard_size, "meta": meta}
        shards = ",\n  ".join(json.dumps(asdict(shard)) for shard in self.shards)
        return f'{json.dumps(head, indent=1)[:-2]},\n "shards": [\n  {shards}\n ]\n}}\n'


def read_manifest(folder: Path) -> Manifest:
    """The manifest of `folder`.

    Raises:
        FeatureFileError: when there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
        manifest = Manifest(
            identity=str(data["identity"]),
            dim=int(data["dim"]),
            shard_size=int(data["shard_size"]),
            meta=FeatureMeta.from_json(json.dumps(dict(data["meta"]) | {"files": [], "skipped": []})),
            shards=tuple(map(Shard.from_dict, data["shards"])),
        )
        if manifest.rows < 1 or manifest.dim < 1 or manifest.rows != data["rows"]:
            raise ValueError(f"{data['rows']} rows of {manifest.dim} values in {len(manifest.shards)} shards")
    except FileNotFoundError as error:
        if (folder / "units").is_dir():
            raise FeatureFileError(f"The folder {folder} is not finished.", remedy=_RESUME) from error
        raise FeatureFileError(
            f"The folder {folder} holds no {MANIFEST}.",
            remedy="Name a feature file or a folder that `diti encode` made.",
        ) from error
    except OSError as error:
        raise FeatureFileError(f"Cannot read {path} ({error.strerror}).", remedy="Check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, FeatureFileError) as error:
        raise FeatureFileError(f"{path} is damaged ({error}).", remedy=f"Remove it. {_RESUME}") from error
    return manifest
