"""What a shell completes that Typer does not know: names of attributes and presets. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from diticli.reading import parse_json, read_regular
from diticli.settings import preset_names

DIRECTIONS = "directions.json"
"""File of a probe that names what can be moved; as `diticli.probing.directions.FACTS_NAME`."""


def presets(incomplete: str) -> list[str]:
    """Presets that begin so."""
    return _beginning(preset_names(), incomplete)


def attributes(ctx: typer.Context, incomplete: str) -> list[str]:
    """Attributes of --probe that begin so, in small letters or capitals; of the built-in faces where there is none."""
    folder = Path(str(ctx.params.get("probe") or "probe"))
    try:
        rows = parse_json(read_regular(folder / DIRECTIONS))["rows"]
        names = [f"{row['attribute']}={row['class']}" if row["class"] else str(row["attribute"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        from diticli.data.faces import FACTORS

        names = [factor.name for factor in FACTORS]
    return _beginning(names, incomplete)


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    # Typer keeps what begins with the letters as they were typed; names are understood in either.
    wanted = incomplete.casefold()
    return [incomplete + name[len(incomplete) :] for name in names if name.casefold().startswith(wanted)]
