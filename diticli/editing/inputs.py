"""The images of an edit: files, and the built-in faces as faces:INDEX[:SEED]."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from diticli.errors import ConfigError, DataError

if TYPE_CHECKING:
    from PIL import Image

    from diticli.data.decode import Crop


def face_of(source: str) -> re.Match[str] | None:
    """The parts of faces:INDEX[:SEED]; a file of that name comes first."""
    # os.path, unlike Path, takes a name that no file system could hold for one of no file.
    return None if os.path.exists(source) else re.fullmatch(r"faces:(\d{1,18})(?::(\d{1,19}))?", source)


def check_source(source: str) -> None:
    """Fail before a model is loaded.

    Raises:
        ConfigError: for a built-in face that cannot be read.
        DataError: for a file that does not exist, or a folder.
    """
    if face_of(source) or os.path.isfile(source):
        return
    if source == "faces" or source.startswith("faces:"):
        raise ConfigError(f"Cannot read the face {source!r}.", remedy="Write faces:INDEX or faces:INDEX:SEED.")
    what = "is a folder, not an image" if os.path.isdir(source) else "does not exist"
    raise DataError(f"{source} {what}.", remedy="Give an image file, or a built-in face such as faces:3.")


def read_source(source: str, resolution: int, crop: Crop, *, seed: int = 0) -> Image.Image:
    """The image, cropped and resized as in training.

    Args:
        source: a file, or a built-in face.
        resolution: of the model.
        crop: of the model.
        seed: of a face that names none.

    Raises:
        DataError: when it cannot be read.
    """
    from PIL import Image

    if face := face_of(source):
        from diticli.data.faces import render_face, sample_factors

        factors = sample_factors(int(face[2] or seed), [int(face[1])])
        return Image.fromarray(render_face(factors[0], resolution))
    check_source(source)
    from diticli.data.images import decode_image

    return Image.fromarray(decode_image(Path(source), resolution, crop=crop))


def source_name(source: str) -> str:
    """What to call it in a caption."""
    return source if face_of(source) else Path(source).name


def source_digest(source: str, *, seed: int = 0) -> str:
    """SHA-256 (first 16 hex digits) of a file's bytes, or of what names a face."""
    face = face_of(source)
    data = f"faces:{face[1]}:{face[2] or seed}".encode() if face else Path(source).read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
