"""Read features and what they are: `read_features("feats.npy")`, or `read_features("feats/")` for a folder of shards.

Formats are those of `diticli.features.formats`; `diticli.features.writer` makes the files, and
`diticli.features.shard_writer` the folders.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diticli.errors import FeatureFileError
from diticli.features.formats import DAMAGE, READERS, check_suffix, sidecar_path
from diticli.features.manifest import REMEDY, FeatureMeta
from diticli.features.rows import FeatureRows
from diticli.features.shard_reader import FeatureShards, check_values
from diticli.reading import shortened

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureMeta", "FeatureRows", "Features", "load_features", "read_features"]


@dataclass(frozen=True, kw_only=True)
class Features:
    """A feature file, or a folder of shards.

    Attributes:
        values: float32 [N, d]; a read-only memory map for `.npy`, for a folder a `ShardedRows`, which reads the
            rows that are asked for.
        meta: what they are, or None for an array without a sidecar. For a folder its `files` and `skipped` are read
            shard by shard as well.
    """

    values: FeatureRows
    meta: FeatureMeta | None

    @property
    def names(self) -> tuple[str, ...]:
        """[N] file names of the images; empty for an array without a sidecar."""
        return tuple(self.meta.files) if self.meta else ()

    def to_frame(self, labels: str | Path | None = None) -> pd.DataFrame:
        """A pandas frame: the rows by file name, columns z0, z1, ..., and those of the labels behind them.

        Args:
            labels: a label file as `diti probe --labels` reads it. Rows that it does not know are left out.

        Raises:
            FeatureFileError: without pandas, or for labels where the rows have no names.
            LabelError: for labels that cannot be read or belong to other images.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise FeatureFileError("to_frame needs pandas.", remedy="Run `pip install pandas`.") from error
        names, columns = self.names, [f"z{dim}" for dim in range(self.values.shape[1])]
        if labels is None:
            return pd.DataFrame(
                np.asarray(self.values), index=pd.Index(names, name="file") if names else None, columns=columns
            )
        if not names:
            raise FeatureFileError(
                "These features have no file names to join labels by.",
                remedy="Keep the .json of the feature file beside it.",
            )
        from diticli.data.labels import read_labels
        from diticli.probing.label_join import join_labels

        joined = join_labels(names, read_labels(Path(labels), names))
        index = pd.Index([names[row] for row in joined.rows], name="file")
        features = pd.DataFrame(np.asarray(self.values[joined.rows]), index=index, columns=columns)
        values = {name: column.values for name, column in joined.columns.items()}
        return pd.concat([features, pd.DataFrame(values, index=index)], axis=1)


def load_features(path: str | Path) -> Features:
    """`read_features`, as `diticli.load_features`."""
    return read_features(Path(path))


def read_features(path: Path) -> Features:
    """Read and check a feature file or a folder of shards.

    Of a folder only the manifest is read here; each shard is checked when its rows are first asked for, and
    `ShardedRows` raises then what this function raises for a file.

    Raises:
        FeatureFileError: when it is missing, unfinished, damaged, not finite float32 [N >= 1, d >= 1], or when its
            metadata names another number of files than it has rows.
    """
    path = Path(path)
    if path.is_dir():
        shards = FeatureShards.open(path)
        return Features(values=shards.rows, meta=shards.meta)
    if path.suffix:
        check_suffix(path)
    if not path.is_file():
        raise FeatureFileError(
            f"There is no feature file or folder {path}.", remedy=f"Run `diti encode IMAGES -o {path}`."
        )
    try:
        values, embedded = READERS[check_suffix(path)](path)
    except DAMAGE as error:
        raise FeatureFileError(f"{path} is damaged or no feature file ({shortened(error)}).", remedy=REMEDY) from error
    check_values(path, values)
    meta = _read_meta(path, embedded)
    if meta is not None and len(meta.files) != len(values):
        raise FeatureFileError(
            f"{path} has {len(values)} rows, but its metadata names {len(meta.files)} files.", remedy=REMEDY
        )
    if meta is not None and meta.chunk_ends and meta.chunk_ends[-1] != values.shape[1]:
        raise FeatureFileError(
            f"{path} has {values.shape[1]} columns, but its chunks end at {meta.chunk_ends[-1]}.",
            remedy=REMEDY,
        )
    return Features(values=values, meta=meta)


def _read_meta(path: Path, embedded: str | None) -> FeatureMeta | None:
    """Metadata inside the file goes where the file goes, so it outranks a sidecar."""
    sidecar = sidecar_path(path)
    try:
        if embedded is not None:
            return FeatureMeta.from_json(embedded)
        return FeatureMeta.from_json(sidecar.read_bytes()) if sidecar.is_file() else None
    except FeatureFileError as error:
        source = path if embedded is not None else sidecar
        raise FeatureFileError(f"{source}: {error.message}", remedy=error.remedy) from error
    except OSError as error:
        raise FeatureFileError(f"Cannot read {sidecar} ({error}).", remedy="Check its permissions.") from error
