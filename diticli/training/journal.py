"""`metrics.jsonl` and TensorBoard: one line per log interval, written by the main process."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Metrics of a run. On other processes than the main one (`active=False`) every call does nothing."""

    def __init__(self, run: Path, *, active: bool = True) -> None:
        self.path = run / "metrics.jsonl"
        self.active = active
        self._board = SummaryWriter(str(run / "tensorboard")) if active else None

    def log(self, *, stage: str, step: int, **values: Any) -> None:
        """Append one line."""
        if self._board is None:
            return
        line = {"stage": stage, "step": step, **values, "time": time.time()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for key in ("loss", "ssl_loss", "lr", "images_per_second"):
            if key in values:
                self._board.add_scalar(f"{stage}/{key}", values[key], step)

    def picture(self, name: str, step: int, image_HWC: npt.NDArray[np.uint8]) -> None:
        """Show a picture in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image_HWC, step, dataformats="HWC")

    def forget_after(self, stage: str, step: int) -> None:
        """Drop lines of `stage` beyond `step`: a resumed run writes them again."""
        if not self.active or not self.path.exists():
            return
        kept = []
        for text in self.path.read_text().splitlines(keepends=True):
            try:
                line = json.loads(text)
            except ValueError:  # the tail of a line cut by a crash
                continue
            if line["stage"] != stage or line["step"] <= step:
                kept.append(text)
        beside = self.path.with_name(".metrics.jsonl.partial")
        beside.write_text("".join(kept))
        os.replace(beside, self.path)

    def close(self) -> None:
        """Flush TensorBoard."""
        if self._board is not None:
            self._board.close()
