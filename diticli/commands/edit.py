"""`diti edit`: exchange chunks between images, move attributes, reconstruct; one picture or a whole table.

Its sub-commands are `pair`, `attribute`, `reconstruct` and `table`. What follows `diti edit` without one of these
words goes to a hidden command that knows the options of all of them and chooses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from diticli.commands import edit_request as request
from diticli.commands.edit_options import (
    KINDS,
    AttributeOptions,
    Options,
    PairOptions,
    ReconstructOptions,
    TableOptions,
    as_command,
    flag,
    is_given,
    parameters,
    with_parameters,
)
from diticli.commands.failure import keeps
from diticli.commands.lazy import LazyGroup, Maker, command, import_torch, paragraphs
from diticli.errors import ConfigError

if TYPE_CHECKING:
    from diticli.editing.many import ManyReport
    from diticli.editing.settings import Noise
    from diticli.probing.directions import Directions

SHORT = "images"
"""Name of the hidden command."""


def pair(options: PairOptions) -> None:
    """Exchange chunks of two images."""
    from diticli.commands.console import reporter
    from diticli.editing.contact_sheet import pair_sheet
    from diticli.editing.mixing import parse_alphas
    from diticli.editing.pair import edit_pair
    from diticli.editing.quality import effect_warnings, overview_note
    from diticli.editing.stages import OVERVIEW_ROWS, grouped

    alphas = parse_alphas(options.alphas or ("0:1:9" if options.animate else "0:1:5"))
    settings = request.settings_of(options)
    model = request.load(options, settings)
    sets = request.chunk_sets(options, model.chunks) or grouped(model.chunks, OVERVIEW_ROWS)
    a, b = request.read_images(options, model)
    names = request.names_of(options)
    result = edit_pair(model, a, b, sets, alphas, settings=settings, names=(names[0], names[1]), reporter=reporter())
    facts = {
        "images": list(result.names),
        "chunks": [list(chunks) for chunks in result.chunk_sets],
        "alphas": list(result.alphas),
        "noise": settings.noise,
        "psnr_db": [request.number(value) for value in result.psnr],
        "model_hash": result.model_hash,
    }
    quality = dict(zip(result.names, result.psnr, strict=True))
    unseen = effect_warnings(result) if options.chunks else []  # of an overview one expects rows that show nothing
    if not options.chunks and (note := overview_note(result)):
        reporter().note(note)
    request.finish(options, model, pair_sheet(result), result.settings, facts, quality, warnings=unseen)


def attribute(options: AttributeOptions) -> None:
    """Move images along attributes."""
    from diticli.commands.console import reporter
    from diticli.editing.attribute import edit_attribute
    from diticli.editing.contact_sheet import attribute_sheet
    from diticli.editing.mixing import parse_numbers
    from diticli.editing.read_again import read_again, reading_facts, unmoved_warnings
    from diticli.probing.directions import DEFAULT_ALONG, load_directions
    from diticli.probing.read_scores import chance_warnings, read_scores, score_of

    amount = options.amount or ("-0.6:0.6:9" if options.animate else "-0.6:0.6:5")
    remedy = "0 is the image itself, 0.3 a clear change, 1 a strong one."
    amounts = parse_numbers(amount, "amount", 10.0, remedy=remedy)
    settings = request.settings_of(options)
    directions = load_directions(options.probe or Path("probe"))
    also = _also(options, directions)
    attributes = [directions.named(name) for name in options.attribute or ()]
    _check_dims(directions, options, [*attributes, *also])
    model = request.load(options, settings)
    directions.check_model(model.hash_like(directions.full.model_hash), model.model_id)
    result = edit_attribute(
        model,
        request.read_images(options, model),
        directions,
        attributes,
        amounts,
        also=also,
        chunk_sets=request.chunk_sets(options, model.chunks) or (None,),
        learned_dims=options.dims,
        along=options.along or DEFAULT_ALONG,
        settings=settings,
        names=request.names_of(options),
        reporter=reporter(),
    )
    scores = read_scores(options.probe or Path("probe"))
    read = read_again(model, directions, result)
    facts = {
        "images": list(result.names),
        "attributes": list(result.attributes),
        "scores": {
            name: {"metric": score.metric, "value": request.number(score.value)}
            for name in result.attributes
            if (score := score_of(scores, name))
        },
        "amounts": list(result.amounts),
        "also": dict(result.also),
        "chunks": [None if chunks is None else list(chunks) for chunks in result.chunk_sets],
        "dims": options.dims,
        "along": result.along,
        "noise": settings.noise,
        "read_again": reading_facts(read, result.names),
        "psnr_db": [request.number(value) for value in result.psnr],
        "model_hash": result.model_hash,
    }
    quality = dict(zip(result.names, result.psnr, strict=True))
    warnings = chance_warnings(scores, [*result.attributes, *result.also])
    warnings += unmoved_warnings(result, read, scores, model)
    request.finish(options, model, attribute_sheet(result, scores), result.settings, facts, quality, warnings=warnings)


def reconstruct(options: ReconstructOptions) -> None:
    """Decode images from their own features."""
    from diticli.commands.console import reporter
    from diticli.editing.contact_sheet import reconstruction_sheet
    from diticli.editing.reconstruct import reconstruct as run

    noises = _noises(options.noise)
    settings = request.settings_of(options)
    model = request.load(options, settings)
    images, names = request.read_images(options, model), request.names_of(options)
    result = run(model, images, noises=noises, settings=settings, names=names, reporter=reporter())
    facts = {
        "images": list(result.names),
        "noise": list(result.pictures),
        "psnr_db": {noise: [request.number(value) for value in values] for noise, values in result.psnr.items()},
        "model_hash": result.model_hash,
    }
    quality = dict(zip(result.names, result.psnr.get("keep", ()), strict=False))
    request.finish(options, model, reconstruction_sheet(result), result.settings, facts, quality)


def table(options: TableOptions) -> None:
    """Exchange chunks of many pairs."""
    from diticli.commands.console import reporter
    from diticli.editing.many import edit_many
    from diticli.editing.many_files import ManyOptions, plan_pairs
    from diticli.editing.mixing import chunk_ranges, parse_alphas
    from diticli.editing.table import PairRow, read_pairs
    from diticli.pictures.metadata import provenance

    rows = read_pairs(Path(options.sources[0]))
    alphas = parse_alphas(options.alphas or ("0:1:9" if options.animate else "0:1:5"))
    settings, out = request.settings_of(options), request.target(options)
    model = request.load(options, settings)
    sets = request.chunk_sets(options, model.chunks)
    request.say_resizings(list(dict.fromkeys(source for row in rows for source in (row.a, row.b))), model)

    def command(row: PairRow) -> str:
        own = [spec for spec in row.chunks.split(";") if spec.strip()]
        chunks = own or [chunk_ranges(model.chunks, chosen) for chosen in sets] or None
        alphas = row.alphas or options.alphas
        return request.pair_command(options, model, row.a, row.b, row.name, chunks=chunks, alphas=alphas)

    many = ManyOptions(
        chunk_sets=sets,
        alphas=alphas,
        settings=settings,
        difference=options.difference,
        separate=options.separate,
        animate=request.animation(options),
        metadata=provenance(model.known_as),
        command=command,
        warnings=partial(request.warnings_of, model, settings),
        overwrite=options.overwrite,
    )
    if options.dry_run:
        from diticli.editing.estimate import seconds_for

        plan = plan_pairs(rows, out, model.chunks, model.model_hash, many)
        _print_plan(options, plan.to_dict(), seconds_for(model, plan, settings))
        return
    keeps(out)
    report = edit_many(model, rows, out, options=many, reporter=reporter())
    _tell_table(options, report, len(rows), request.warnings_of(model, settings, report.psnr))


RUNS: dict[str, Any] = {"pair": pair, "attribute": attribute, "reconstruct": reconstruct, "table": table}


def _run(kind: str, options: Options) -> None:
    from diticli.pictures.metadata import metadata_left_out

    request.check(options)
    import_torch()
    with metadata_left_out(not options.metadata):
        RUNS[kind](options)


def _tell_table(options: TableOptions, report: ManyReport, rows: int, warnings: list[str]) -> None:
    from diticli.commands.console import emit_json, reporter, say
    from diticli.editing.many_files import FAILED_NAME

    out = request.target(options)
    for warning in warnings:
        reporter().warn(warning)
    if options.as_json:
        emit_json({"warnings": warnings, "out": str(out)} | report.to_dict())
    else:
        earlier = f", {len(report.skipped)} were finished before" if report.skipped else ""
        say(f"Edited {len(report.written)} pair{'s' * (len(report.written) != 1)} into {out}{earlier}.")
    if report.failed:
        say(f"{len(report.failed)} of {rows} pairs failed; {out / FAILED_NAME} says why.")
        raise typer.Exit(1)


def _print_plan(options: TableOptions, plan: dict[str, Any], seconds: float) -> None:
    from diticli.commands.console import emit_json, say
    from diticli.progress import duration

    if options.as_json:
        emit_json(plan | {"seconds": round(seconds, 1)})
        return
    say(
        f"{plan['todo']} pair{'s' * (plan['todo'] != 1)} to edit, {plan['finished']} finished, "
        f"{len(plan['failed'])} cannot be edited: "
        f"{plan['invert']} images to invert and {plan['decode']} to decode, about {duration(seconds)}."
    )
    for name, reason in plan["failed"].items():
        say(f"  {name}: {reason}")


def _noises(spec: str | None) -> list[Noise]:
    from diticli.editing.settings import SINGLE_IMAGE_NOISE, Noise

    names = [part.strip() for part in (spec or ",".join(SINGLE_IMAGE_NOISE)).split(",")]
    if wrong := [name for name in names if name not in SINGLE_IMAGE_NOISE]:
        remedy = f"Use {', '.join(SINGLE_IMAGE_NOISE)}."
        raise ConfigError(f"No reconstruction has the noise {wrong[0]!r}.", remedy=remedy)
    return [noise for name in names for noise in get_args(Noise) if noise == name]


def _also(options: AttributeOptions, directions: Directions) -> dict[str, float]:
    """Attribute -> amount by which every edit moves besides."""
    from diticli.editing.mixing import parse_numbers

    found: dict[str, float] = {}
    for text in options.also or ():
        name, _, amount = text.rpartition("=")  # a class of a category is NAME=CLASS itself
        remedy = "Write --also NAME=AMOUNT, e.g. --also Smiling=0.3."
        if not name or "," in amount or ":" in amount:
            raise ConfigError(f"Cannot read --also {text!r}.", remedy=remedy)
        name = directions.named(name)
        if name in found:
            raise ConfigError(f"--also names {name!r} twice.", remedy="Give each attribute once.")
        (found[name],) = parse_numbers(amount, "amount", 10.0, remedy=remedy)
    return found


def _check_dims(directions: Directions, options: AttributeOptions, names: Sequence[str]) -> None:
    """The dims that were learned must be as many as were asked for."""
    for name in names if options.dims is not None else ():
        learned = len(directions.learned_dims(name))
        if learned != options.dims:
            raise ConfigError(
                f"--dims {options.dims}, but the masks in {options.probe or 'probe'} have {learned} dims.",
                remedy=f"Use --dims {learned}, or run `diti probe` with --mask-dims {options.dims}.",
            )


def _short(**values: Any) -> None:
    reconstructs = values.pop("reconstruct")
    kind = _kind(values["sources"], reconstructs, bool(values["attribute"]))
    known, every = parameters(kind), _every_parameter()
    for name, value in values.items():
        if name not in known and is_given(value, every[name]):
            others = [f"`diti edit {other}`" for other in KINDS if name in parameters(other)]
            raise ConfigError(
                f"{flag(every[name])} is for {' and '.join(others)}, not for `diti edit {kind}`.",
                remedy=f"Leave out {flag(every[name])}.",
            )
    _run(kind, KINDS[kind](**{name: value for name, value in values.items() if name in known}))


def _kind(sources: list[str], reconstructs: bool, moves: bool) -> str:
    tables = [source for source in sources if request.is_table(source)]
    if reconstructs and moves:
        raise ConfigError("--reconstruct changes nothing, --attribute does.", remedy="Give one of them.")
    if tables and (reconstructs or moves):
        option = "--reconstruct" if reconstructs else "--attribute"
        raise ConfigError(f"{tables[0]} is a table of pairs.", remedy=f"Leave out {option}, or give images.")
    if reconstructs or moves:
        return "reconstruct" if reconstructs else "attribute"
    return "table" if tables else "pair"


def _every_parameter() -> dict[str, Parameter]:
    """The options of all sub-commands, in the words of the first that has one, and --reconstruct."""
    found: dict[str, Parameter] = {}
    for kind in KINDS:
        found = parameters(kind) | found
    choice = Annotated[bool, typer.Option("--reconstruct", help="Decode images from their own features.")]
    return found | {"reconstruct": Parameter("reconstruct", Parameter.KEYWORD_ONLY, default=False, annotation=choice)}


def _sub_command(kind: str) -> Any:
    options = KINDS[kind]
    return command(kind, as_command(options, partial(_run, kind)), help=options.__doc__ or "")


def _short_command() -> Any:
    said = "Without a sub-command: the options of all of them; see diti edit --help."
    return command(SHORT, with_parameters(_short, _every_parameter()), hidden=True, help=said)


class _EditGroup(LazyGroup):
    """Sends what names no sub-command to the hidden command."""

    MAKERS: ClassVar[dict[str, Maker]] = {kind: partial(_sub_command, kind) for kind in KINDS} | {SHORT: _short_command}

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See click; with the options of the hidden command, which are those of `diti edit IMAGE...`."""
        ctx.meta[SHORT] = True
        super().format_help(ctx, formatter)

    def get_params(self, ctx: Any) -> list[Any]:
        """See click."""
        own: list[Any] = super().get_params(ctx)
        known = {parameter.name for parameter in own}
        others = self.commands[SHORT].get_params(ctx) if ctx.meta.get(SHORT) else []
        return [*(other for other in others if other.name not in known), *own]

    def list_commands(self, ctx: Any) -> list[str]:
        """All but the hidden one, for help, completion and documentation."""
        return [name for name in super().list_commands(ctx) if name != SHORT]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [SHORT, *args]
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click."""
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == SHORT else name, command, rest


app = typer.Typer(
    name="edit",
    cls=_EditGroup,
    no_args_is_help=True,
    subcommand_metavar="{IMAGE... | TABLE | COMMAND} [ARGS]...",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _edit() -> None:
    """Exchange parts of the features of two images (chunks), or change an attribute, and show the pictures.

    A chunk is a part of an image's features: chunk 0 restores what the least noise hides (fine detail), the last
    chunk what only the most noise hides. A model has 64 of them; --grid shows what each range of them does.

    Images are encoded and inverted to noise; then their features are changed and decoded. Every output carries what
    is needed to make it again, unless --no-metadata.

    Without a sub-command, two images are a pair, --attribute and --reconstruct mean the sub-commands of these names,
    and a .csv is a table.

    Example: diti edit anna.jpg ben.jpg --chunks 10-20 -o out.png

    Example: diti edit faces:3 faces:8 --grid --alphas 0.5,1 --difference

    Example: diti edit faces:3 faces:8 --chunks 0-3 --animate out.webp --separate singles

    Example: diti edit anna.jpg ben.jpg --attribute Smiling --amount -0.6:0.6:7 --probe probe --dims 16

    Example: diti edit anna.jpg ben.jpg --reconstruct

    Example: diti edit pairs.csv -o edits
    """


app.callback(help=paragraphs(_edit.__doc__))(_edit)
