"""How `diti train --dry-run` shows its plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from diticli.commands.console import emit_json, show_table
from diticli.reading import printable

if TYPE_CHECKING:
    from diticli.training.plan import RunPlan


def show_plan(plan: RunPlan, *, as_json: bool) -> None:
    """The plan as a table, or as JSON."""
    if as_json:
        emit_json({**asdict(plan), "seconds": plan.seconds})
        return
    for warning in plan.warnings:
        typer.echo(f"Warning: {warning}")
    show_table(
        f"Plan: preset {plan.preset} on {plan.device} in {plan.precision}, {_compiled(plan)}",
        ["stage", "parameters", "images", "steps", "batch", "images/s", "time"],
        [
            [
                stage.name,
                _short(stage.trained_parameters),
                f"{stage.images:,}",
                f"{stage.steps:,}",
                f"{stage.batch_size}",
                f"{stage.images_per_second:,.{0 if stage.images_per_second >= 10 else 1}f}",
                duration(stage.seconds),
            ]
            for stage in plan.stages
        ],
    )
    _print_summary(plan)


def _print_summary(plan: RunPlan) -> None:
    from diticli.training.plan import MOST_IMAGES

    typer.echo(f"Data: {printable(plan.data)}, {plan.data_images:,} images at {plan.resolution} px")
    beside = "" if plan.ssl == "none" else f", self-supervised loss {plan.ssl} (timed as if it had started)"
    typer.echo(f"Features: {plan.latent_dim} dims in {plan.chunks} chunks{beside}")
    for line in (*plan.amounts, *(stage.schedule for stage in plan.stages if stage.schedule)):
        typer.echo(line)
    typer.echo(f"Peak memory: {plan.peak_memory_mb:,.0f} MB seen in the timed steps (+ the images held in memory)")
    if largest := [(stage.name, n) for stage in plan.stages if (n := stage.largest_batch) is not None]:
        sizes = ", ".join(f"{n:,}{' or more' * (n >= MOST_IMAGES)} in stage {name}" for name, n in largest)
        typer.echo(f"Largest batch that fits in the memory that is free now: {sizes} (--batch-size auto)")
    typer.echo(f"Total: about {duration(plan.seconds)}, of it {duration(plan.reading_seconds)} to read the images")


def _short(count: int) -> str:
    """E.g. 964, 12.3 k, 1.2 M."""
    for size, unit in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _compiled(plan: RunPlan) -> str:
    if not plan.compile:
        return "not compiled"
    return f"compiled ({duration(sum(stage.compile_seconds for stage in plan.stages))}, within the times below)"


def duration(seconds: float) -> str:
    """E.g. 4m 10s, 2h 05m, 3d 4h."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
