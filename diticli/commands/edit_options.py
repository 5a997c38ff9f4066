"""Options of `diti edit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.sampling.defaults import DEFAULT_STEPS

DDIM_STEPS = 100

SourcesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...",
        help="Two images; or one table of pairs (.csv, .tsv, .jsonl); or any number of images with --attribute or "
        "--reconstruct. An image is a file or faces:INDEX[:SEED].",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="The strip, a PNG; for a table the folder of all outputs. Default: edit.png, or edits.",
        show_default=False,
    ),
]
ChunksOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Chunks to edit, inclusive and zero-based: 10-20, or 0-3,8. Repeat it for more rows. Default: for pairs "
        "the quarters of all chunks, from fine to coarse; for attributes all chunks.",
        show_default=False,
    ),
]
GridOption = Annotated[
    bool, typer.Option("--grid", help="A row for every stage of the model's partition, and one for all chunks.")
]
AlphasOption = Annotated[
    str | None,
    typer.Option(
        help="How far to go from own (0) to other (1): start:stop:count, or a list 0,0.5,1. Default: 0:1:5, with "
        "--animate 0:1:9.",
        show_default=False,
    ),
]
NoiseOption = Annotated[
    str | None,
    typer.Option(
        help="Noise x_T that edits start from: keep (own, inferred; the default), slerp (towards the other's), swap, "
        "random, mean (zeros). With --reconstruct any of keep,random,mean; default: all three.",
        show_default=False,
    ),
]
AttributeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--attribute",
        help="Move along this attribute of --probe. Repeat it for more rows.",
        show_default=False,
        rich_help_panel="Attributes",
    ),
]
AmountOption = Annotated[
    str | None,
    typer.Option(
        "--amount",
        help="How far, like --alphas; negative for less of it. Default: -0.6:0.6:5, with --animate 9 steps.",
        show_default=False,
        rich_help_panel="Attributes",
    ),
]
ProbeOption = Annotated[
    Path | None,
    typer.Option(
        "--probe",
        help="Folder of `diti probe -o`. Default: probe.",
        show_default=False,
        rich_help_panel="Attributes",
    ),
]
DimsOption = Annotated[
    int | None,
    typer.Option(
        "--dims",
        min=1,
        help="Move only so many dims, those that `diti probe --mask-dims N` learned.",
        show_default=False,
        rich_help_panel="Attributes",
    ),
]
AlongOption = Annotated[
    str | None,
    typer.Option(
        "--along",
        help="pattern (how features change where the attribute does; the default), or weight: the classifier's own "
        "direction, as published, which takes more of other attributes along.",
        show_default=False,
        rich_help_panel="Attributes",
    ),
]
ReconstructOption = Annotated[
    bool, typer.Option("--reconstruct", help="Decode images from their own features, changing nothing.")
]
SolverOption = Annotated[
    str | None,
    typer.Option(help="dpm (second order; the default) or ddim.", show_default=False, rich_help_panel="Sampling"),
]
StepsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Steps of inversion and of decoding. Default: {DEFAULT_STEPS}, with ddim {DDIM_STEPS}.",
        show_default=False,
        rich_help_panel="Sampling",
    ),
]
InvertStepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of inversion alone.", show_default=False, rich_help_panel="Sampling"),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="fp32, bf16, or auto: bf16 where the hardware computes in it. Default: auto, with ddim fp32.",
        show_default=False,
        rich_help_panel="Sampling",
    ),
]
CompileOption = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the step with torch.compile. Default: for large tables on a GPU.",
        show_default=False,
        rich_help_panel="Sampling",
    ),
]
DecodeStepsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of decoding alone.", show_default=False, rich_help_panel="Sampling"),
]
OfficialOption = Annotated[
    bool,
    typer.Option(
        "--official",
        help="Sample as the official code does: ddim, 1000 steps of inversion and 100 of decoding unless given, noise "
        "slerp unless given, the shift in the score form, the estimated image clamped in both directions.",
        rich_help_panel="Sampling",
    ),
]
DifferenceOption = Annotated[
    bool,
    typer.Option("--difference", help="Add maps of what changed, magnified.", rich_help_panel="Output"),
]
SeparateOption = Annotated[
    Path | None,
    typer.Option(help="Also write single images into this folder.", show_default=False, rich_help_panel="Output"),
]
AnimateOption = Annotated[
    Path | None,
    typer.Option(
        help="Also write a .webp or .gif that runs through the strengths forth and back. For a table: webp or gif.",
        show_default=False,
        rich_help_panel="Output",
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option("--dry-run", help="For a table: say what is left to do and how long it takes, and stop."),
]
