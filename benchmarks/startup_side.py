"""One `diti edit` in this process, phase by phase; `benchmarks.startup` starts it. Prints JSON.

    python -m benchmarks.startup_side plain runs/demo BEGAN

Its imports are the phases, so that they stand where they are timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Phases:
    """Wall and processor seconds of one phase after the other, the first from the start of the process.

    Args:
        began: `time.monotonic()` when the process was started; Linux counts it for all processes alike.
    """

    def __init__(self, began: float) -> None:
        self.found: dict[str, tuple[float, float]] = {}
        self._last = began, 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """All since the last phase belongs to `name`."""
        yield
        now = time.monotonic(), time.process_time()
        self.found[name] = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now


def run(way: str, model: str, began: float) -> dict[str, tuple[float, float]]:
    """The phases' wall and processor seconds; `way` is "plain" or "diffusers"."""
    phases = Phases(began)
    with phases.phase("python and command line"):
        from diticli.commands import app, edit  # noqa: F401
    with phases.phase("torch"):
        import torch  # noqa: F401
    if way == "diffusers":
        with phases.phase("diffusers"):
            from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel  # noqa: F401
    with phases.phase("other modules"):
        from diticli.editing.contact_sheet import edit_strip, pair_sheet
        from diticli.editing.inputs import read_source
        from diticli.editing.pair import edit_pair
        from diticli.editing.stages import OVERVIEW_ROWS, grouped
        from diticli.models.load import load_model, load_pipeline
    with phases.phase("model"):
        pipeline = (load_pipeline if way == "diffusers" else load_model)(model)
        images = [read_source(name, pipeline.resolution, pipeline.crop) for name in ("faces:3", "faces:8")]
    with phases.phase("editing"):
        edit_strip(pair_sheet(edit_pair(pipeline, *images, grouped(pipeline.chunks, OVERVIEW_ROWS), ALPHAS)))
    return phases.found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
