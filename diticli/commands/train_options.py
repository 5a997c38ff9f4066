"""The options of `diti train`, in the panels in which its help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.chunks import Visible
from diticli.commands.completion import presets
from diticli.config import Gradient, Precision
from diticli.config_groups import Crop, Partition, SSLMethod, Weighting
from diticli.settings import preset_names

DATA, MODEL, BASELINES = "Data", "Model", "Self-supervised baselines"
BUDGET, MACHINE, CONTROL = "Budget", "Machine", "Run"

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="Image folder (recursive), .tar files, an LMDB, or faces[:COUNT[:SEED]], the built-in data (default).",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
ResolutionOption = Annotated[
    int | None,
    typer.Option(help="Image height and width in pixels.", show_default=False, rich_help_panel=DATA),
]
CropOption = Annotated[
    Crop | None,
    typer.Option(
        help="Square of each picture: center, or celeba, the 128 px that the literature cuts from CelebA's "
        "178x218. Default: celeba for CelebA's LMDB, else center.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
ChannelsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=3,
        help="Channels of the networks' pictures: 1 for grey ones, else 3. Default: 3.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
ValueRangeOption = Annotated[
    str | None,
    typer.Option(
        metavar="LOW,HIGH",
        help="Values that are black and white in pictures of more than 8 bits; the rest is cut. Default: found from "
        "the pictures. The model keeps it.",
        show_default=False,
        rich_help_panel=DATA,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="Run directory. Default: runs/DATA-PRESET.",
        show_default=False,
        rich_help_panel=CONTROL,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        help=f"One of {', '.join(preset_names())}. Default: by device and image size.",
        autocompletion=presets,
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        help="Folder or Hub id of a pre-trained unconditional UNet2DModel. Default: train one.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
ChunksOption = Annotated[
    int | None,
    typer.Option(help="K, number of chunks; 1 is PDAE.", show_default=False, rich_help_panel=MODEL),
]
LatentDimOption = Annotated[
    int | None,
    typer.Option(help="d, length of the feature vector.", show_default=False, rich_help_panel=MODEL),
]
PartitionOption = Annotated[
    Partition | None,
    typer.Option(
        metavar="NAME",  # the choices would not fit the column
        help="How timesteps and dims are cut into chunks: uniform, both evenly; staged, with a number of dims per "
        "stage of timesteps; quadratic, finer at small timesteps, for small pictures; or auto, dims in proportion to "
        "what the base misses in each chunk's timesteps.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
StageEndsOption = Annotated[
    str | None,
    typer.Option(
        help="Staged partition: exclusive timestep ends, e.g. 50,100,300,500,1000.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
StageDimsOption = Annotated[
    str | None,
    typer.Option(
        help="Staged partition: dimensions per stage, e.g. 10,25,327,100,50.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
ModularOption = Annotated[
    bool,
    typer.Option(
        "--modular",
        help="Chunks that act where noise hides what they hold: --visible all --gradient detached --weighting gap "
        "--bottleneck 0.032 --partition uniform, each unless given. Beyond the paper; probe scores fall a little.",
        rich_help_panel=MODEL,
    ),
]
VisibleOption = Annotated[
    Visible | None,
    typer.Option(
        help="Which chunks a timestep sees: those up to its own (prefix), as published, or all (with --gradient "
        "detached), so that no chunk gains by what another one holds.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
GradientOption = Annotated[
    Gradient | None,
    typer.Option(
        help="Which slices of the features learn at a timestep.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
WeightingOption = Annotated[
    Weighting | None,
    typer.Option(
        help="Loss weight over timesteps: as published (pdae), the same for all, or one over the base's error (gap).",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
BottleneckOption = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Weight of the information in the features in the loss (as in a beta-VAE), e.g. 0.032, or 0.064 in long "
        "trainings: limits a chunk to what noise hides in its own timesteps. 0, as published: none.",
        show_default=False,
        rich_help_panel=MODEL,
    ),
]
SslOption = Annotated[
    SSLMethod | None,
    typer.Option(
        help="Self-supervised loss of the encoder, beside the features' own.",
        show_default=False,
        rich_help_panel=BASELINES,
    ),
]
SslWeightOption = Annotated[
    float | None,
    typer.Option(
        help="Its factor. Default: 0.01; at 0 it costs nothing.", show_default=False, rich_help_panel=BASELINES
    ),
]
SslStartStepOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Steps of stage 2 that go without it. Default: 0.",
        show_default=False,
        rich_help_panel=BASELINES,
    ),
]
SslOnlyOption = Annotated[
    bool | None,
    typer.Option(
        "--ssl-only",
        help="Train the encoder by it alone: no base, no shift decoder.",
        show_default=False,
        rich_help_panel=BASELINES,
    ),
]
BaseImagesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Images of stage 1 (the base).", show_default=False, rich_help_panel=BUDGET),
]
ImagesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Images of stage 2 (the features).", show_default=False, rich_help_panel=BUDGET),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        help="Time for the whole run, in place of numbers of images: both stages and their learning rates are planned "
        "from the measured speed, and anew while they train, to end within 10 % of it.",
        show_default=False,
        rich_help_panel=BUDGET,
    ),
]
BatchSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="IMAGES|auto",
        help="Global batch of both stages; auto: the largest that fits in memory, measured for each (on a CPU at most "
        "the preset's). The learning rate grows with it.",
        show_default=False,
        rich_help_panel=BUDGET,
    ),
]
LrOption = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Learning rate of both stages, per 32 images of the global batch.",
        show_default=False,
        rich_help_panel=BUDGET,
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(help="Default: bf16 where the device has it.", show_default=False, rich_help_panel=MACHINE),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="cpu or cuda. Default: cuda where there is one.", show_default=False, rich_help_panel=MACHINE),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Decoding workers. Default: one per core.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the training step with torch.compile. Default: for long runs.",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of everything random.", show_default=False, rich_help_panel=CONTROL),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        help="TOML or JSON file of settings, or a run's config.json.",
        show_default=False,
        rich_help_panel=CONTROL,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any setting, e.g. features.ema_decay=0.999; repeatable.",
        show_default=False,
        rich_help_panel=CONTROL,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the plan, with an ETA from a few timed steps, and stop.",
        rich_help_panel=CONTROL,
    ),
]
