"""`diti convert`: official checkpoints become our models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diticli.commands.options import JsonOption

if TYPE_CHECKING:
    from diticli.official.convert import Converted


def convert(
    official: Annotated[
        Path,
        typer.Argument(
            metavar="OFFICIAL",
            help="Run folder of the official DiTi or PDAE code, a pre-trained DPM's folder, or a .pt file.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Folder for the model; an earlier conversion is replaced.", show_default=False
        ),
    ],
    ddpm_config: Annotated[
        Path | None,
        typer.Option(
            help="The pre-trained DPM's config.yml. Default: where the run's config.yml says, else ddpm_config.yml "
            "or config.yml beside the checkpoint.",
            show_default=False,
        ),
    ] = None,
    ema: Annotated[bool, typer.Option("--ema/--raw", help="Averaged weights, or those of the last step.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Turn an official DiTi or PDAE run into a model, or a pre-trained DPM into a base.

    Nothing in the files is executed. A model serves --model of the other commands, a base --base of diti train.
    diti edit --official repeats the official sampler's choices.

    Example: diti convert DiTi/runs/celeba64/diti64 -o models/diti64

    Example: diti convert DiTi/pre-trained-dpms/ffhq128 -o bases/ffhq128
    """
    from diticli.commands.console import emit_json, reporter, say, show_table
    from diticli.official.convert import convert as convert_official
    from diticli.official.convert import is_converted

    if is_converted(out):
        say(f"{out} is there already and will be replaced.")
    result = convert_official(official, out, ddpm_config=ddpm_config, ema=ema, reporter=reporter())
    if as_json:
        emit_json({"out": str(out), **result.record})
        return
    show_table(str(official), ["what", "understood as"], _rows(result))
    use = f"diti train --base {out}" if "chunks" not in result.record else f"--model {out}"
    say(f"Wrote {out}; use it with {use}.")


def _rows(result: Converted) -> list[list[str]]:
    record = result.record
    step = "" if record["step"] is None else f", step {record['step']:,}"
    rows = [["kind", f"{record['kind']} ({record['weights']} weights{step})"], ["checkpoint", record["checkpoint"]]]
    if record["ddpm_config"]:
        rows.append(["base's config", record["ddpm_config"]])
    rows.append(["resolution", f"{record['resolution']} px" if record["resolution"] else "not stated"])
    if "chunks" in record:
        cut = f"{record['chunks']} over {record['timesteps']} timesteps, {record['latent_dim']} dims"
        rows.append(["chunks", f"{cut}, {record['partition']}"])
        rows.append(["gradient", record["gradient"] or "none: an encoder alone"])
    rows.append(["parameters", ", ".join(f"{name} {count:,}" for name, count in record["parameters"].items())])
    return rows
