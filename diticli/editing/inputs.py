"""The images of an edit: files, and the built-in faces as faces:INDEX[:SEED]."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from diticli.data.faces_word import FacesWord, faces_beside, is_faces, parse_faces
from diticli.errors import ConfigError, DataError
from diticli.progress import Reporter

if TYPE_CHECKING:
    from PIL import Image

    from diticli.config_groups import Crop, ValueRange


def face_of(source: str) -> FacesWord | None:
    """Which built-in face faces:INDEX[:SEED] means; None for a file."""
    face = parse_faces(source)
    return None if face is None or face.number is None else face


def check_source(source: str, reporter: Reporter | None = None) -> None:
    """Fail before a model is loaded.

    Args:
        source: a file, or a built-in face.
        reporter: receiver of a warning where a file is called like a built-in face.

    Raises:
        ConfigError: for a built-in face that cannot be read.
        DataError: for a file that does not exist, or a folder.
    """
    if face_of(source):
        if reporter is not None and (beside := faces_beside(source)):
            reporter.warn(beside)
        return
    if is_faces(source):
        raise ConfigError(
            f"Cannot read the face {source!r}.",
            remedy=f"Write faces:INDEX or faces:INDEX:SEED; write ./{source} for a file of that name.",
        )
    if os.path.isfile(source):
        return
    what = "is a folder, not an image" if os.path.isdir(source) else "does not exist"
    raise DataError(f"{source} {what}.", remedy="Give an image file, or a built-in face such as faces:3.")


def read_source(
    source: str,
    resolution: int,
    crop: Crop,
    *,
    seed: int = 0,
    value_range: ValueRange | None = None,
    channels: int = 3,
) -> Image.Image:
    """The image, cropped and resized as in training.

    Args:
        source: a file, or a built-in face.
        resolution: of the model.
        crop: of the model.
        seed: of a face that names none.
        value_range: black and white of a picture of more than 8 bits; None: 16 bits.
        channels: of the model.

    Raises:
        DataError: when it cannot be read.
    """
    from PIL import Image

    face = parse_faces(source)
    if face is not None and face.number is not None:
        from diticli.data.faces import render_face, sample_factors

        factors = sample_factors(seed if face.seed is None else face.seed, [face.number])
        drawn = Image.fromarray(render_face(factors[0], resolution))
        return drawn if channels == 3 else drawn.convert("L")
    check_source(source)
    from diticli.data.images import decode_image

    pixels = decode_image(Path(source), resolution, crop=crop, value_range=value_range, channels=channels)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def resizing(source: str, resolution: int, crop: Crop) -> str:
    """How a file becomes what the model sees, e.g. "a.jpg: 712x872 -> centre square -> 32 px"; "" where it is that."""
    from diticli.data.decode import picture_size
    from diticli.data.square import cut_and_resized

    size = None if face_of(source) else picture_size(Path(source))
    if size is None or not (done := cut_and_resized(*size, resolution, crop)):
        return ""
    return f"{source_name(source)}: {size[0]}x{size[1]}{done}."


def source_name(source: str) -> str:
    """What to call it in a caption."""
    return source if face_of(source) else Path(source).name


def slug(text: str) -> str:
    """A text as a part of a file name: letters, digits, dots, dashes and underscores, at most 60 of them."""
    return re.sub(r"[^\w.-]+", "-", text).strip(".-")[:60] or "x"


def image_stems(names: Sequence[str]) -> list[str]:
    """A distinct part of a file name for each image: a slug of its name, numbered where that repeats."""
    slugs = [slug(PurePath(name).stem if "." in name else name) for name in names]
    return [stem if slugs.count(stem) == 1 else f"{stem}-{i}" for i, stem in enumerate(slugs)]


def source_digest(source: str, *, seed: int = 0) -> str:
    """SHA-256 (first 16 hex digits) of a file's bytes, or of what names a face."""
    face = face_of(source)
    data = (
        f"faces:{face.number}:{seed if face.seed is None else face.seed}".encode()
        if face
        else Path(source).read_bytes()
    )
    return hashlib.sha256(data).hexdigest()[:16]
