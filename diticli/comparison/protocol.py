"""The protocol of a comparison: the images, labels and split that all entries share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from diticli.comparison.encoding import rows_by_name
from diticli.comparison.entries import Entry
from diticli.comparison.images import ComparedImages
from diticli.data.labels import LabelColumn
from diticli.data.splits import Split, given_split, split_rows
from diticli.errors import FeatureFileError
from diticli.features.read import Features
from diticli.probing.label_join import JoinedLabels, identity_note, join_labels
from diticli.probing.report import few_rows
from diticli.types import Rows


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The M labelled images that every entry has, in the order of the data.

    Attributes:
        images: [M] indices into the names of the data.
        columns: labels of these.
        groups: [M] group of each, or None.
        split: of 0..M-1; the same rows train, choose and are scored for all.
        seed: of the split; None for a given one.
        rows: [M] rows of each entry's features, by name.
        counts: images of the data, labelled ones, and those that some entry lacks.
        notes: how the label file was understood where that is not plain, in words.
    """

    images: Rows
    columns: Mapping[str, LabelColumn]
    groups: tuple[str, ...] | None
    split: Split
    seed: int | None
    rows: Mapping[str, Rows]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of labels, groups and split."""
        hasher = hashlib.sha256()
        for part in vars(self.split).values():
            hasher.update(np.ascontiguousarray(part).tobytes())
        for name, column in self.columns.items():
            values = np.asarray(column.values)
            hasher.update(f"{name}\0{column.kind}\0".encode(errors="surrogatepass"))
            hasher.update("\0".join(values).encode() if column.kind == "category" else values.tobytes())
        hasher.update("\0".join(self.groups or ()).encode(errors="surrogatepass"))
        return hasher.hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the rows."""
        kept = None if self.groups is None else len(set(self.groups))
        return {**self.counts, "split": self.split.sizes, "split_seed": self.seed, "groups": kept}

    def describe(self) -> str:
        """One line for the user."""
        sizes = " / ".join(f"{size:,}" for size in self.split.sizes.values())
        kept = f", {len(set(self.groups)):,} groups kept together" if self.groups is not None else ""
        origin = "as given" if self.seed is None else f"seed {self.seed}"
        lost = self.counts["left_out"]
        missing = f" {lost:,} labelled images are left out, since not every entry has them." if lost else ""
        few = few_rows(len(self.split.test))
        return f"Train / val / test: {sizes} images, {origin}{kept}, the same for all.{missing}{few}"


def make_protocol(
    features: Mapping[str, Features], entries: Mapping[str, Entry], images: ComparedImages, seed: int
) -> Protocol:
    """Match features, labels, groups and split by file name, and draw the split once.

    Args:
        features: of the entries that have some, by name.
        entries: these entries.
        images: the data and its labels.
        seed: of the split.

    Raises:
        FeatureFileError: when entries share no image.
        LabelError: when no shared image has a label, or the split cannot be drawn.
    """
    names = images.names if images.settings.data else _names_of_first(features)
    pairs = {name: rows_by_name(entries[name], found, names) for name, found in features.items()}
    common = reduce(np.intersect1d, (wanted for wanted, _ in pairs.values()))
    if not len(common):
        raise FeatureFileError("The entries share no image.", remedy="Encode the same images by all of them.")
    table = images.labels(names)
    shared = [names[i] for i in common]
    joined = join_labels(shared, table, images.groups(names), images.parts(names))
    chosen = common[joined.rows]
    drawn = joined.parts is None
    split = (
        split_rows(len(chosen), groups=joined.groups, seed=seed)
        if joined.parts is None
        else given_split(joined.parts, groups=joined.groups)
    )
    lost = len(table.match(names)[0]) - len(table.match(shared)[0])
    return Protocol(
        images=chosen,
        columns=joined.columns,
        groups=joined.groups,
        split=split,
        seed=seed if drawn else None,
        rows={name: rows[np.searchsorted(wanted, chosen)] for name, (wanted, rows) in pairs.items()},
        counts={"images": len(names), "rows": len(chosen), "left_out": lost},
        notes=(*joined.notes, *_identity_notes([names[i] for i in chosen], joined, drawn=drawn)),
    )


def _identity_notes(files: list[str], joined: JoinedLabels, *, drawn: bool) -> list[str]:
    note = identity_note(files, list(joined.columns)) if drawn and joined.groups is None else ""
    return [note] if note else []


def _names_of_first(features: Mapping[str, Features]) -> list[str]:
    for name, found in features.items():
        if found.meta is None:
            raise FeatureFileError(
                f"The features of {name} do not say which file each row is.",
                remedy='Give --data, or write {"files": [...]} with one name per row into a JSON beside them.',
            )
    return list(next(iter(features.values())).meta.files)  # type: ignore[union-attr]
