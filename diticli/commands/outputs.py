"""One rule for what is at -o already, in every command.

What an earlier run of diti left there is replaced, and the command says so before it begins; what diti did not make is
refused, unless --overwrite. An interrupted command goes on with what it left, and a training run is gone on with.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from diticli.data.own_files import is_own_picture
from diticli.errors import ConfigError
from diticli.reading import parse_json, read_regular

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Also write over files at -o that diti did not make.")
]


def check_pictures(paths: Collection[Path], *, overwrite: bool, quiet: bool = False) -> None:
    """Apply the rule to pictures.

    Args:
        paths: where pictures will be written; may be missing.
        overwrite: whether others may be replaced.
        quiet: say nothing of those that will be replaced.

    Raises:
        ConfigError: for one that diti did not make.
    """
    for path in paths:
        _check(path, own=is_own_picture(str(path)), overwrite=overwrite, quiet=quiet)


def check_folder(folder: Path, record: str, keys: Collection[str], others: Collection[str], *, overwrite: bool) -> None:
    """Apply the rule to a folder of results.

    Args:
        folder: may be missing.
        record: JSON file in it by which diti knows its own results.
        keys: of the record, one of which is there.
        others: files that are written beside the record.
        overwrite: whether files of others may be replaced.

    Raises:
        ConfigError: for a record that diti did not write, and for others without a record.
    """
    own = has_keys(folder / record, keys)
    if own:
        _check(folder / record, own=True, overwrite=overwrite)
        return
    for name in (record, *others):
        _check(folder / name, own=False, overwrite=overwrite)


def check_features(path: Path, *, overwrite: bool) -> None:
    """Apply the rule to a feature file and to the JSON beside it.

    Args:
        path: may be missing.
        overwrite: whether files of others may be replaced.

    Raises:
        ConfigError: for files that diti did not make.
    """
    from diticli.features.formats import is_own, sidecar_path

    own = is_own(path)
    _check(path, own=own, overwrite=overwrite)
    if not own:
        _check(sidecar_path(path), own=False, overwrite=overwrite)


def has_keys(record: Path, keys: Collection[str]) -> bool:
    """Whether a file is a JSON object with one of these keys."""
    try:
        facts = parse_json(read_regular(record))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and any(key in facts for key in keys)


def _check(path: Path, *, own: bool, overwrite: bool, quiet: bool = False) -> None:
    from diticli.commands.console import say

    if not os.path.lexists(path):
        return
    if not own and not overwrite:
        raise ConfigError(
            f"{path} is there already, and diti did not make it.",
            remedy="Choose another -o, or write over it with --overwrite.",
        )
    if not quiet:
        say(f"{path} is there already and will be replaced.")


def this_command(*more: str) -> str:
    """The call of this command, with `more` arguments that make it independent of the environment."""
    return shlex.join(["diti", *sys.argv[1:], *more])
