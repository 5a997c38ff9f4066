"""The kinds of `diti edit`: each loads a model, calls the core once, and tells what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from diticli.commands.edit_request import Request
from diticli.commands.edit_shared import (
    chunk_sets,
    finish,
    load,
    names_of,
    number,
    provenance,
    read_images,
    settings_of,
    tell_steps,
)
from diticli.errors import ConfigError

if TYPE_CHECKING:
    from diticli.editing.attribute import Along
    from diticli.editing.settings import Noise


def run(request: Request) -> None:
    """Do what was asked for."""
    {"pair": _pair, "attribute": _attribute, "reconstruct": _reconstruct, "many": _many}[request.kind](request)


def _pair(request: Request) -> None:
    from diticli.commands.console import reporter
    from diticli.editing.contact_sheet import grid_sheet, pair_sheet
    from diticli.editing.mixing import parse_alphas
    from diticli.editing.pair import edit_pair
    from diticli.editing.stages import OVERVIEW_ROWS, grouped

    alphas = parse_alphas(request.alphas or ("0:1:9" if request.animate else "0:1:5"))
    settings = settings_of(request)
    pipeline = load(request)
    tell_steps(settings, pipeline.chunks.timesteps)
    layout = pipeline.chunks
    sets = chunk_sets(request, layout) or grouped(layout, OVERVIEW_ROWS)
    a, b = read_images(request, pipeline)
    names = names_of(request)
    result = edit_pair(pipeline, a, b, sets, alphas, settings=settings, names=(names[0], names[1]), reporter=reporter())
    facts = {
        "images": list(result.names),
        "chunks": [list(chunks) for chunks in result.chunk_sets],
        "alphas": list(result.alphas),
        "noise": settings.noise,
        "psnr_db": [number(value) for value in result.psnr],
        "model_hash": result.model_hash,
    }
    finish(
        request,
        pair_sheet(result),
        settings,
        facts,
        pipeline.chunks.timesteps,
        result.psnr,
        strip=grid_sheet(result) if request.grid else None,
    )


def _attribute(request: Request) -> None:
    from diticli.commands.console import reporter
    from diticli.editing.attribute import edit_attribute
    from diticli.editing.contact_sheet import attribute_sheet
    from diticli.editing.mixing import parse_numbers
    from diticli.probing.directions import load_directions

    amount = request.amount or ("-0.6:0.6:9" if request.animate else "-0.6:0.6:5")
    remedy = "0 is the image itself, 0.3 a clear change, 1 a strong one."
    amounts = parse_numbers(amount, "amount", 10.0, remedy=remedy)
    settings, along = settings_of(request), _along(request.along)
    directions = load_directions(request.probe or Path("probe"))
    if request.dims is not None:
        _check_dims(directions, request)
    pipeline = load(request)
    tell_steps(settings, pipeline.chunks.timesteps)
    directions.check_model(pipeline.hash_like(directions.full.model_hash), pipeline.model_id)
    result = edit_attribute(
        pipeline,
        read_images(request, pipeline),
        directions,
        request.attributes,
        amounts,
        chunk_sets=chunk_sets(request, pipeline.chunks) or (None,),
        learned_dims=request.dims,
        along=along,
        settings=settings,
        names=names_of(request),
        reporter=reporter(),
    )
    facts = {
        "images": list(result.names),
        "attributes": list(result.attributes),
        "amounts": list(result.amounts),
        "chunks": [None if chunks is None else list(chunks) for chunks in result.chunk_sets],
        "dims": request.dims,
        "along": along,
        "noise": settings.noise,
        "psnr_db": [number(value) for value in result.psnr],
        "model_hash": result.model_hash,
    }
    finish(request, attribute_sheet(result), settings, facts, pipeline.chunks.timesteps, result.psnr)


def _reconstruct(request: Request) -> None:
    from diticli.commands.console import reporter
    from diticli.editing.contact_sheet import reconstruction_sheet
    from diticli.editing.reconstruct import reconstruct

    noises = _noises(request.noise)
    settings = settings_of(request)
    pipeline = load(request)
    tell_steps(settings, pipeline.chunks.timesteps)
    images = read_images(request, pipeline)
    result = reconstruct(
        pipeline, images, noises=noises, settings=settings, names=names_of(request), reporter=reporter()
    )
    facts = {
        "images": list(result.names),
        "noise": list(result.pictures),
        "psnr_db": {noise: [number(value) for value in values] for noise, values in result.psnr.items()},
        "model_hash": result.model_hash,
    }
    sheet = reconstruction_sheet(result)
    finish(request, sheet, settings, facts, pipeline.chunks.timesteps, result.psnr.get("keep", ()))


def _many(request: Request) -> None:
    from diticli.commands.console import emit_json, reporter, say
    from diticli.editing.many import edit_many
    from diticli.editing.many_files import FAILED_NAME, ManyOptions, plan_pairs
    from diticli.editing.mixing import parse_alphas
    from diticli.editing.table import read_pairs

    rows = read_pairs(Path(request.sources[0]))
    alphas = parse_alphas(request.alphas or ("0:1:9" if request.animate else "0:1:5"))
    settings, out = settings_of(request), request.target
    pipeline = load(request)
    tell_steps(settings, pipeline.chunks.timesteps)
    options = ManyOptions(
        chunk_sets=chunk_sets(request, pipeline.chunks),
        alphas=alphas,
        settings=settings,
        difference=request.difference,
        separate=request.separate,
        animate=request.animation,
        metadata=provenance(),
    )
    if request.dry_run:
        from diticli.editing.estimate import seconds_for

        plan = plan_pairs(rows, out, pipeline.chunks, pipeline.model_hash, options)
        _tell_plan(request, plan.to_dict(), seconds_for(pipeline, plan, settings))
        return
    report = edit_many(pipeline, rows, out, options=options, reporter=reporter())
    if request.as_json:
        emit_json({"out": str(out)} | report.to_dict())
    else:
        earlier = f", {len(report.skipped)} were finished before" if report.skipped else ""
        say(f"Edited {len(report.written)} pairs into {out}{earlier}.")
    if report.failed:
        say(f"{len(report.failed)} of {len(rows)} pairs failed; {out / FAILED_NAME} says why.")
        raise typer.Exit(1)


def _tell_plan(request: Request, plan: dict[str, Any], seconds: float) -> None:
    from diticli.commands.console import emit_json, say

    if request.as_json:
        emit_json(plan | {"seconds": round(seconds, 1)})
        return
    say(
        f"{plan['todo']} pairs to edit, {plan['finished']} finished, {len(plan['failed'])} cannot be edited: "
        f"{plan['invert']} images to invert and {plan['decode']} to decode, about {_duration(seconds)}."
    )
    for name, reason in plan["failed"].items():
        say(f"  {name}: {reason}")


def _noises(spec: str | None) -> list[Noise]:
    from diticli.editing.settings import ALONE, Noise

    names = [part.strip() for part in (spec or ",".join(ALONE)).split(",")]
    if wrong := [name for name in names if name not in ALONE]:
        raise ConfigError(f"No reconstruction has the noise {wrong[0]!r}.", remedy=f"Use {', '.join(ALONE)}.")
    return [noise for name in names for noise in get_args(Noise) if noise == name]


def _along(name: str | None) -> Along:
    from diticli.probing.directions import DEFAULT_ALONG, Along

    for along in get_args(Along):
        if along == (name or DEFAULT_ALONG):
            return along
    raise ConfigError(f"A move cannot go along {name!r}.", remedy="Use weight or pattern.")


def _check_dims(directions: Any, request: Request) -> None:
    """The dims that were learned must be as many as were asked for."""
    for name in request.attributes:
        learned = len(directions.learned_dims(name))
        if learned != request.dims:
            raise ConfigError(
                f"--dims {request.dims}, but the masks in {request.probe or 'probe'} have {learned} dims.",
                remedy=f"Use --dims {learned}, or run `diti probe` with --mask-dims {request.dims}.",
            )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
