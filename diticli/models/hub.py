"""From a name to a folder: one on this machine, or a snapshot of a Hub repository."""

from __future__ import annotations

import json
from pathlib import Path

from diticli.errors import ModelError

# Neither code nor pickles are ever fetched.
_TRUSTED_LIBRARIES = {"diffusers", "diticli"}
_PATTERNS = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]


def local_folder(name: str) -> Path:
    """Folder of a model named by a path or a Hub id; what is cached is used when the Hub is out of reach.

    Raises:
        ModelError: when there is neither.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{name} is a file.", remedy="Give the folder of the model.")
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except HFValidationError as error:
        raise ModelError(f"There is no folder {name!r}, and it is not a Hub id.", remedy="Check the path.") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"There is no model {name!r} here or on the Hub: {first_line(error)}",
            remedy="Check the path or the id, or train one with `diti train`.",
        ) from error


def first_line(error: BaseException) -> str:
    """First line of an exception's text, for a one-line message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
        entries = dict(json.loads(index.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"Cannot read {index}: {first_line(error)}", remedy="Train or copy it again.") from error
    # Lists name [library, class]; diffusers would also take code from a .py file beside the weights.
    named = {str(v[0]) for v in entries.values() if isinstance(v, list) and v and v[0] is not None}
    code = sorted(str(p.relative_to(folder)) for p in (*folder.glob("*.py"), *folder.glob("*/*.py")))
    if foreign := sorted(named - _TRUSTED_LIBRARIES) + code:
        raise ModelError(
            f"{index} names code outside diffusers and diticli: {foreign}.",
            remedy="This is not a DiTi model; refuse it.",
        )
