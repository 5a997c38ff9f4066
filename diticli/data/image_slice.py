"""Consecutive images of a source, as a source of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from diticli.data.decode import Crop
from diticli.data.sources import ImageSource


class ImageSlice:
    """Images [start, stop) of `source`; see `ImageSource`.

    Args:
        source: the images.
        start: first index.
        stop: exclusive last index.
        fingerprint: of the whole source; hashing a million names once is enough.
    """

    def __init__(self, source: ImageSource, start: int, stop: int, fingerprint: Mapping[str, Any]) -> None:
        if not 0 <= start < stop <= len(source):
            raise ValueError(f"images {start} to {stop} of {len(source)}")
        self.name = source.name
        self.resolution = source.resolution
        self.crop: Crop = source.crop
        self.threads = source.threads
        self._source, self._start, self._stop = source, start, stop
        self._fingerprint = {"slice": [start, stop], "of": dict(fingerprint)}

    def __len__(self) -> int:
        """See `ImageSource`."""
        return self._stop - self._start

    def file_name(self, index: int) -> str:
        """See `ImageSource.file_name`: the name within the whole source."""
        return self._source.file_name(self._start + index)

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """See `ImageSource.load`."""
        return self._source.load(self._start + index)

    def short_side(self, index: int) -> int | None:
        """See `ImageSource.short_side`."""
        return self._source.short_side(self._start + index)

    def fingerprint(self) -> dict[str, Any]:
        """See `ImageSource.fingerprint`."""
        return self._fingerprint
