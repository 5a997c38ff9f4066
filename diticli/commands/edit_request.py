"""What `diti edit` was asked for, and what is wrong with it: all checks that need no model."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diticli.errors import ConfigError, DataError

Kind = Literal["pair", "attribute", "reconstruct", "many"]
TABLES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx", ".xls", ".ods")
"""Tables of pairs; a spreadsheet's own formats are refused by their name when they are read."""
ANIMATIONS = (".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of one call, named as on the command line."""

    sources: tuple[str, ...]
    chunks: tuple[str, ...] = ()
    grid: bool = False
    out: Path | None = None
    model: str | None = None
    alphas: str | None = None
    noise: str | None = None
    reconstruct: bool = False
    attributes: tuple[str, ...] = ()
    amount: str | None = None
    probe: Path | None = None
    dims: int | None = None
    along: str | None = None
    solver: str | None = None
    invert_steps: int | None = None
    decode_steps: int | None = None
    precision: str | None = None
    compile: bool | None = None
    official: bool = False
    difference: bool = False
    separate: Path | None = None
    animate: Path | None = None
    dry_run: bool = False
    batch_size: int | None = None
    seed: int = 0
    device: str | None = None
    as_json: bool = False

    @property
    def kind(self) -> Kind:
        """Which kind of edit it is."""
        if self.reconstruct:
            return "reconstruct"
        if self.attributes:
            return "attribute"
        return "many" if any(_is_table(source) for source in self.sources) else "pair"

    @property
    def target(self) -> Path:
        """Where the strip, or all of a table's outputs, go."""
        return self.out or Path("edits" if self.kind == "many" else "edit.png")

    @property
    def animation(self) -> str:
        """The suffix of animations, or ""."""
        if self.animate is None:
            return ""
        bare = self.kind == "many" and not self.animate.suffix
        return f".{self.animate.name.lower()}" if bare else self.animate.suffix.lower()

    def check(self) -> None:
        """Fail before a model is loaded.

        Raises:
            ConfigError: for options that contradict each other.
            DataError: for images that do not exist, and places that cannot be written.
        """
        from diticli.commands.console import reporter
        from diticli.editing.inputs import check_source

        self._check_kind()
        self._check_options()
        for source in self.sources:
            check_source(source, reporter())
        self._check_output()

    def _check_kind(self) -> None:
        tables, count = [s for s in self.sources if _is_table(s)], len(self.sources)
        if self.reconstruct and self.attributes:
            raise ConfigError("--reconstruct changes nothing, --attribute does.", remedy="Give one of them.")
        if tables and self.kind != "many":
            raise ConfigError(f"{tables[0]} is a table of pairs.", remedy=f"Leave out --{self.kind}, or give images.")
        if tables and count > 1:
            raise ConfigError("A table of pairs comes alone.", remedy=f"Write diti edit {tables[0]} -o DIR.")
        if self.kind == "pair" and count != 2:
            raise ConfigError(
                f"{count} image{'s are' if count > 1 else ' is'} no pair.",
                remedy="Give two images, or a table; or say --attribute NAME --probe DIR, or --reconstruct.",
            )

    def _check_options(self) -> None:
        useless = {
            "--alphas": self.alphas is not None and self.kind in ("attribute", "reconstruct"),
            "--grid": self.grid and self.kind == "reconstruct",
            "--chunks": bool(self.chunks) and self.kind == "reconstruct",
            "--animate": self.animate is not None and self.kind == "reconstruct",
            "--amount": self.amount is not None and self.kind != "attribute",
            "--probe": self.probe is not None and self.kind != "attribute",
            "--dims": self.dims is not None and self.kind != "attribute",
            "--along": self.along is not None and self.kind != "attribute",
            "--dry-run": self.dry_run and self.kind != "many",
        }
        whose = {"--alphas": "an exchange of chunks", "--dry-run": "a table"}
        for option, given in useless.items():
            if given:
                needed = "--attribute" if option in ("--amount", "--probe", "--dims", "--along") else "an edit"
                raise ConfigError(f"{option} is for {whose.get(option, needed)}.", remedy=f"Leave out {option}.")
        if self.grid and self.chunks:
            raise ConfigError("--grid shows all chunks, --chunks some.", remedy="Give one of them.")
        if self.official and self.solver not in (None, "ddim"):
            raise ConfigError(f"The official sampler is ddim, not {self.solver}.", remedy="Leave out --solver.")
        if self.animate is not None and self.animation not in ANIMATIONS:
            raise ConfigError(
                f"An animation is a .webp or .gif, not {self.animate}.", remedy="Write --animate out.webp."
            )

    def _check_output(self) -> None:
        """Try where outputs shall go: minutes of sampling should not end at a protected disk. Makes nothing: the model
        may not exist."""
        folders = [self.separate]
        if self.kind == "many":
            folders.append(None if self.dry_run else self.target)
            if self.target.is_file():
                raise DataError(f"-o names a file: {self.target}.", remedy="Name a folder for a table's outputs.")
        else:
            self._check_strip()
            folders += [self.target.parent, self.animate.parent if self.animate else None]
            for path in (self.target, self.animate):
                self._check_not_a_source(path)
        for folder in folders:
            if folder is not None:
                _check_folder(folder)

    def _check_strip(self) -> None:
        out = self.target
        if out.is_dir():
            raise DataError(f"-o names a folder: {out}.", remedy="Name a file: -o out.png.")
        if out.suffix.lower() != ".png":
            remedy = f"Write -o {out.with_suffix('.png')}."
            raise ConfigError(f"The strip is a PNG, but -o names {out}.", remedy=remedy)

    def _check_not_a_source(self, path: Path | None) -> None:
        if path is None or not path.exists():
            return
        if any(Path(source).exists() and path.samefile(source) for source in self.sources):
            raise ConfigError(f"{path} is one of the images to edit.", remedy="Choose another name.")


def _is_table(source: str) -> bool:
    return Path(source).suffix.lower() in TABLES


def _check_folder(folder: Path) -> None:
    """Whether files can be written to a folder, or to the nearest one above it that is there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(f"Cannot write to {folder}: {error.strerror}.", remedy="Choose another place.") from error
