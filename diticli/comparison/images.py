"""The images of a comparison, which every entry reads at its own size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.comparison.settings import FOLDER_LABELS, CompareSettings
from diticli.config_groups import Crop, ValueRange
from diticli.data.faces import FACTORS
from diticli.data.images import FaceImages, ImageSource, open_images
from diticli.data.labels import LabelColumn, LabelTable, folder_labels, read_groups, read_labels, read_parts
from diticli.errors import DataError
from diticli.progress import Reporter

if TYPE_CHECKING:
    from diticli.comparison.entries import Entry


class ComparedImages:
    """The same images in any size.

    Args:
        settings: name the images; those without any only have labels.
        value_range: black and white of pictures of more than 8 bits, where neither settings nor model have it.
        reporter: hears once what is left out of them.
    """

    def __init__(
        self,
        settings: CompareSettings,
        reporter: Reporter | None = None,
        *,
        value_range: ValueRange | None = None,
    ) -> None:
        self.settings, self._value_range = settings, value_range
        self._reporter = reporter
        self._opened: dict[tuple[int, Crop, int, ValueRange | None], ImageSource] = {}
        self._labels: dict[tuple[str, ...], LabelTable] = {}

    def read_by(self, entry: Entry) -> ImageSource:
        """The images as an entry reads them.

        Raises:
            DataError: when there are none.
        """
        return self.at(entry.resolution, entry.crop, entry.channels, entry.value_range)

    def at(self, resolution: int, crop: Crop, channels: int = 3, value_range: ValueRange | None = None) -> ImageSource:
        """The images as squares of `resolution` pixels.

        Raises:
            DataError: when there are none.
        """
        window = self.settings.value_range or value_range or self._value_range
        key = resolution, crop, channels, window
        if key not in self._opened:
            if not self.settings.data:
                raise DataError("No images were named.", remedy="Give --data.")
            self._opened[key] = open_images(
                self.settings.data,
                resolution,
                crop=crop,
                value_range=window,
                channels=channels,
                reporter=None if self._opened else self._reporter,
            )
        return self._opened[key]

    @property
    def any(self) -> ImageSource:
        """The images in some size, for what depends on none."""
        return next(iter(self._opened.values())) if self._opened else self.at(32, "center")

    @cached_property
    def names(self) -> list[str]:
        """[N] file names."""
        return [self.any.file_name(index) for index in range(len(self.any))]

    @property
    def title(self) -> str:
        """What the user called them."""
        return ", ".join(self.settings.data)

    def fingerprint(self) -> dict[str, Any] | None:
        """Identity of the images, whatever their size; None without images."""
        if not self.settings.data:
            return None
        return {key: value for key, value in self.any.fingerprint().items() if key != "resolution"}

    def labels(self, names: Sequence[str]) -> LabelTable:
        """Their labels: a file's, their folders', or the truth of the built-in faces.

        Raises:
            LabelError: for a file that cannot be read.
        """
        settings, source = self.settings, self.any if self.settings.data else None
        if settings.labels is None:
            assert isinstance(source, FaceImages)
            factors = source.factors()
            columns = {f.name: LabelColumn(f.kind, factors[:, i]) for i, f in enumerate(FACTORS)}
            return LabelTable(tuple(self.names), columns)
        if settings.labels == FOLDER_LABELS:
            return folder_labels(names)
        key = tuple(names)
        if key not in self._labels:
            self._labels[key] = read_labels(Path(str(settings.labels)), names)
        return self._labels[key]

    def groups(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """File name -> group, where given."""
        return read_groups(self.settings.groups, names) if self.settings.groups else None

    def parts(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """File name -> part of the split, where given."""
        return dict(read_parts(self.settings.split, names)) if self.settings.split else None
