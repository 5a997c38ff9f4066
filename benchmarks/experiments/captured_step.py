"""What a training step on a GPU takes as one CUDA graph, as `diti train` runs it, and without.

    python -m benchmarks.experiments.captured_step --cases celeba64:128 small64:64

Stage 2, by PyTorch's norms and by Triton's, without a graph (DITI_CUDA_GRAPH=0) and with: milliseconds of a step, and
of its losses and gradients alone. A graph is compared with the step as it is before it runs; where it is not taken,
the reason is in the last column.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, pictures, random_pipeline
from benchmarks.facts import collect, write
from benchmarks.our_side import Heard, OurTrainer
from benchmarks.table import render
from diticli.training.captured import EAGER_STEPS
from diticli.training.stage import draw_inputs

STEPS = 10
HEADERS = ["case", "norms", "graph", "step, ms", "its gradients, ms", "peak GiB", "said"]


def milliseconds(run: Callable[[], object]) -> float:
    """Of one call, as the mean of some."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(STEPS):
        run()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / STEPS * 1e3


def measure(name: str, batch: int, kernels: str, graph: str) -> dict[str, Any]:
    """One case by one kind of norms, with a graph ("1") or without ("0")."""
    case, device, heard = CASES[name], torch.device("cuda"), Heard()
    images = pictures(case, batch)
    ours = OurTrainer(
        case,
        random_pipeline(case),
        images,
        device,
        batch_size=batch,
        precision="bf16",
        environment={"DITI_KERNELS": kernels, "DITI_CUDA_GRAPH": graph},
        reporter=heard,
    )
    trainer, images = ours.trainer, images.to(device)
    trainer.gradients.eager_steps = EAGER_STEPS

    def gradients() -> None:
        trainer.gradients(given)
        trainer.optimizer.zero_grad(set_to_none=True)

    for _ in range(EAGER_STEPS + 1):
        ours.step(images)
    torch.cuda.reset_peak_memory_stats()
    with ours.active():
        given = draw_inputs(trainer.stage, ours.noise, None, 0, images)
        step, alone = milliseconds(lambda: ours.step(images)), milliseconds(gradients)
    found = {
        "case": name,
        "batch": batch,
        "kernels": kernels,
        "graph": graph == "1" and trainer.gradients.captures,
        "step_ms": step,
        "gradients_ms": alone,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "warnings": heard.warnings,
    }
    trainer.release()
    return found


def main() -> None:
    """Measure, print a table, write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["celeba64:128", "small64:64"], metavar="CASE:BATCH")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    rows = []
    for text in options.cases:
        name, _, batch = text.partition(":")
        for kernels in ("reference", "triton"):
            for graph in ("0", "1"):
                rows.append(measure(name, int(batch), kernels, graph))
                torch.cuda.empty_cache()
    print(render(HEADERS, [_row(row) for row in rows]))
    if options.out is not None:
        facts = collect(torch.device("cuda"))
        write(options.out, {"what": "a training step with and without a CUDA graph", **facts, "rows": rows})


def _row(row: dict[str, Any]) -> list[Any]:
    case, graph = f"{row['case']}:{row['batch']}", "yes" if row["graph"] else "no"
    return [
        case,
        row["kernels"],
        graph,
        row["step_ms"],
        row["gradients_ms"],
        row["peak_gib"],
        "; ".join(row["warnings"]),
    ]


if __name__ == "__main__":
    main()
