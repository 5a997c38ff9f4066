"""What a training step on a GPU would take if losses and gradients were one CUDA graph.

    python -m benchmarks.experiments.captured_step --cases celeba64:128 small64:64

On a GPU the host takes longer to launch a step's kernels than the GPU takes to run them. Here losses and gradients of
stage 2 are captured once and replayed, by PyTorch's norms and by Triton's; the optimizer and the moving average follow
as ever. Before a replay is timed, its gradients are compared with those of the step as it is. `diti train` captures
nothing yet.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diti_kernels.sites import capturing

from benchmarks.cases import CASES, pictures, random_pipeline
from benchmarks.facts import collect, write
from benchmarks.our_side import OurTrainer
from benchmarks.table import render
from diticli.training.stage import draw_inputs
from diticli.training.step_losses import StepLosses

STEPS = 10
HEADERS = ["case", "norms", "step, ms", "its gradients", "step with replay", "its gradients", "off by", "peak GiB"]


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


def measure(name: str, batch: int, kernels: str) -> dict[str, Any]:
    """One case by one kind of norms."""
    case, device = CASES[name], torch.device("cuda")
    images = pictures(case, batch)
    ours = OurTrainer(
        case,
        random_pipeline(case),
        images,
        device,
        batch_size=batch,
        precision="bf16",
        environment={"DITI_KERNELS": kernels},
    )
    trainer, images = ours.trainer, images.to(device)

    def gradients(inputs: dict[str, torch.Tensor]) -> StepLosses:
        with trainer.accelerator.autocast():
            losses = StepLosses.coerce(trainer.module(**inputs))
        trainer.accelerator.backward(losses.total_B.mean())
        return losses

    def forget() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)

    def as_it_is() -> None:
        gradients(given)
        forget()

    with ours.active():
        given = draw_inputs(trainer.stage, ours.noise, None, 0, images)
        eager, step = milliseconds(as_it_is), milliseconds(lambda: ours.step(images))
        torch.cuda.reset_peak_memory_stats()
        gradients(given)
        wanted = [None if p.grad is None else p.grad.clone() for p in trainer.parameters]
        forget()
        static = {key: value.clone() for key, value in given.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with capturing(), torch.cuda.stream(side):
            for _ in range(3):
                gradients(static)
                forget()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with capturing(), torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            losses = gradients(static)
        found = [p.grad for p in trainer.parameters]  # replays write here
        graph.replay()
        off = max(
            ((a - b).norm() / b.norm()).item()
            for a, b in zip(found, wanted, strict=True)
            if a is not None and b is not None and b.any()
        )
        replay = milliseconds(graph.replay)

        def replayed_step() -> None:
            new = draw_inputs(trainer.stage, ours.noise, None, trainer.step, images)
            for key, value in static.items():
                value.copy_(new[key])
            graph.replay()
            for parameter, gradient in zip(trainer.parameters, found, strict=True):
                parameter.grad = gradient
            skipped = trainer._skip_unless_finite(trainer._gradient_norm())
            trainer.optimizer.step()
            forget()
            trainer.ema.step(trainer.averaged)
            trainer.step += 1
            trainer.totals.add(losses, new.get("t_B"), skipped)

        whole = milliseconds(replayed_step)
    return {
        "case": name,
        "batch": batch,
        "kernels": kernels,
        "eager_gradients_ms": eager,
        "eager_step_ms": step,
        "replayed_gradients_ms": replay,
        "step_with_replay_ms": whole,
        "largest_relative_difference": off,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


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
            rows.append(measure(name, int(batch), kernels))
            torch.cuda.empty_cache()
    print(render(HEADERS, [[f"{r['case']}:{r['batch']}", *list(r.values())[2:3], *_times(r)] for r in rows]))
    if options.out is not None:
        facts = collect(torch.device("cuda"))
        write(
            options.out,
            {"what": "a training step whose losses and gradients are one CUDA graph", **facts, "rows": rows},
        )


def _times(row: dict[str, Any]) -> list[Any]:
    keys = ("eager_step_ms", "eager_gradients_ms", "step_with_replay_ms", "replayed_gradients_ms")
    return [*(row[key] for key in keys), row["largest_relative_difference"], row["peak_gib"]]


if __name__ == "__main__":
    main()
