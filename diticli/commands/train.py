"""`diti train`: settings from a preset and options, then one call of the core."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diticli.commands.console import emit_json, reporter, say, show_table
from diticli.commands.options import CropChoice, JsonOption
from diticli.config import RunConfig
from diticli.errors import ConfigError
from diticli.settings import build_config, preset_names

if TYPE_CHECKING:
    from diticli.training.plan import Plan


class Partition(StrEnum):
    """Choices of --partition."""

    uniform = "uniform"
    staged = "staged"


class Gradient(StrEnum):
    """Choices of --gradient."""

    cumulative = "cumulative"
    detached = "detached"
    dual = "dual"


class Precision(StrEnum):
    """Choices of --precision."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class SSL(StrEnum):
    """Choices of --ssl."""

    none = "none"
    simclr = "simclr"
    simsiam = "simsiam"


DATA, MODEL, BASELINES = "Data", "Model", "Self-supervised baselines"
BUDGET, MACHINE, CONTROL = "Budget", "Machine", "Run"


def train(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            help="Image folder (recursive), .tar files, an LMDB, or faces[:COUNT[:SEED]] for the built-in data.",
            rich_help_panel=DATA,
        ),
    ] = "faces",
    resolution: Annotated[
        int | None,
        typer.Option(help="Image height and width in pixels.", show_default=False, rich_help_panel=DATA),
    ] = None,
    crop: Annotated[
        CropChoice | None,
        typer.Option(
            help="Square of each picture: center, or celeba, the 128 px that the literature cuts from CelebA's "
            "178x218. Default: celeba for CelebA's LMDB, else center.",
            show_default=False,
            rich_help_panel=DATA,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run directory. Default: runs/DATA-PRESET.",
            show_default=False,
            rich_help_panel=CONTROL,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"One of {', '.join(preset_names())}. Default: by device and image size.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of a pre-trained unconditional UNet2DModel. Default: train one.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    chunks: Annotated[
        int | None,
        typer.Option(help="K, number of chunks; 1 is PDAE.", show_default=False, rich_help_panel=MODEL),
    ] = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(help="d, length of the feature vector.", show_default=False, rich_help_panel=MODEL),
    ] = None,
    partition: Annotated[
        Partition | None,
        typer.Option(
            help="Equal slices, or dimensions per stage of time-steps.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    stage_ends: Annotated[
        str | None,
        typer.Option(
            help="Staged partition: exclusive time-step ends, e.g. 50,100,300,500,1000.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    stage_dims: Annotated[
        str | None,
        typer.Option(
            help="Staged partition: dimensions per stage, e.g. 10,25,327,100,50.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    gradient: Annotated[
        Gradient | None,
        typer.Option(
            help="Which slices of the features learn at a time-step.",
            show_default=False,
            rich_help_panel=MODEL,
        ),
    ] = None,
    ssl: Annotated[
        SSL | None,
        typer.Option(
            help="Self-supervised loss of the encoder, beside the features' own.",
            show_default=False,
            rich_help_panel=BASELINES,
        ),
    ] = None,
    ssl_weight: Annotated[
        float | None,
        typer.Option(
            help="Its factor. Default: 0.01; at 0 it costs nothing.", show_default=False, rich_help_panel=BASELINES
        ),
    ] = None,
    ssl_start_step: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Steps of stage 2 that go without it. Default: 0.",
            show_default=False,
            rich_help_panel=BASELINES,
        ),
    ] = None,
    ssl_only: Annotated[
        bool | None,
        typer.Option(
            "--ssl-only",
            help="Train the encoder by it alone: no base, no shift decoder.",
            show_default=False,
            rich_help_panel=BASELINES,
        ),
    ] = None,
    base_images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 1 (the base).", show_default=False, rich_help_panel=BUDGET),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Images of stage 2 (the features).", show_default=False, rich_help_panel=BUDGET),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Global batch of both stages.", show_default=False, rich_help_panel=BUDGET),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            help="Learning rate of both stages, per 32 images of the global batch.",
            show_default=False,
            rich_help_panel=BUDGET,
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Default: bf16 where the device has it.", show_default=False, rich_help_panel=MACHINE),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="cpu or cuda. Default: cuda where there is one.", show_default=False, rich_help_panel=MACHINE
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Decoding workers. Default: one per core.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the training step with torch.compile.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of everything random.", show_default=False, rich_help_panel=CONTROL),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML or JSON file of settings, or a run's config.json.",
            show_default=False,
            rich_help_panel=CONTROL,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any setting, e.g. features.ema_decay=0.999; repeatable.",
            show_default=False,
            rich_help_panel=CONTROL,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show the plan, with an ETA from a few timed steps, and stop.",
            rich_help_panel=CONTROL,
        ),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Train a base diffusion model (unless one is given), then modular features on top of it.

    The same command goes on where a stopped run left off, exactly.

    Examples:

        diti train --data ./ffhq --dry-run

        diti train --data ./photos --base google/ddpm-celebahq-256 --chunks 64 --latent-dim 512

        diti train --ssl simclr --ssl-only -o runs/simclr
    """
    options: dict[str, Any] = {
        "data.source": data if data.split(":")[0] == "faces" else _absolute(data),
        "data.resolution": resolution,
        "data.crop": crop and crop.value,
        "data.workers": workers,
        "base_model": base and (_absolute(base) if Path(base).expanduser().exists() else base),
        "chunks.count": chunks,
        "chunks.latent_dim": latent_dim,
        "chunks.partition": partition and partition.value,
        "chunks.stage_ends": _numbers(stage_ends, "--stage-ends"),
        "chunks.stage_dims": _numbers(stage_dims, "--stage-dims"),
        "gradient": gradient and gradient.value,
        "ssl.method": ssl and ssl.value,
        "ssl.weight": ssl_weight,
        "ssl.start_step": ssl_start_step,
        "ssl.only": ssl_only,
        "base.images": base_images,
        "features.images": images,
        "base.batch_size": batch_size,
        "features.batch_size": batch_size,
        "base.learning_rate": lr,
        "features.learning_rate": lr,
        "precision": precision and precision.value,
        "device": device,
        "compile": compile,
        "seed": seed,
    }
    settings = build_config(
        preset or _preset_of_file(config) or _choose_preset(data, device),
        file=config,
        options={key: value for key, value in options.items() if value is not None},
        assignments=tuple(set_ or ()),
    )
    if dry_run:
        _show_plan(settings, as_json=json_)
        return
    target = out or Path("runs") / f"{_run_name(data)}-{settings.preset}"
    say(f"Preset {settings.preset}, run directory {target}.")
    from diticli.training.run import train as run_training

    model = run_training(settings, target, reporter=reporter())
    if json_:
        emit_json({"run": str(target), "model": str(model)})
    else:
        pictures = "" if settings.ssl.only else f" Pictures: {target / 'samples'}."
        say(f"Done: {model}.{pictures} Next: diti encode IMAGES -o feats.npy")


def _absolute(path: str) -> str:
    """A path that means the same from any folder: a run may be taken up from another one."""
    return str(Path(path).expanduser().absolute())


def _run_name(data: str) -> str:
    """The folder or file without its suffix; of a pattern, the folder it starts in."""
    path = Path(data.split(":")[0]).resolve()
    while set(path.name) & set("{}*?[") or path.name == "data.mdb":
        path = path.parent
    return path.name.removesuffix(".tar").removesuffix(".lmdb") or "images"


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a list of whole numbers.", remedy="Write 50,100,300.") from error


def _preset_of_file(config: Path | None) -> str | None:
    """The preset that a settings file names."""
    if config is None:
        return None
    from diticli.settings import read_settings

    name = read_settings(config).get("preset")
    return str(name) if name else None


def _choose_preset(data: str, device: str | None) -> str:
    """The CPU gets the small preset; a GPU the largest whose resolution the images reach."""
    from diticli.models.device import resolve_device

    if resolve_device(device).type == "cpu":
        return "faces32"
    if data.split(":")[0] == "faces":
        return "faces64"
    from diticli.data.sources import open_images, typical_side

    source = open_images(data, resolution=10_000)  # of an LMDB with several sizes, the largest
    return "ffhq128" if source.crop == "center" and typical_side(source) >= 128 else "celeba64"


def _show_plan(settings: RunConfig, *, as_json: bool) -> None:
    from dataclasses import asdict

    from diticli.training.plan import make_plan

    plan = make_plan(settings)
    if as_json:
        emit_json({**asdict(plan), "seconds": plan.seconds})
        return
    show_table(
        f"Plan: preset {plan.preset} on {plan.device} in {plan.precision}",
        ["stage", "parameters", "frozen", "images", "steps", "batch", "learning rate", "images/s", "time"],
        [
            [
                stage.name,
                f"{stage.trained_parameters:,}",
                f"{stage.frozen_parameters:,}",
                f"{stage.images:,}",
                f"{stage.steps:,}",
                f"{stage.batch_size}",
                f"{stage.learning_rate:g}",
                f"{stage.images_per_second:,.0f}",
                _duration(stage.seconds),
            ]
            for stage in plan.stages
        ],
    )
    _print_summary(plan)


def _print_summary(plan: Plan) -> None:
    typer.echo(f"Data: {plan.data}, {plan.data_images:,} images at {plan.resolution} px")
    beside = "" if plan.ssl == "none" else f", self-supervised loss {plan.ssl} (timed as if it had started)"
    typer.echo(f"Features: {plan.latent_dim} dims in {plan.chunks} chunks{beside}")
    typer.echo(f"Peak memory: {plan.peak_memory_mb:,.0f} MB seen in the timed steps (+ the images held in memory)")
    typer.echo(f"Total: about {_duration(plan.seconds)}, without reading images and drawing samples")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d {hours}h" if days else f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
