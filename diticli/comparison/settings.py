"""Settings of a comparison: data, protocol, and what the report shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diticli.config import Precision
from diticli.config_groups import ValueRange
from diticli.data.faces_word import is_faces
from diticli.errors import ConfigError

DEFAULT_DATA = "faces:4000:1"
"""Built-in faces of the seed that `diti demo` probes with: training draws those of seed 0."""
FOLDER_LABELS = "folder"
"""What `--labels` says where the folders are the labels."""
QUARTERS = 4
"""Parts of the chunks whose exchange is shown and measured."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """One protocol for all entries.

    Attributes:
        data: images as `diticli.data.sources.open_images` takes them; empty when all entries are feature files,
            whose names of rows then say which labels belong to them.
        labels: a label file, "folder", or None for the truth of the built-in faces.
        groups: file of groups (identities) that no part of the split shares.
        split: file of a given split.
        value_range: black and white of pictures of more than 8 bits; None: as each model was trained, else found.
        seed: of the split, of untrained encoders, of bootstraps.
        precision: of encoding.
        batch_size: images encoded together.
        workers: decoding threads, see `iter_decoded`.
        pixel_side: larger images are reduced to so many pixels a side before raw pixels or PCA see them.
        metrics: also measure disentanglement, what each chunk knows, and how the features vary.
        benchmark: seeds of `diticli.comparison.benchmark`, which replaces the disentanglement of one seed; 0 for none.
        shown: pairs of test images whose reconstructions and exchanges the report shows; 0 for none.
        edits: also measure transfer rates of exchanged chunks (minutes), see `diticli.evaluation.evaluate`.
        pairs: of images that `edits` exchanges.
        learn: images that the attribute classifier behind `edits` learns from.
        epochs: its passes over them.
        steps: of inversion and of decoding.
        force: judge `edits` also where reconstructions are too bad for it.

    Raises:
        ConfigError: for values that are impossible or contradict each other.
    """

    data: tuple[str, ...] = (DEFAULT_DATA,)
    labels: str | None = None
    groups: Path | None = None
    split: Path | None = None
    value_range: ValueRange | None = None
    seed: int = 0
    precision: Precision = "auto"
    batch_size: int = 128
    workers: int | None = None
    pixel_side: int = 32
    metrics: bool = True
    benchmark: int = 0
    shown: int = 2
    edits: bool = False
    pairs: int = 64
    learn: int = 12_000
    epochs: int = 4
    steps: int = 20
    force: bool = False

    def __post_init__(self) -> None:
        limits = {"pixel_side": 1, "shown": 0, "pairs": 4, "learn": 200, "epochs": 1, "steps": 2, "benchmark": 0}
        for name, least in (limits | {"seed": 0, "batch_size": 1}).items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{name} must be at least {least}, got {getattr(self, name)}.", remedy=f"Give {least} or more."
                )
        if not self.data and self.labels is None:
            raise ConfigError("Neither images nor labels are named.", remedy="Give --data, --labels, or both.")
        if self.labels is None and not self.built_in:
            raise ConfigError(
                f"The labels of {self.data[0]} are missing.",
                remedy="Give --labels FILE, or --labels folder where folders are categories.",
            )

        if self.edits and (self.labels == FOLDER_LABELS or len(self.data) != 1):
            raise ConfigError(
                "Exchanges cannot be judged by folders as categories, or without one source of images.",
                remedy="Leave --edits out, or give one --data, with a file of --labels unless it is faces.",
            )

    @property
    def built_in(self) -> bool:
        """Whether the images are the built-in faces, whose truth is known."""
        return len(self.data) == 1 and is_faces(self.data[0])
