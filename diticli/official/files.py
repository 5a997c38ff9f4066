"""Where an official run keeps its checkpoint and configs, and how they are read without running anything in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError  # only to catch what torch raises
from typing import Any, NamedTuple

import torch
import yaml

from diticli.errors import ModelError
from diticli.reading import check_regular, read_regular, shortened

_PREFIXES = ("module.", "_orig_mod.")
_MAX_YAML = 2**18
"""Bytes; the official configs have about a thousand."""
_PARENTS = 3
"""Folders above a run that its config may name a file in: the official code keeps them in PROJECT/runs/DATA/NAME."""


class OfficialFiles(NamedTuple):
    """A checkpoint and the folder of the run it belongs to."""

    root: Path
    checkpoint: Path


def locate(official: Path) -> OfficialFiles:
    """The checkpoint of a run folder (`checkpoints/*.pt` or `*.pt`), or a `.pt` file itself.

    Of several, `latest` comes first, then `checkpoint`, then the highest step in a name, then the newest.

    Raises:
        ModelError: when there is none.
    """
    if official.is_file():
        return OfficialFiles(_root(official.parent), official)
    if not official.is_dir():
        raise ModelError(f"{official} does not exist.", remedy="Give an official run's folder or its .pt file.")
    root = _root(official)
    found = [path for path in (*(root / "checkpoints").glob("*.pt"), *root.glob("*.pt")) if path.is_file()]
    if not found:
        raise ModelError(
            f"{official} holds no checkpoint: neither checkpoints/*.pt nor *.pt.",
            remedy="Give an official run's folder (config.yml with checkpoints/latest.pt) or its .pt file.",
        )
    return OfficialFiles(root, max(found, key=_rank))


def _root(folder: Path) -> Path:
    return folder.resolve().parent if folder.resolve().name == "checkpoints" else folder


def _rank(checkpoint: Path) -> tuple[int, int, float]:
    step = re.search(r"(\d+)k?$", checkpoint.stem)
    named = {"latest": 2, "checkpoint": 1}.get(checkpoint.stem, 0)
    return named, int(step[1]) if step else -1, checkpoint.stat().st_mtime


def run_config(files: OfficialFiles) -> dict[str, Any]:
    """The run's `config.yml`.

    Raises:
        ModelError: when there is none, or it cannot be read.
    """
    for folder in (files.root, files.checkpoint.parent):
        if (folder / "config.yml").is_file():
            return read_yaml(folder / "config.yml")
    raise ModelError(
        f"There is no config.yml in {files.root}.", remedy="Put the run's config.yml beside its checkpoint."
    )


def dpm_config(files: OfficialFiles, named: str | None, given: Path | None) -> tuple[Path, dict[str, Any]]:
    """The pre-trained DPM's config, and where it was found.

    Args:
        files: the run.
        named: `trained_ddpm_config` of the run's config, a YAML file relative to the run, to the three folders above
            it, to the working folder or the one above. Other names are passed over: a stranger's config opens no
            file of its choice.
        given: looked at instead of all that.

    Raises:
        ModelError: when no file with a `denoise_fn_config` is found; it names the places.
    """
    places = [given] if given else list(dict.fromkeys(_places(files, named)))
    for path in places:
        if path.is_file():
            config = read_yaml(path)
            if isinstance(config.get("denoise_fn_config"), dict):
                return path, config
    listed = "\n".join(f"  {path}{' (has no denoise_fn_config)' if path.is_file() else ''}" for path in places)
    raise ModelError(
        f"The config of the pre-trained diffusion model is not to be found. Looked at:\n{listed}",
        remedy="Name it with --ddpm-config, or put it beside the checkpoint as ddpm_config.yml.",
    )


def _places(files: OfficialFiles, named: str | None) -> Iterator[Path]:
    if near := _near(named):
        root, here = files.root.resolve(), Path.cwd()
        yield from (folder / near for folder in (root, *list(root.parents)[:_PARENTS], here, here.parent))
    for folder in (files.checkpoint.parent, files.root):
        yield from (folder / "ddpm_config.yml", folder / "config.yml")


def _near(named: object) -> PurePosixPath | None:
    """The named YAML file without the leading `..` of official configs; None for a name that may not be followed."""
    if not isinstance(named, str) or ":" in named or "\\" in named or "\0" in named or len(named) > 1000:
        return None
    parts = PurePosixPath(named).parts
    while parts and parts[0] == "..":
        parts = parts[1:]
    inside = bool(parts) and parts[0] != "/" and ".." not in parts and parts[-1].endswith((".yml", ".yaml"))
    return PurePosixPath(*parts) if inside else None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values.

    Raises:
        ModelError: when it cannot be read, is larger than any config, repeats parts by YAML's aliases, which may stand
            for any number of values, asks for Python objects, or is no mapping. Its contents are not quoted.
    """
    try:
        data = read_regular(path)
        if len(data) > _MAX_YAML:
            raise ValueError(f"it has {len(data):,} bytes, more than any config")
        text = data.decode("utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it uses YAML aliases (*name), which are not read")
        config = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"Cannot read {path}: {_reason(error)}.", remedy="Copy the run's config again.") from error
    if not isinstance(config, dict):
        raise ModelError(
            f"{path} is not an official config: it holds no settings.", remedy="Copy the run's config again."
        )
    return config


def _reason(error: Exception) -> str:
    """Why, in one line, without the lines of the file that PyYAML quotes."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, {shortened(error.problem)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__ if isinstance(error, UnicodeDecodeError | RecursionError) else shortened(error)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents, mapped from the disk rather than read where its format allows.

    Raises:
        ModelError: for a damaged file, and for one whose pickle wants to create anything but tensors.
    """
    try:
        check_regular(path)
        content = _torch_load(path)
    except UnpicklingError as error:
        raise _refusal(path, error) from error
    except OSError as error:
        raise ModelError(
            f"Cannot read {path}: {error.strerror or error}.",
            remedy="Check that the file exists and that you may read it.",
        ) from error
    except (RuntimeError, ValueError, EOFError, LookupError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} is not an official checkpoint: it holds a {type(content).__name__}.",
            remedy="Give the checkpoint.pt that the official training wrote.",
        )
    return content


def _refusal(path: Path, error: UnpicklingError) -> ModelError:
    wanted = re.search(r"GLOBAL ([\w.]+\w)", str(error))
    if wanted is None:
        return _damaged(path)
    return ModelError(
        f"{path} is refused: its pickle wants the Python object {wanted[1]}, and unpickling objects can run any code.",
        remedy="If you trust its source, save it again there with nothing in it but tensors, numbers and text.",
    )


def _damaged(path: Path) -> ModelError:
    return ModelError(f"{path} is damaged, or no PyTorch checkpoint.", remedy="Copy it again.")


def _torch_load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before PyTorch 1.6


def state_dict(content: Mapping[str, Any], name: str, *, ema: bool) -> dict[str, torch.Tensor]:
    """The weights `ema_NAME` or `NAME`, without the prefixes of DDP and torch.compile.

    Raises:
        ModelError: when they are not there, or are no state dict.
    """
    key, other = (f"ema_{name}", name) if ema else (name, f"ema_{name}")
    state = content.get(key)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        remedy = f"Use {'--raw' if ema else '--ema'}." if other in content else "Give another checkpoint."
        raise ModelError(
            f"The checkpoint has no weights {key}; it has {shortened(', '.join(map(str, content)))}.", remedy=remedy
        )
    stripped = {_strip(k): v for k, v in state.items()}
    if len(stripped) != len(state):
        raise ModelError(
            f"Tensors of {key} differ only in the prefixes {' and '.join(_PREFIXES)}.",
            remedy="Save the weights again, once.",
        )
    return stripped


def _strip(name: str) -> str:
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name
