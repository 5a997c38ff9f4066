"""A training step and a sampler's step on a GPU, counted without one: launches, waits, memory, the largest batch.

    python -m benchmarks step --out benchmarks/results/NAME.json

From the operators that run on the meta device (`benchmarks.on_meta`), each by itself, as in a run that is not compiled;
one that makes the host wait for the GPU ends the count, so that "waits" are 0 wherever there is a row.
To the largest sum of tensors that live at once, gradients among them, come weights, Adam's moments, the moving average,
the frozen base, and 1 GB for CUDA's context and libraries; a tenth of the memory is left for workspaces and fragments.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write
from benchmarks.on_meta import Launches, objectives, sampler_launches, step_bytes, step_launches
from benchmarks.table import render
from diticli.settings import build_config
from diticli.training.objectives import Objective

PRESETS = ("celeba64", "ffhq128")
GPUS = (24, 40, 80, 141)
CONTEXT, USABLE = 1e9, 0.9
BATCH = 128
MOST = 1 << 16
KERNELS = ("reference", "triton")


def memory_row(objective: Objective, config: Any, precision: str) -> dict[str, Any]:
    """Bytes of a step at `BATCH` images, and the largest batch of each of `GPUS`."""
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in objective.parameters() if not p.requires_grad)
    fixed = 4 * 4 * trained + frozen + CONTEXT  # weight, two moments and the average, in float32

    @functools.cache
    def used(count: int) -> float:
        return fixed + step_bytes(objective, config, precision, count)

    return {
        "fixed_bytes": round(fixed),
        "bytes_per_image": round(used(MOST) - used(MOST - 1)),
        "bytes": round(used(BATCH)),
        "largest_batch": {str(gpu): largest(used, USABLE * gpu * 1e9) for gpu in GPUS},
    }


def largest(used: Callable[[int], float], room: float) -> int:
    """Most images, up to `MOST`, whose bytes fit the room; 0 where not even one's do.

    More images never take less each (at few, the weights' gradients are the most at once), so that the line through
    the last two numbers reaches the room at no fewer than the answer.

    Args:
        used: bytes of so many images.
        room: bytes.
    """
    count = MOST
    while count > 0 and (taken := used(count)) > room:
        each = taken - used(count - 1) if count > 1 else taken
        count = math.floor(count - (taken - room) / each) if each else 0
    return max(0, count)


def measure(preset: str) -> list[dict[str, Any]]:
    """Rows of both stages and of a sampler's step, in both precisions, with and without the fused kernels."""
    rows = []
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        config = build_config(preset, options={"precision": precision})
        for stage, objective in objectives(config).items():
            counts = {kernels: step_launches(objective, config, kernels, precision, 2) for kernels in KERNELS}
            row = {"preset": preset, "what": f"stage {stage}", "precision": precision, **_counts(counts)}
            rows.append(row | memory_row(objective, config, precision))
        counts = {kernels: sampler_launches(config, kernels, dtype, 2) for kernels in KERNELS}
        rows.append({"preset": preset, "what": "sampler's step", "precision": precision, **_counts(counts)})
    return rows


def _counts(found: dict[str, Launches]) -> dict[str, Any]:
    """Launches and copies to the GPU by way of computing, and waits, which `Launches` refuses."""
    return {
        "launches": {kernels: launches.total for kernels, launches in found.items()},
        "uploads": {kernels: launches.uploads for kernels, launches in found.items()},
        "waits": 0,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Count, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks step", description=__doc__.partition("\n")[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args(argv)
    rows = [row for preset in options.presets for row in measure(preset)]
    headers = ["preset", "step", "precision", "launches", "fused", f"GB at {BATCH}", "MB an image"]
    table = [
        [
            *(row["preset"], row["what"], row["precision"], row["launches"]["reference"], row["launches"]["triton"]),
            row["bytes"] / 1e9 if "bytes" in row else None,
            row["bytes_per_image"] / 1e6 if "bytes" in row else None,
            *(row.get("largest_batch", {}).get(str(gpu)) for gpu in GPUS),
        ]
        for row in rows
    ]
    print(render([*headers, *(f"batch on {gpu} GB" for gpu in GPUS)], table))
    if options.out is not None:
        write(options.out, {"what": "a step, counted on the meta device", **collect(torch.device("cpu")), "rows": rows})
    return 0
