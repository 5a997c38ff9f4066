"""From presets, files, options and assignments to a `RunConfig`, and back to JSON.

Order of precedence: preset < `--config FILE` < command-line options < `--set key=value`. Unknown keys are
errors that name the nearest known one. Pure Python: the command line builds and checks a config without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from diticli.config import RunConfig
from diticli.errors import ConfigError
from diticli.reading import quoted, read_regular, shortened


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("diticli") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def build_config(
    preset: str,
    *,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: tuple[str, ...] = (),
) -> RunConfig:
    """Merge a preset, a TOML or JSON file, options (dotted keys) and `key=value` assignments.

    Raises:
        ConfigError: for an unknown preset or key, an unreadable file, or an impossible value.
    """
    if preset not in preset_names():
        raise ConfigError(
            f"There is no preset {quoted(preset)}.", remedy=f"Choose one of: {', '.join(preset_names())}."
        )
    text = (resources.files("diticli") / "presets" / f"{preset}.toml").read_text()
    merged: dict[str, Any] = _merge({"preset": preset}, tomllib.loads(text))
    if file is not None:
        merged = _merge(merged, read_settings(file))
    for key, value in (options or {}).items():
        merged = _merge(merged, _nest(key, value))
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {quoted(assignment)} has no '='.", remedy="Write --set features.batch_size=64.")
        merged = _merge(merged, _nest(key.strip(), literal(value.strip())))
    return from_dict(RunConfig, merged)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON form, read back by `from_dict(RunConfig, ...)`."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def from_dict(cls: type[Any], data: Mapping[str, Any], prefix: str = "") -> Any:
    """Build a config dataclass from nested dictionaries, checking every key and type.

    Raises:
        ConfigError: naming the key and what it should be.
    """
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.55)
            raise ConfigError(
                f"Unknown setting {quoted(prefix + key)}.",
                remedy=f"Did you mean {quoted(prefix + near[0])}?" if near else f"Known here: {', '.join(known)}.",
            )
    values = {key: _convert(hints[key], value, prefix + key) for key, value in data.items()}
    return cls(**values)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"{key} is a group of settings, got {quoted(value)}.", remedy=f"Set one of it, {key}.NAME=VALUE."
            )
        return from_dict(cast(type, kind), value, prefix=f"{key}.")
    origin = get_origin(kind)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in get_args(kind)):
            choices = ", ".join(map(_spelt, get_args(kind)))
            raise ConfigError(f"{key} is one of {choices}; got {quoted(value)}.", remedy="Choose one of these.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or not all(_is_int(v) for v in value):
            raise ConfigError(f"{key} is a list of whole numbers, got {quoted(value)}.", remedy="Write e.g. 32,64.")
        return tuple(value)
    if origin in (Union, types.UnionType):
        return _pair(value, key) if tuple[float, float] in get_args(kind) and value is not None else value
    if kind is float and _is_int(value):
        return float(value)
    if kind is int and not _is_int(value):
        raise ConfigError(f"{key} is a whole number, got {quoted(value)}.", remedy=f"Write e.g. {key}=8.")
    if not isinstance(value, kind):
        example = {bool: "true", float: "0.5"}.get(kind, "a word")
        raise ConfigError(f"{key} is a {kind.__name__}, got {quoted(value)}.", remedy=f"Write e.g. {key}={example}.")
    return value


def _pair(value: Any, key: str) -> tuple[float, float]:
    numbers = isinstance(value, list | tuple) and len(value) == 2
    if not numbers or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        raise ConfigError(f"{key} is a pair of numbers, got {quoted(value)}.", remedy=f"Write e.g. {key}=0,4095.")
    return float(value[0]), float(value[1])


def _spelt(value: Any) -> str:
    """A choice as TOML and JSON write it, without quotes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_settings(file: Path) -> dict[str, Any]:
    """Settings of a TOML or JSON file (a run's config.json keeps them under "config").

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        text = read_regular(file).decode()
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        settings: dict[str, Any] = data.get("config", data) if isinstance(data, dict) else data
        if not isinstance(settings, dict):
            raise ValueError("it holds no group of settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"Cannot read the settings in {file}: {shortened(error)}.", remedy="Give a TOML or JSON file."
        ) from error
    return settings


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def literal(text: str) -> Any:
    """The value of an assignment: a TOML value; what is not one is a plain string. Commas make a list."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if "," in text:
            return [literal(part) for part in text.split(",")]
        return text


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
