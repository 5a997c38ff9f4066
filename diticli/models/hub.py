"""From a name to a folder: one on this machine, or a snapshot of a Hub repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

from diticli.errors import ModelError
from diticli.reading import check_regular, parse_json, quoted, read_regular, shortened

# Neither code nor pickles are ever fetched.
_TRUSTED_LIBRARIES = {"diffusers", "diticli"}
# Of diffusers, no class that loads parts of its own: a pipeline within a pipeline has an index that nobody checks.
_TRUSTED_PARTS = re.compile(r"UNet2DModel|[A-Z][A-Za-z0-9]*Scheduler")
_SHARD = re.compile(r"[^/\\\x00]+\.safetensors")
RUNS = Path("runs")
"""Where `diti train` puts its runs unless told otherwise."""
SHIPPED = "shipped"
"""Names the model that comes with the package wherever a model or a base is asked for (a folder: ./shipped)."""
SHIPPED_FOLDER = Path(__file__).parents[1] / SHIPPED
_KINDS = ("*.json", "*.safetensors")
_DEPTHS = ("", "*/", "*/*/")
_WEIGHTS = re.compile(r"diffusion_pytorch_model[^/]*\.safetensors")
_INDEX = re.compile(r"\.index(\.[^/]*)?\.json$")
_PATTERNS = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]


def local_folder(name: str) -> Path:
    """Folder of a model named by a path, a Hub id or "shipped"; what is cached is used when the Hub is out of reach.

    Raises:
        ModelError: when there is none of them, or its lists of weights name files elsewhere.
    """
    if name == SHIPPED:
        if not has_shipped():
            raise ModelError(
                "This installation of diticli has no shipped model.",
                remedy="Reinstall it from a release, or make the model: `make model` (hours on a CPU).",
            )
        return _checked(SHIPPED_FOLDER)
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return _checked(Path(path))
    if os.path.exists(path):
        raise ModelError(f"{name} is a file.", remedy="Give the folder of the model.")
    # Imported here: for a folder nobody should wait for an HTTP client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(name, allow_patterns=_PATTERNS)))
    except HFValidationError as error:
        raise _not_found(name, "and it is not an id of the Hugging Face Hub") from error
    except LocalEntryNotFoundError as error:
        reason = shortened(first_line(error.__cause__ or error))
        tried = f"no download of that id, and the Hugging Face Hub cannot be reached ({reason})"
        raise _not_found(name, tried) from error
    except (OSError, ValueError) as error:
        raise _not_found(name, f"and none on the Hugging Face Hub ({shortened(first_line(error))})") from error


def _not_found(name: str, tried: str) -> ModelError:
    """What was tried, and what to give instead."""
    meant = SHIPPED if name.lower() == SHIPPED else str(RUNS / name)
    asked = f"Did you mean {meant}? " if meant == SHIPPED or os.path.isdir(meant) else ""
    choices = f"Give the folder of a model or of a run, a Hub id, or {SHIPPED}, the model that comes with diti."
    return ModelError(f"There is no folder {quoted(name)}, {tried}.", remedy=asked + choices)


def has_shipped() -> bool:
    """Whether the package holds its model: a checkout may not."""
    return (SHIPPED_FOLDER / "model_index.json").is_file()


def _checked(folder: Path) -> Path:
    """The folder, when its configs and weights are regular files, and the lists of weights in it (of parts split over
    files) name plain safetensors beside them.

    Diffusers would follow any path, and unpickle what is no safetensors.
    """
    files = sorted({found for depth in _DEPTHS for kind in _KINDS for found in folder.glob(depth + kind)})
    for file in files:
        try:
            check_regular(file)
        except OSError as error:
            raise ModelError(f"Cannot read {file}: {error.strerror}.", remedy="Copy the model again.") from error
    for file in files:
        if _WEIGHTS.fullmatch(file.name) and (odd := _no_weights(file)):
            raise ModelError(f"{file} holds {odd}, which are no weights.", remedy="Copy the model again, or refuse it.")
    for index in (file for file in files if _INDEX.search(file.name)):
        try:
            named = set(parse_json(read_regular(index))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"Cannot read {index}: {first_line(error)}", remedy="Copy it again.") from error
        if foreign := sorted(str(file) for file in named if not _SHARD.fullmatch(str(file))):
            raise ModelError(
                f"{index} names files that are no weights beside it: {quoted(foreign[:3])}.", remedy="Refuse it."
            )
    return folder


def _no_weights(file: Path) -> str:
    """Name and type of the first tensor that is not of floating-point numbers; empty where there is none.

    Diffusers would convert whole numbers, truth values and complex numbers without a word.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            types = ((name, opened.get_slice(name).get_dtype()) for name in opened.keys())  # noqa: SIM118
            return next((f"{quoted(name)} of {kind}" for name, kind in types if not re.match("B?F[0-9]", kind)), "")
    except (OSError, SafetensorError):
        return ""  # whoever loads it says what is wrong


def first_line(error: BaseException) -> str:
    """First line of an exception's text, for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def pipeline_folder(name: str) -> Path:
    """Folder of the pipeline that a path, a run directory or a Hub id names, checked by `check_index`.

    Raises:
        ModelError: when there is none, or it is no pipeline of ours.
    """
    folder = local_folder(name)
    if (folder / "model" / "model_index.json").is_file():
        folder = folder / "model"
    check_index(folder)
    return folder


def check_index(folder: Path) -> None:
    """Refuse a folder that is no pipeline of ours.

    Raises:
        ModelError: when it has no index, or one that names code outside diffusers and diticli.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{folder} holds no model (no model_index.json).",
            remedy="Give a run directory of `diti train`, a folder saved with save_pretrained, or a Hub id.",
        )
    try:
        entries = dict(parse_json(read_regular(index)))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"Cannot read {index}: {first_line(error)}", remedy="Train or copy it again.") from error
    # Lists name [library, class]; diffusers would also take code from a .py file beside the weights.
    parts = [v for v in entries.values() if isinstance(v, list) and v and v[0] is not None]
    foreign = sorted({str(part[0]) for part in parts} - _TRUSTED_LIBRARIES)
    foreign += sorted(".".join(map(str, p)) for p in parts if p[0] == "diffusers" and not _is_trusted(p))
    if foreign := foreign + sorted(str(p.relative_to(folder)) for p in folder.rglob("*.py")):
        raise ModelError(
            f"{index} names code outside diffusers and diticli, or parts of no DiTi model: {quoted(foreign)}.",
            remedy="This is not a DiTi model; refuse it.",
        )


def _is_trusted(part: list[object]) -> bool:
    return len(part) == 2 and _TRUSTED_PARTS.fullmatch(str(part[1])) is not None
