"""What the sub-commands of `diti edit` share: checks that need no model, settings, inputs, and what is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.commands.edit_options import (
    DDIM_STEPS,
    AttributeOptions,
    Options,
    PairOptions,
    ReconstructOptions,
    StripOptions,
    TableOptions,
    command_line,
)
from diticli.commands.outputs import check_pictures
from diticli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from diticli.chunks import ChunkLayout
    from diticli.editing.contact_sheet import Sheet
    from diticli.editing.settings import EditSettings
    from diticli.models.model import DiTiModel

TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx", ".xls", ".ods")
"""Tables of pairs; a spreadsheet's own formats are refused by their name when they are read."""
ANIMATIONS = (".webp", ".gif")
SIZES_SHOWN, SIZES_SEEN = 4, 64


def is_table(source: str) -> bool:
    """Whether a source is a table of pairs, by its name."""
    return Path(source).suffix.lower() in TABLES


def target(options: Options) -> Path:
    """Where the strip, or all of a table's outputs, go."""
    return options.out or Path("edits" if isinstance(options, TableOptions) else "edit.png")


def animation(options: Options) -> str:
    """The suffix of animations, or ""."""
    path = _animate(options)
    if path is None:
        return ""
    bare = isinstance(options, TableOptions) and not path.suffix
    return f".{path.name.lower()}" if bare else path.suffix.lower()


def check(options: Options) -> None:
    """Fail before a model is loaded.

    Raises:
        ConfigError: for options that contradict each other.
        DataError: for images that do not exist, and places that cannot be written.
    """
    from diticli.commands.console import reporter
    from diticli.editing.inputs import check_source

    _check_sources(options)
    _check_options(options)
    for source in options.sources:
        check_source(source, reporter())
    _check_output(options)


def _check_sources(options: Options) -> None:
    tables, count = [s for s in options.sources if is_table(s)], len(options.sources)
    if isinstance(options, TableOptions):
        if count > 1:
            raise ConfigError(
                "A table of pairs comes alone.", remedy=f"Write diti edit {(tables or options.sources)[0]} -o DIR."
            )
    elif tables:
        raise ConfigError(
            f"{tables[0]} is a table of pairs.", remedy=f"Write diti edit table {tables[0]}, or give images."
        )
    elif isinstance(options, PairOptions) and count != 2:
        raise ConfigError(
            f"{count} image{'s are' if count > 1 else ' is'} no pair.",
            remedy="Give two images, or a table; or say --attribute NAME --probe DIR, or --reconstruct.",
        )
    elif isinstance(options, AttributeOptions) and not options.attribute:
        raise ConfigError("No attribute is named.", remedy="Say --attribute NAME --probe DIR.")


def _check_options(options: Options) -> None:
    if not isinstance(options, ReconstructOptions) and options.grid and options.chunks:
        raise ConfigError("--grid shows all chunks, --chunks some.", remedy="Give one of them.")
    if options.official and options.solver not in (None, "ddim"):
        raise ConfigError(f"The official sampler is ddim, not {options.solver}.", remedy="Leave out --solver.")
    if _animate(options) is not None and animation(options) not in ANIMATIONS:
        raise ConfigError(
            f"An animation is a .webp or .gif, not {_animate(options)}.", remedy="Write --animate out.webp."
        )


def _check_output(options: Options) -> None:
    """Try where outputs shall go: minutes of sampling should not end at a protected disk. Makes nothing: the model may
    not exist."""
    from diticli.files import check_writable
    from diticli.pictures.metadata import check_picture

    out, folders = target(options), [options.separate]
    if isinstance(options, TableOptions):
        folders.append(None if options.dry_run else out)
        if out.is_file():
            raise DataError(f"-o names a file: {out}.", remedy="Name a folder for a table's outputs.")
    else:
        animate = _animate(options)
        if out.is_dir():
            raise DataError(f"-o names a folder: {out}.", remedy="Name a file: -o out.png.")
        check_picture(out)
        folders += [out.parent, animate.parent if animate else None]
        for path in (out, animate):
            _check_not_a_source(path, options.sources)
        if animate and animate.absolute() == out.absolute():
            raise ConfigError(f"The strip and the animation are both {out}.", remedy="Name two files.")
        check_pictures([path for path in (out, animate) if path], overwrite=options.overwrite)
    for folder in folders:
        if folder is not None:
            check_writable(folder)


def _check_not_a_source(path: Path | None, sources: Sequence[str]) -> None:
    if path is None or not path.exists():
        return
    if any(Path(source).exists() and path.samefile(source) for source in sources):
        raise ConfigError(f"{path} is one of the images to edit.", remedy="Choose another name.")


def _animate(options: Options) -> Path | None:
    return None if isinstance(options, ReconstructOptions) else options.animate


def settings_of(options: Options) -> EditSettings:
    """How to sample, from the options."""
    from diticli.editing.settings import EditSettings

    steps = options.steps or (DDIM_STEPS if options.solver == "ddim" and not options.official else None)
    given = {
        "noise": None if isinstance(options, ReconstructOptions) else options.noise,
        "solver": options.solver,
        "invert_steps": options.invert_steps or steps,
        "decode_steps": options.decode_steps or steps,
        "precision": options.precision,
        "batch_size": options.batch_size,
        "compile": options.compile,
    }
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(options, AttributeOptions) and options.official:
        chosen.setdefault("noise", "keep")
    return (EditSettings.like_official if options.official else EditSettings)(seed=options.seed, **chosen)


def load(options: Options, settings: EditSettings) -> DiTiModel:
    """The model; on stderr which one it is, and how many steps will run where they are not those asked for."""
    from diticli.commands.console import say, say_model
    from diticli.config_groups import parse_value_range
    from diticli.models.load import load_model

    model = load_model(options.model, options.device)
    if options.value_range is not None:
        model.value_range = parse_value_range(options.value_range)
    say_model(model)
    timesteps = model.chunks.timesteps
    if settings.steps_run(timesteps) != (settings.invert_steps, settings.decode_steps):
        say(
            f"Steps: {settings.describe_steps(timesteps)}; {settings.solver} goes in equal strides over "
            f"{timesteps:,} timesteps, and runs as many steps as asked for where they divide it."
        )
    return model


def chunk_sets(options: PairOptions | AttributeOptions | TableOptions, layout: ChunkLayout) -> list[tuple[int, ...]]:
    """The sets that were asked for; none for the default."""
    from diticli.editing.stages import stages

    if options.grid:
        return list(dict.fromkeys([*stages(layout), tuple(range(layout.chunks))]))
    return [layout.parse(spec) for spec in options.chunks or ()]


def read_images(options: Options, model: DiTiModel) -> list[Image.Image]:
    """All images, as the model sees them; on stderr how that came about."""
    from diticli.editing.inputs import read_source

    images = [read_source(s, model.resolution, seed=options.seed, **model.reading) for s in options.sources]
    say_resizings(options.sources, model)
    return images


def say_resizings(sources: Sequence[str], model: DiTiModel) -> None:
    """On stderr how images become what the model sees, and whether they suit it; only the first few are looked at, and
    fewer are named."""
    from diticli.commands.console import reporter, say
    from diticli.editing.quality import photo_warning

    if warning := photo_warning(sources, model):
        reporter().warn(warning)
    said = resizings(sources[:SIZES_SEEN], model)
    for line in said[:SIZES_SHOWN]:
        say(line)
    if len(said) > SIZES_SHOWN:
        say(f"{'At least ' * (len(sources) > SIZES_SEEN)}{len(said) - SIZES_SHOWN} more images likewise.")


def resizings(sources: Sequence[str], model: DiTiModel) -> list[str]:
    """How the images became what the model sees, where they are not that."""
    from diticli.editing.inputs import resizing

    return [line for s in sources if (line := resizing(s, model.resolution, model.crop))]


def names_of(options: Options) -> list[str]:
    """What to call them."""
    from diticli.editing.inputs import source_name

    return [source_name(source) for source in options.sources]


def pair_command(options: TableOptions, model: DiTiModel, a: str, b: str, name: str, **changes: Any) -> str:
    """The call that makes the outputs of one pair of a table again."""
    shared = {field.name: getattr(options, field.name) for field in fields(PairOptions) if hasattr(options, field.name)}
    own = {
        "sources": [a, b],
        "model": _name(options, model),
        "out": target(options) / f"{name}.png",
        "separate": options.separate / name if options.separate else None,
        "animate": target(options) / f"{name}{animation(options)}" if options.animate else None,
        "grid": False,
    }
    return command_line(PairOptions(**shared | own | changes))


def finish(
    options: StripOptions,
    model: DiTiModel,
    sheet: Sheet,
    settings: EditSettings,
    facts: dict[str, Any],
    quality: Mapping[str, float],
    *,
    warnings: Sequence[str] = (),
) -> None:
    """Write all pictures, and say so; first what spoils them.

    Args:
        options: say where.
        model: made them.
        sheet: what to show.
        settings: how it was made.
        facts: of this kind of edit, for --json.
        quality: PSNR of the images' reconstructions, by name.
        warnings: beside those about reconstructions.
    """
    from dataclasses import replace

    from diticli.commands.console import emit_json, reporter, say
    from diticli.editing.contact_sheet import edit_strip, separate_paths, write_animation, write_separate
    from diticli.editing.results import decibels
    from diticli.pictures.grids import save_picture
    from diticli.pictures.metadata import provenance

    if options.separate:
        check_pictures(separate_paths(sheet, options.separate), overwrite=options.overwrite, quiet=True)
    warnings = [*warnings_of(model, settings, quality), *warnings]
    for warning in warnings:
        reporter().warn(warning)
    command = command_line(replace(options, model=_name(options, model)))
    metadata = provenance(model.known_as, command)
    if warnings:
        metadata["diti:warnings"] = " ".join(warnings)
        sheet = replace(sheet, warnings=tuple(warnings))
    out = target(options)
    save_picture(edit_strip(sheet, difference=options.difference), out, {**sheet.metadata, **metadata})
    singles = write_separate(sheet, options.separate, metadata) if options.separate else []
    animate = _animate(options)
    if animate:
        write_animation(sheet, animate, metadata)
    if options.as_json:
        written = {
            "warnings": warnings,
            "out": str(out),
            "separate": [str(path) for path in singles],
            "animation": str(animate) if animate else None,
            "model": model.model_id,
            "model_origin": model.origin,
            "inputs": resizings(options.sources, model),
            "command": command,
        }
        emit_json(written | sampling_facts(settings, model.chunks.timesteps) | facts)
        return
    known = f" (reconstruction {', '.join(decibels(value) for value in list(quality.values())[:4])})" if quality else ""
    say(f"Wrote {out}{known}.")
    if animate:
        say(f"Wrote {animate}.")
    if singles:
        say(f"Wrote {len(singles)} single images to {options.separate}.")


def sampling_facts(settings: EditSettings, timesteps: int) -> dict[str, Any]:
    """How it was sampled, for --json."""
    from diticli.sampling.defaults import DEFAULT_PRECISION

    invert, decode = settings.steps_run(timesteps)
    return {
        "solver": settings.solver,
        "precision": settings.precision or DEFAULT_PRECISION[settings.solver],
        "compile": settings.compile,
        "invert_steps": settings.invert_steps,
        "decode_steps": settings.decode_steps,
        "invert_steps_run": invert,
        "decode_steps_run": decode,
        "official": settings.official,
    }


def warnings_of(model: DiTiModel, settings: EditSettings, quality: Mapping[str, float]) -> list[str]:
    """What spoils the pictures, in words."""
    from diticli.editing.quality import reconstruction_warnings

    return reconstruction_warnings(quality, settings, model)


def number(value: float) -> float | None:
    """A PSNR for JSON, which has no infinity."""
    return round(value, 3) if math.isfinite(value) else None


def _name(options: Options, model: DiTiModel) -> str | None:
    """What names the model whatever the environment."""
    return options.model or model.model_id or None
