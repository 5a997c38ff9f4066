"""From a name to a folder: one on this machine, or a snapshot of a Hub repository."""

from __future__ import annotations

from pathlib import Path

from diticli.errors import ModelError

# Neither code nor pickles are ever fetched.
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
