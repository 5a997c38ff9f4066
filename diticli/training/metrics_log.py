"""`metrics.jsonl` and TensorBoard: one line per log interval, written by the main process."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from diticli.files import append_line, write_bytes
from diticli.reading import read_regular


class MetricsLogger:
    """Metrics of a run. On other processes than the main one (`active=False`) every call does nothing."""

    def __init__(self, run: Path, *, active: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self.active = active
        self._boards = run / "tensorboard"
        self._board: SummaryWriter | None = None

    def log(self, *, stage: str, step: int, **values: Any) -> None:
        """Append one line."""
        if not self.active:
            return
        line = {"stage": stage, "step": step, **values, "time": time.time()}
        append_line(self.path, json.dumps(line))
        for key in ("loss", "ssl_loss", "lr", "images_per_second"):
            if key in values and self._board is not None:
                self._board.add_scalar(f"{stage}/{key}", values[key], step)

    def show(self, stage: str, step: int, name: str, picture: Path) -> None:
        """Put a PNG into TensorBoard."""
        if self._board is not None:
            with Image.open(picture, formats=("PNG",)) as image:
                self._board.add_image(f"{stage}/{name}", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def truncate_after(self, stage: str, step: int) -> None:
        """Begin or resume `stage` after `step`: lines of later steps are dropped, as a resumed run writes them again.

        Each stage has a TensorBoard folder of its own, since TensorBoard drops later steps of a whole folder.
        """
        if not self.active:
            return
        self.close()
        self._board = SummaryWriter(str(self._boards / stage), purge_step=step + 1)
        if not self.path.exists():
            return
        kept = []
        for text in read_regular(self.path).splitlines(keepends=True):
            try:
                line = json.loads(text)
                earlier = line["stage"] != stage or line["step"] <= step
            except (ValueError, KeyError, TypeError, RecursionError):  # cut by a crash, or none of ours
                continue
            if earlier:
                kept.append(text)
        write_bytes(self.path, b"".join(kept))

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()
