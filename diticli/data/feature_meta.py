"""What a feature file says of itself: names of its rows, chunks of its columns, the model that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast, get_args

from diticli.chunks import ChunkLayout, Visible
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError

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
            data = json.loads(text)
            return cls(
                files=tuple(_strings(data["files"])),
                chunk_ends=tuple(int(end) for end in data.get("chunk_ends", ())),
                timestep_ends=tuple(int(end) for end in data.get("timestep_ends", ())),
                visible=_visible(data.get("visible", "prefix")),
                preprocessing=dict(data.get("preprocessing", {})),
                skipped=tuple(Skipped(*_strings([s["file"], s["reason"]])) for s in data.get("skipped", ())),
                **{key: str(data.get(key, "")) for key in ("model", "model_hash", "created", "version")},
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise FeatureFileError(f"The metadata is damaged ({error!r}).", remedy=REMEDY) from error


def _visible(value: Any) -> Visible:
    if value not in get_args(Visible):
        raise ValueError(f"visible is {value!r}")
    return cast(Visible, value)


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("a name or a reason is no text")
    return values
