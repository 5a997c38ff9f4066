"""A training step and a sampler's step on a GPU, counted without one: launches, bytes, memory, the largest batch.

    python -m benchmarks step --out benchmarks/results/NAME.json

From the operators that run on the meta device (`benchmarks.on_meta`), each by itself, as in a run that is not compiled.
Memory is a line through the peaks of 2 and 4 images. To it come weights, gradients, Adam's moments, the moving average,
the frozen base, and 1 GB for CUDA's context and libraries; a tenth of the memory is left for workspaces and
fragments.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.facts import collect, write
from benchmarks.on_meta import activation_bytes, objectives, sampler_launches, step_launches
from benchmarks.table import render
from diticli.settings import build_config
from diticli.training.objectives import Objective

PRESETS = ("celeba64", "ffhq128")
GPUS = (24, 40, 80, 141)
CONTEXT, USABLE = 1e9, 0.9
BATCH = 128


def memory_row(objective: Objective, config: Any, precision: str) -> dict[str, Any]:
    """Bytes of a step at `BATCH` images, and the largest batch of each of `GPUS`."""
    trained = sum(p.numel() for p in objective.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in objective.parameters() if not p.requires_grad)
    none, each = activation_bytes(objective, config, precision)
    # Weight, gradient, two moments and the average in float32; the gradients are part of what was counted.
    fixed = 4 * 4 * trained + frozen + none + CONTEXT
    return {
        "fixed_bytes": round(fixed),
        "bytes_per_image": round(each),
        "bytes": round(fixed + BATCH * each),
        "largest_batch": {str(gpu): max(0, int((USABLE * gpu * 1e9 - fixed) / each)) for gpu in GPUS},
    }


def measure(preset: str) -> list[dict[str, Any]]:
    """Rows of both stages and of a sampler's step, in both precisions, with and without the fused kernels."""
    rows = []
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        config = build_config(preset, options={"precision": precision})
        for stage, objective in objectives(config).items():
            counts = {k: step_launches(objective, config, k, precision, 2).total for k in ("reference", "triton")}
            row = {"preset": preset, "what": f"stage {stage}", "precision": precision, "launches": counts}
            rows.append(row | memory_row(objective, config, precision))
        counts = {k: sampler_launches(config, k, dtype, 2).total for k in ("reference", "triton")}
        rows.append({"preset": preset, "what": "sampler's step", "precision": precision, "launches": counts})
    return rows


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
