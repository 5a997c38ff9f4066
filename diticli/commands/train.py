"""`diti train`: settings from a preset and options, then one call of the core."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.commands import train_options as o
from diticli.commands.console import emit_json, reporter, say
from diticli.commands.failure import keeps
from diticli.commands.options import JsonOption
from diticli.config_groups import MODULAR, parse_value_range
from diticli.data.faces_word import is_faces
from diticli.errors import ConfigError
from diticli.settings import build_config, literal, read_settings
from diticli.training.advice import budget_warnings, images_notes, trained_stages

if TYPE_CHECKING:
    from diticli.config import RunConfig

TIMED_SECONDS = 1.0
"""For which each stage is timed before a run, after a first step, in batches as it will have: small ones take longer an
image."""
WORTH_TIMING = 2_000
"""Images of both stages from which on a run is timed beforehand."""

LEAST_LINES = 50
"""Of metrics.jsonl and points of TensorBoard in the shorter stage, where it has as many steps."""


def train(
    data: o.DataOption = None,
    resolution: o.ResolutionOption = None,
    crop: o.CropOption = None,
    channels: o.ChannelsOption = None,
    value_range: o.ValueRangeOption = None,
    out: o.OutOption = None,
    preset: o.PresetOption = None,
    base: o.BaseOption = None,
    chunks: o.ChunksOption = None,
    latent_dim: o.LatentDimOption = None,
    partition: o.PartitionOption = None,
    stage_ends: o.StageEndsOption = None,
    stage_dims: o.StageDimsOption = None,
    modular: o.ModularOption = False,
    visible: o.VisibleOption = None,
    gradient: o.GradientOption = None,
    weighting: o.WeightingOption = None,
    bottleneck: o.BottleneckOption = None,
    ssl: o.SslOption = None,
    ssl_weight: o.SslWeightOption = None,
    ssl_start_step: o.SslStartStepOption = None,
    ssl_only: o.SslOnlyOption = None,
    base_images: o.BaseImagesOption = None,
    images: o.ImagesOption = None,
    minutes: o.MinutesOption = None,
    batch_size: o.BatchSizeOption = None,
    lr: o.LrOption = None,
    precision: o.PrecisionOption = None,
    device: o.DeviceOption = None,
    workers: o.WorkersOption = None,
    compile: o.CompileOption = None,
    seed: o.SeedOption = None,
    config: o.ConfigOption = None,
    set_: o.SetOption = None,
    dry_run: o.DryRunOption = False,
    json_: JsonOption = False,
) -> None:
    """Train a base diffusion model (unless one is given), then modular features on top of it.

    The same command goes on where a stopped run left off, exactly. On a CPU it says first how long it will take;
    --minutes 30 makes it take as long as you have.

    Example: diti train --data ./ffhq --dry-run

    Example: diti train --data ./photos --minutes 60

    Example: diti train --data ./photos --base google/ddpm-celebahq-256 --chunks 64 --latent-dim 512

    Example: diti train --data ./photos --modular

    Example: diti train --ssl simclr --ssl-only -o runs/simclr
    """
    started = time.perf_counter()
    _check_budget(minutes, base_images, images)
    options: dict[str, Any] = {
        "data.source": data and (data if is_faces(data) else _absolute(data)),
        "data.resolution": resolution,
        "data.crop": crop,
        "data.channels": channels,
        "data.value_range": value_range and list(parse_value_range(value_range)),
        "data.workers": workers,
        "base_model": base and (_absolute(base) if Path(base).expanduser().exists() else base),
        "chunks.count": chunks,
        "chunks.latent_dim": latent_dim,
        "chunks.partition": partition,
        "chunks.stage_ends": _numbers(stage_ends, "--stage-ends"),
        "chunks.stage_dims": _numbers(stage_dims, "--stage-dims"),
        "chunks.visible": visible,
        "gradient": gradient,
        "modularity.weighting": weighting,
        "modularity.bottleneck": bottleneck,
        "ssl.method": ssl,
        "ssl.weight": ssl_weight,
        "ssl.start_step": ssl_start_step,
        "ssl.only": ssl_only,
        "base.images": base_images,
        "features.images": images,
        **_batch(batch_size),
        "base.learning_rate": lr,
        "features.learning_rate": lr,
        "precision": precision,
        "minutes": minutes,
        "device": device,
        "compile": compile,
        "seed": seed,
    }
    given = read_settings(config) if config else {}
    say("Loading PyTorch and diffusers.")
    source = data or given.get("data", {}).get("source", "faces")
    _check_assignments(set_ or (), options)
    settings = build_config(
        preset or given.get("preset") or _choose_preset(source, device, value_range),
        file=config,
        options=(MODULAR if modular else {}) | {key: value for key, value in options.items() if value is not None},
        assignments=tuple(set_ or ()),
    )
    if "log_every" not in given and not any(text.strip().startswith("log_every") for text in set_ or ()):
        steps = min(settings.base.steps, settings.features.steps)
        settings = replace(settings, log_every=min(settings.log_every, max(1, steps // LEAST_LINES)))
    target = out or Path("runs") / f"{_run_name(settings.data.source)}-{settings.preset}"
    if dry_run:
        _show_plan(settings, target, started, as_json=json_)
        return
    from diticli.training.rundir import RunDirectory

    keeps(*RunDirectory(target).trained)
    say(f"Preset {settings.preset}, run directory {target}.")
    if not settings.minutes and not (target / "config.json").exists():
        for line in (*images_notes(settings), *(f"Warning: {text}" for text in budget_warnings(settings))):
            say(line)
    _say_duration(settings, target)
    from diticli.training.run import train as run_training

    model = run_training(settings, target, reporter=reporter(), started=started)
    if json_:
        emit_json({"run": str(target), "model": str(model)})
    else:
        pictures = f" Pictures: {target / 'samples'}." if any((target / "samples").glob("*.png")) else ""
        say(f"Done: {model}.{pictures} Next: diti encode IMAGES -o feats.npy")


def _show_plan(settings: RunConfig, target: Path, started: float, *, as_json: bool) -> None:
    from diticli.commands.plan_view import show_plan
    from diticli.training.accelerator import resolve
    from diticli.training.batch_fit import fit_batches
    from diticli.training.budget import fit_to_minutes
    from diticli.training.plan import make_plan

    if settings.fit_batch:
        settings = fit_batches(resolve(settings), target, reporter=reporter())
    if settings.minutes:
        settings, _ = fit_to_minutes(resolve(settings), target, started=started, reporter=reporter())
    show_plan(make_plan(settings, reporter=reporter(), memory=True), as_json=as_json)


def _check_budget(minutes: float | None, base_images: int | None, images: int | None) -> None:
    if minutes is not None and (base_images is not None or images is not None):
        raise ConfigError(
            "--minutes plans the images of both stages, and images are given.",
            remedy="Give --minutes, or --base-images and --images.",
        )


def _check_assignments(assignments: Sequence[str], options: Mapping[str, Any]) -> None:
    """A setting has one value. What an option says of both stages, --set may say otherwise of one."""
    for assignment in assignments:
        key, _, text = (part.strip() for part in assignment.partition("="))
        said = None if key.startswith(("base.", "features.")) else options.get(key)
        if said is not None and (value := literal(text)) != said:
            raise ConfigError(f"An option says {key}={said}, and --set says {key}={value}.", remedy="Give one of them.")


def _say_duration(settings: RunConfig, target: Path) -> None:
    """On a CPU, how long a new run will take and how to make it shorter, from a few timed steps."""
    from diticli.models.device import resolve_device

    if resolve_device(settings.device).type != "cpu" or settings.minutes or "WORLD_SIZE" in os.environ:
        return
    if (target / "config.json").exists() or settings.base.images + settings.features.images < WORTH_TIMING:
        return
    from diticli.commands.plan_view import duration
    from diticli.training.plan import make_plan

    plan = make_plan(replace(settings, compile=False), seconds=TIMED_SECONDS)
    stages = " + ".join(f"{duration(stage.seconds)} for stage {stage.name}" for stage in plan.stages)
    saved = " --base MODEL saves stage 1;" * ("base" in trained_stages(settings))
    say(
        f"On this CPU that takes about {duration(plan.seconds)} ({stages}). For less: --minutes 30 plans to the time "
        f"you have;{saved} --dry-run shows the plan."
    )


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


def _batch(text: str | None) -> dict[str, int | bool | None]:
    if text == "auto":
        return {"fit_batch": True}
    if text is not None and not (text.isdecimal() and text.isascii() and 0 < int(text) < 10**9):
        raise ConfigError(f"--batch-size {text!r} is neither auto nor a number of images.", remedy="Write 128 or auto.")
    size = None if text is None else int(text)
    return {"base.batch_size": size, "features.batch_size": size}


def _choose_preset(data: str, device: str | None, value_range: str | None) -> str:
    """The CPU gets the small preset; a GPU the largest whose resolution the images reach."""
    from diticli.models.device import resolve_device

    if resolve_device(device).type == "cpu":
        return "faces32"
    if is_faces(data):
        return "faces64"
    from diticli.data.sources import open_images, typical_side

    window = None if value_range is None else parse_value_range(value_range)
    source = open_images(data, resolution=10_000, value_range=window)  # of an LMDB with several sizes, the largest
    return "ffhq128" if source.crop == "center" and typical_side(source) >= 128 else "celeba64"
