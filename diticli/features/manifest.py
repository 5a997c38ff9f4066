"""The manifest of a folder of feature shards: which files, how many rows, their checksums, the model. Small JSON.

    feats/features.json     the manifest; it appears when all shards are there
    feats/000000.npy        float32 rows of the first unit of work, a feature file like any other
    feats/000000.json       its names and what it had to skip
    feats/units/000000.json one record per unit that is done, for restarts

Names of rows lie beside their shards, so the manifest of a billion images in shards of 100,000 is 3 MB.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast, get_args

from diticli.chunks import ChunkLayout, Visible
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.reading import parse_json, quoted, read_regular, shortened

MANIFEST = "features.json"
FORMAT = "diti feature shards 1"
SHARD_SUFFIXES = (".npy", ".parquet")
_SHARD_NAME = re.compile(r"[0-9]{6,}\.(npy|parquet)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RESUME = "Run the same `diti encode` again: it makes what is missing."
REMEDY = "Make the file again with `diti encode`."


@dataclass(frozen=True, kw_only=True)
class FeatureMeta:
    """What the rows and the columns of a feature file are.

    Attributes:
        files: [N] names in row order, as the image source gave them.
        chunk_ends: [K] exclusive end of each chunk's slice of columns; empty for foreign features.
        timestep_ends: [K] exclusive end of each chunk's timesteps; empty for foreign features.
        visible: which chunks a timestep sees, see `diticli.chunks.ChunkLayout`; "prefix" in files that do not say.
        model: id of the model: a folder or a Hub id.
        model_hash: hash of the weights.
        preprocessing: how a picture became the model's input, e.g. resolution and crop.
        inputs: the sizes of the pictures before that, in words.
        warnings: what makes the rows unreliable, in words.
        skipped: inputs left out of the rows.
        created: ISO 8601 date and time, UTC.
        version: version of this package that wrote the file.
    """

    files: Sequence[str]
    chunk_ends: tuple[int, ...] = ()
    timestep_ends: tuple[int, ...] = ()
    visible: Visible = "prefix"
    model: str = ""
    model_hash: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    inputs: str = ""
    warnings: Sequence[str] = ()
    skipped: Sequence[Skipped] = ()
    created: str = ""
    version: str = ""

    @property
    def layout(self) -> ChunkLayout | None:
        """The chunks of the columns, None when they are unknown.

        Raises:
            ChunkError: when the ends are no layout.
        """
        if not (self.chunk_ends and self.timestep_ends):
            return None
        return ChunkLayout(timestep_ends=self.timestep_ends, ends=self.chunk_ends, visible=self.visible)

    def to_json(self) -> str:
        """JSON text, read back by `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureMeta:
        """Inverse of `to_json`; only `files` is required and unknown keys are ignored, for foreign sidecars.

        Raises:
            FeatureFileError: when this is not such JSON.
        """
        try:
            data = parse_json(text)
            return cls(
                files=tuple(_strings(data["files"])),
                chunk_ends=_ends(data.get("chunk_ends", ())),
                timestep_ends=_ends(data.get("timestep_ends", ())),
                visible=_visible(data.get("visible", "prefix")),
                preprocessing=dict(data.get("preprocessing", {})),
                warnings=tuple(_strings(data.get("warnings", []))),
                skipped=tuple(Skipped(*_strings([s["file"], s["reason"]])) for s in data.get("skipped", ())),
                **{key: str(data.get(key, "")) for key in ("model", "model_hash", "inputs", "created", "version")},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FeatureFileError(f"The metadata is damaged ({shortened(repr(error))}).", remedy=REMEDY) from error


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard: its file, rows and checksum.

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
        identity: hash of everything the rows depend on, see `diticli.features.shard_writer`.
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
        data = parse_json(read_regular(path))
        if data["format"] != FORMAT:
            raise ValueError(f"its format is {quoted(data['format'])}, not {FORMAT!r}")
        manifest = Manifest(
            identity=str(data["identity"]),
            dim=operator.index(data["dim"]),
            shard_size=operator.index(data["shard_size"]),
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
        raise FeatureFileError(f"{path} is damaged ({shortened(error)}).", remedy=f"Remove it. {_RESUME}") from error
    return manifest


def _visible(value: Any) -> Visible:
    if value not in get_args(Visible):
        raise ValueError(f"visible is {quoted(value)}")
    return cast(Visible, value)


def _ends(values: Any) -> tuple[int, ...]:
    """Whole numbers above 0 that rise."""
    if not all(type(value) is int for value in values):
        raise TypeError(f"these ends are no whole numbers: {quoted(values)}")
    if any(low >= high for low, high in pairwise((0, *values))):
        raise ValueError(f"these ends do not rise: {quoted(values)}")
    return tuple(values)


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("a name or a reason is no text")
    return values
