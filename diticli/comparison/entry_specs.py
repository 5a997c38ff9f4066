"""What is compared: the models and feature files that the user named, and built-in baselines.

entries = parse_entries(["runs/demo", "pdae=runs/b", "features.npy"], ("pixels", "pca", "untrained"))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from diticli.errors import ConfigError
from diticli.features.formats import READERS
from diticli.features.manifest import MANIFEST
from diticli.models.base_features import WORD as BASE
from diticli.models.base_features import BaseSpec, parse_base

EntryKind = Literal["model", "features", "pixels", "pca", "untrained", "base"]
Baseline = Literal["pixels", "pca", "untrained"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
PIXELS, PCA, UNTRAINED = "raw pixels", "PCA of pixels", "untrained encoder"
BASE_FEATURES = "base features"
_GENERIC = {"feats", "features", "model", "f"}
"""Names of files and folders that say nothing of what is in them."""


@dataclass(frozen=True, kw_only=True)
class EntrySpec:
    """One line of the comparison.

    Attributes:
        name: unique among all.
        kind: "model" (an encoder that reads the images), "features" (a file of them), or a built-in one.
        source: of a model its folder or Hub id, of features their file or folder; "" for the built-in ones.
        seed: of an untrained encoder's weights.
        method: shared by several runs of one method; "" where the entry stands for itself.
        base: which features of the first model's frozen base; without a timestep validation images choose
            it, and the block.
    """

    name: str
    kind: EntryKind
    source: str = ""
    seed: int = 0
    method: str = ""
    base: BaseSpec = field(default_factory=BaseSpec)


def parse_entries(
    runs: Sequence[str],
    baselines: Sequence[str] = BASELINES,
    *,
    untrained: int = 1,
    seed: int = 0,
    several: bool = False,
) -> tuple[EntrySpec, ...]:
    """The entries in the order of the table: those named, then the built-in ones.

    Args:
        runs: run directories, pipeline folders, Hub ids, feature files or folders of shards; NAME=RUN gives one a
            name, otherwise it is that of its folder or file.
        baselines: which built-in ones: of `parse_baselines`.
        untrained: encoders without training, of as many seeds.
        seed: of the first of these.
        several: whether a NAME given to several runs makes them runs of one method; else it is an error.

    Raises:
        ConfigError: without a run, for two entries of one name, or for features that no base has.
    """
    if not runs:
        raise ConfigError("Nothing is named to compare.", remedy="Name runs, e.g. diti compare runs/demo runs/pdae.")
    named = [_named(text) for text in runs]
    if several:
        named = _numbered(named)
    repeated = {name for name, count in Counter(c.name for c in named).items() if count > 1}
    named = [_longer(spec) if spec.name in repeated else spec for spec in named]
    found = (*named, *_built_in(baselines, untrained, seed))
    _check_names(found)
    return found


def _numbered(named: Sequence[EntrySpec]) -> list[EntrySpec]:
    """Runs that were given one name, numbered in their order."""
    counts = Counter(spec.name for spec in named if spec.name != _short(spec.source))
    seen: Counter[str] = Counter()
    found = []
    for spec in named:
        seen[spec.name] += 1
        several = counts[spec.name] > 1
        found.append(replace(spec, name=f"{spec.name}, run {seen[spec.name]}", method=spec.name) if several else spec)
    return found


def parse_baselines(text: str) -> tuple[str, ...]:
    """Built-in entries from "pixels,pca,untrained,base", or "none"; base[:T[:BLOCK]] may stand several times.

    Raises:
        ConfigError: for an unknown one.
    """
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    if words == ["none"]:
        return ()
    of_base = [word for word in words if word.partition(":")[0] == BASE]
    if not words or set(words) - {*BASELINES, *of_base}:
        raise ConfigError(
            f"There are no such baselines: {text!r}.",
            remedy=f"Name some of {','.join(BASELINES)},{BASE}[:T[:BLOCK]], or none.",
        )
    for word in of_base:
        parse_base(word)
    return (*(name for name in BASELINES if name in words), *dict.fromkeys(of_base))


def _named(text: str) -> EntrySpec:
    name, mark, source = text.partition("=")
    if not mark or not name.strip() or not source or Path(text).exists() or "/" in name:
        name, source = "", text
    if source.partition(":")[0].lower() in (*BASELINES, BASE) and not Path(source).exists():
        raise ConfigError(
            f"{source} is a built-in baseline, not a run.",
            remedy=f"Write --baselines {source.lower()} (several: --baselines {','.join(BASELINES)}); a run of that "
            f"name is ./{source}.",
        )
    return EntrySpec(name=name.strip() or _short(source), kind=_kind(source), source=source)


def _kind(source: str) -> Literal["model", "features"]:
    path = Path(source)
    is_features = path.suffix.lower() in READERS and not path.is_dir()
    return "features" if is_features or (path / MANIFEST).is_file() else "model"


def _short(source: str) -> str:
    """The last part of a path that says something."""
    path = Path(source)
    parts = [part for part in path.parts if part not in ("/", "..", ".")] or [source]
    last = path.stem if path.suffix.lower() in READERS else parts[-1]
    return parts[-2] if last in _GENERIC and len(parts) > 1 else last


def _longer(spec: EntrySpec) -> EntrySpec:
    """Named by its whole path where the last part is not unique."""
    short = spec.name == _short(spec.source)
    return replace(spec, name=spec.source.rstrip("/")) if short else spec


def _built_in(baselines: Sequence[str], untrained: int, seed: int) -> list[EntrySpec]:
    found = []
    if "pixels" in baselines:
        found.append(EntrySpec(name=PIXELS, kind="pixels"))
    if "pca" in baselines:
        found.append(EntrySpec(name=PCA, kind="pca"))
    if "untrained" in baselines:
        seeds = range(seed, seed + untrained)
        found += [EntrySpec(name=f"{UNTRAINED}, seed {s}", kind="untrained", seed=s, method=UNTRAINED) for s in seeds]
    wanted = [parse_base(word) for word in baselines if word not in BASELINES]
    return found + [EntrySpec(name=_base_name(spec), kind="base", base=spec) for spec in wanted]


def _base_name(spec: BaseSpec) -> str:
    facts = [] if spec.timestep is None else [f"t = {spec.timestep}"]
    return ", ".join([BASE_FEATURES, *facts, *([] if spec.block == "mid" else [spec.block])])


def _check_names(specs: Sequence[EntrySpec]) -> None:
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise ConfigError(
                f"{count} entries are called {name!r}.", remedy="Give each a name of its own, e.g. first=runs/a."
            )
