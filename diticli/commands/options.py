"""Options that several commands share, each spelled once."""

from __future__ import annotations

from typing import Annotated

import typer

from diticli.config_groups import Crop

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Pipeline folder, run directory, Hub id, or shipped: the model that comes with diti. Default: "
        "$DITI_MODEL, else the newest run under ./runs, else shipped.",
        show_default=False,
    ),
]


CropOption = Annotated[
    Crop | None,
    typer.Option(
        "--crop",
        help="Square of each picture: center, or celeba, the 128 px that the literature cuts from CelebA's 178x218. "
        "Default: as the model was trained.",
        show_default=False,
    ),
]
ValueRangeOption = Annotated[
    str | None,
    typer.Option(
        "--value-range",
        metavar="LOW,HIGH",
        help="Values that are black and white in pictures of more than 8 bits; the rest is cut. Default: as the model "
        "was trained, else found from the pictures.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="cpu or cuda. Default: cuda where there is one.", show_default=False),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
DEFAULT_BATCH = 128
BatchSizeOption = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Images at a time.", show_default=False)
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Decoding threads. Default: one per core.", show_default=False),
]
