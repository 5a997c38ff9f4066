"""Options of `diti edit`: one class a sub-command, whose fields are its options; written nowhere else.

`as_command` makes a command of a class, `command_line` writes the call that repeats one.
"""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from diticli.commands.completion import attributes
from diticli.commands.options import (
    BatchSizeOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    SeedOption,
    ValueRangeOption,
)
from diticli.commands.outputs import OverwriteOption
from diticli.config import Along, Precision
from diticli.sampling.defaults import DEFAULT_STEPS, Solver

DDIM_STEPS = 100
NOT_REPEATED = ("as_json", "dry_run", "overwrite")
"""Fields that change no picture."""


def _option(*names: str, panel: str | None = None, **rules: Any) -> Any:
    return typer.Option(*names, show_default=False, rich_help_panel=panel, **rules)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """What all sub-commands share: the images, the model, how it samples."""

    kind: ClassVar[str]

    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...", help="Image files, or built-in faces: faces:INDEX[:SEED].", show_default=False
        ),
    ]
    model: ModelOption = None
    solver: Annotated[Solver | None, _option(panel="Sampling", help="dpm (second order; the default) or ddim.")] = None
    steps: Annotated[
        int | None,
        _option(
            min=1,
            panel="Sampling",
            help=f"Steps of inversion and of decoding. Default: {DEFAULT_STEPS}, with ddim {DDIM_STEPS}.",
        ),
    ] = None
    invert_steps: Annotated[int | None, _option(min=1, panel="Sampling", help="Steps of inversion alone.")] = None
    decode_steps: Annotated[int | None, _option(min=1, panel="Sampling", help="Steps of decoding alone.")] = None
    precision: Annotated[
        Precision | None,
        _option(
            panel="Sampling",
            help="fp32, bf16, or auto: bf16 where the hardware computes in it. Default: auto, with ddim fp32.",
        ),
    ] = None
    compile: Annotated[
        bool | None,
        _option(
            "--compile/--no-compile",
            panel="Sampling",
            help="Compile the step with torch.compile. Default: for large tables on a GPU.",
        ),
    ] = None
    official: Annotated[
        bool,
        _option(
            "--official",
            panel="Sampling",
            help="Sample as the official code does: ddim, 1000 steps of inversion and 100 of decoding unless given, "
            "noise slerp between two images unless given, the shift in the score form, the estimated image clamped in "
            "both directions.",
        ),
    ] = False
    difference: Annotated[
        bool, _option("--difference", panel="Output", help="Add maps of what changed, magnified.")
    ] = False
    separate: Annotated[
        Path | None, _option("--separate", panel="Output", help="Also write single images into this folder.")
    ] = None
    metadata: Annotated[
        bool,
        _option(
            "--metadata/--no-metadata",
            panel="Output",
            help="Write into every picture how it was made: the command with its files as they were given, folders and "
            "all, so that it can be repeated; model, settings.",
        ),
    ] = True
    overwrite: OverwriteOption = False
    batch_size: BatchSizeOption = None
    seed: SeedOption = 0
    value_range: ValueRangeOption = None
    device: DeviceOption = None
    as_json: JsonOption = False


@dataclass(frozen=True, kw_only=True)
class _StripOptions:
    """Options of sub-commands that write one picture."""

    out: Annotated[
        Path | None, _option("--out", "-o", help="The picture: .png, .webp (without loss) or .jpg. Default: edit.png.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class _ChunkOptions:
    """Options of sub-commands that change chunks."""

    chunks: Annotated[
        list[str] | None,
        _option(
            "--chunks",
            help="Chunks to edit, inclusive and zero-based: 10-20, or 0-3,8. Repeat it for more rows. Default: for "
            "pairs the quarters of all chunks, from fine to coarse; for attributes all chunks.",
        ),
    ] = None
    grid: Annotated[
        bool, _option("--grid", help="A row for every stage of the model's partition, and one for all chunks.")
    ] = False
    noise: Annotated[
        str | None,
        _option(
            "--noise",
            help="Noise x_T that edits start from: keep (own, inferred; the default), random, mean (zeros), and "
            "between two images slerp (towards the other's) or swap.",
        ),
    ] = None
    animate: Annotated[
        Path | None,
        _option(
            "--animate",
            panel="Output",
            help="Also write a .webp or .gif that runs through the strengths forth and back; for a table say webp or "
            "gif.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class _AlphaOptions:
    """Options of sub-commands that exchange chunks."""

    alphas: Annotated[
        str | None,
        _option(
            "--alphas",
            help="How far to go from own (0) to other (1): start:stop:count, or a list 0,0.5,1. Default: 0:1:5, with "
            "--animate 0:1:9.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class PairOptions(SamplingOptions, _ChunkOptions, _AlphaOptions, _StripOptions):
    """Exchange chunks of two images: A with B's, and B with A's.

    Example: diti edit pair anna.jpg ben.jpg --chunks 10-20 -o out.png

    Example: diti edit pair faces:3 faces:8 --grid --alphas 0.5,1 --difference

    Example: diti edit pair faces:3 faces:8 --chunks 0-3 --animate out.webp --separate singles
    """

    kind: ClassVar[str] = "pair"


@dataclass(frozen=True, kw_only=True)
class AttributeOptions(SamplingOptions, _ChunkOptions, _StripOptions):
    """Move images along attributes that `diti probe` has learned.

    Example: diti edit attribute anna.jpg ben.jpg --attribute Smiling --amount -0.6:0.6:7 --probe probe --dims 16
    """

    kind: ClassVar[str] = "attribute"

    attribute: Annotated[
        list[str] | None,
        _option(
            "--attribute",
            panel="Attributes",
            autocompletion=attributes,
            help="Move along this attribute of --probe. Repeat it for more rows.",
        ),
    ] = None
    amount: Annotated[
        str | None,
        _option(
            "--amount",
            panel="Attributes",
            help="How far: start:stop:count, or a list; negative for less of it. Default: -0.6:0.6:5, with --animate 9 "
            "steps.",
        ),
    ] = None
    also: Annotated[
        list[str] | None,
        _option(
            "--also",
            metavar="NAME=AMOUNT",
            panel="Attributes",
            help="Move every edit along this attribute too. Repeat it for more.",
        ),
    ] = None
    probe: Annotated[
        Path | None, _option("--probe", panel="Attributes", help="Folder of `diti probe -o`. Default: probe.")
    ] = None
    dims: Annotated[
        int | None,
        _option(
            "--dims",
            min=1,
            panel="Attributes",
            help="Move only so many dims, those that `diti probe --mask-dims N` learned.",
        ),
    ] = None
    along: Annotated[
        Along | None,
        _option(
            "--along",
            panel="Attributes",
            help="pattern (how features change where the attribute does; the default), or weight: the classifier's own "
            "direction, as published, which takes more of other attributes along.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ReconstructOptions(SamplingOptions, _StripOptions):
    """Decode images from their own features, changing nothing: what do features hold, and what the noise?

    Example: diti edit reconstruct anna.jpg ben.jpg
    """

    kind: ClassVar[str] = "reconstruct"

    noise: Annotated[
        str | None,
        _option("--noise", help="Noise x_T to decode from: any of keep,random,mean. Default: all three."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TableOptions(SamplingOptions, _ChunkOptions, _AlphaOptions):
    """Exchange chunks of many pairs, in full batches; finished pairs are skipped, failures listed in failed.csv.

    A table has the columns a, b and, if wanted, chunks (several sets: 0-3;8-15), alphas, name.

    Example: diti edit table pairs.csv -o edits
    """

    kind: ClassVar[str] = "table"

    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="TABLE", help="Table of pairs: .csv, .tsv, .jsonl, .json or .parquet.", show_default=False
        ),
    ]
    out: Annotated[Path | None, _option("--out", "-o", help="Folder of all outputs. Default: edits.")] = None
    dry_run: Annotated[
        bool, _option("--dry-run", help="Of a table: say what is left to do and how long it takes, and stop.")
    ] = False


StripOptions = PairOptions | AttributeOptions | ReconstructOptions
Options = StripOptions | TableOptions
KINDS: dict[str, type[Options]] = {
    kind.kind: kind for kind in (PairOptions, AttributeOptions, ReconstructOptions, TableOptions)
}
_O = TypeVar("_O", bound=Options)


@cache
def parameters(kind: str) -> dict[str, inspect.Parameter]:
    """The options of a sub-command as keyword parameters: its own first, what it shares after them."""
    options = KINDS[kind]
    hints = get_type_hints(options, include_extras=True)
    shared = [part for part in options.__mro__ if part is not SamplingOptions]
    names = ["sources", *(name for part in (*shared, SamplingOptions) for name in inspect.get_annotations(part))]
    return {
        name: inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=getattr(options, name, inspect.Parameter.empty),
            annotation=hints[name],
        )
        for name in dict.fromkeys(names)
        if name != "kind"
    }


def as_command(options: type[_O], run: Callable[[_O], None]) -> Callable[..., None]:
    """A command for Typer that calls `run` with the options given."""

    def command(**values: Any) -> None:
        run(options(**values))

    return with_parameters(command, parameters(options.kind))


def with_parameters(command: Callable[..., None], found: dict[str, inspect.Parameter]) -> Callable[..., None]:
    """The command, with the signature that Typer reads."""
    command.__signature__ = inspect.Signature(list(found.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: parameter.annotation for name, parameter in found.items()}
    return command


def is_given(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether an option differs from its default."""
    return value not in (parameter.default, [])


def flag(parameter: inspect.Parameter) -> str:
    """How an option is spelled, e.g. "--invert-steps"."""
    (info,) = parameter.annotation.__metadata__
    names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
    return next((name for name in names if name.startswith("--")), f"--{parameter.name.replace('_', '-')}")


def command_line(options: Options) -> str:
    """The call that makes the same pictures again."""
    words = []
    for name, parameter in parameters(options.kind).items():
        (info,) = parameter.annotation.__metadata__
        value = getattr(options, name)
        if isinstance(info, ArgumentInfo) or not is_given(value, parameter) or name in NOT_REPEATED:
            continue
        assert isinstance(info, OptionInfo)
        yes, _, no = flag(parameter).partition("/")
        if isinstance(value, bool):
            words.append(yes if value else no)
        else:
            words += [word for each in (value if isinstance(value, list) else [value]) for word in (yes, str(each))]
    sources = list(options.sources)
    if any(source.startswith("-") for source in sources):
        return shlex.join(["diti", "edit", options.kind, *words, "--", *sources])
    return shlex.join(["diti", "edit", options.kind, *sources, *words])
