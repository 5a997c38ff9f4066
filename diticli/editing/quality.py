"""Warnings about edits that show something else than they seem to: images that the model does not reconstruct, and
chunks without effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from diticli.chunks import ChunkLayout
from diticli.data.decode import picture_size
from diticli.data.faces_word import IN_WORDS, is_faces
from diticli.editing.results import SIDES, Edit, EditResult, decibels
from diticli.editing.settings import EditSettings
from diticli.sampling.defaults import DEFAULT_STEPS
from diticli.training.advice import short_training

LEAST_PSNR = 20.0
"""dB below which a reconstruction is another picture than the original."""
FAR_BELOW = 10.0
"""dB below the model's own reconstructions from which something is wrong: 10 times the squared error."""
LEAST_CHANGE = 1.0
"""Grey levels of 255, on average, below which nobody sees an edit."""
ENOUGH_STEPS = {"dpm": DEFAULT_STEPS, "ddim": 100}


class KnownModel(Protocol):
    """What is known of a model; a `DiTiModel`."""

    @property
    def chunks(self) -> ChunkLayout:
        """Its chunks."""

    @property
    def usual_psnr(self) -> float | None:
        """dB of reconstructions of its own images, the least of them; None where nobody measured it."""

    @property
    def usual_range(self) -> tuple[float, float, int] | None:
        """(low, high, images): these dB of the middle half of so many images; None where nobody measured it."""

    @property
    def transfer_rates(self) -> Mapping[str, float]:
        """Attribute -> share that an exchange of all chunks transfers, as far as it was measured."""

    @property
    def trained_on(self) -> str:
        """Its own images in words, or ""."""

    @property
    def trained_images(self) -> int | None:
        """How many of them stage 2 saw; None where no run says so."""


def reconstruction_warnings(psnr: Mapping[str, float], settings: EditSettings, model: KnownModel) -> list[str]:
    """Warnings about reconstructions that are bad, or far worse than those of the model's own images.

    Args:
        psnr: dB by image.
        settings: how they were made.
        model: that made them.
    """
    usual = model.usual_psnr
    bad = [name for name, value in psnr.items() if value < LEAST_PSNR]
    far = [name for name, value in psnr.items() if usual is not None and value < usual - FAR_BELOW]
    poor = list(dict.fromkeys([*bad, *far]))
    if not poor:
        return []
    worst = min(poor, key=lambda name: psnr[name])
    others = f" (the worst of {len(poor)} such images)" if len(poor) > 1 else ""
    beside = f", where {_usual(model)}" if worst in far else ""
    consequence = " Edits show that error, not what was changed." if bad else ""
    cause = _cause(settings, model, as_usual=usual is not None and not far)
    return [f"{worst}{others}: the reconstruction has {decibels(psnr[worst])} PSNR{beside}.{consequence} {cause}"]


SEEN = 64
"""Images that are looked at, whether they are photographs."""


def photo_warning(sources: Sequence[str], model: KnownModel) -> str:
    """What is to be said before photographs are given to a model of cartoon faces; "" where none seems to be one.

    A file is taken for a photograph where it is a JPEG or no square: drawn faces are square PNGs.
    """
    if model.trained_on != IN_WORDS:
        return ""
    photos = [source for source in sources[:SEEN] if not is_faces(source) and _like_a_photo(Path(source))]
    if not photos:
        return ""
    one = len(photos) == 1
    which = f"{Path(photos[0]).name} looks like a photograph" if one else f"{len(photos)} images look like photographs"
    return (
        f"{which}, and this model knows drawn faces only: photographs come back changed, and edits of "
        "them mean little. Train a model on photographs: diti train --data FOLDER."
    )


def _like_a_photo(path: Path) -> bool:
    size = picture_size(path)
    return size is not None and (path.suffix.lower() in (".jpg", ".jpeg") or size[0] != size[1])


def effect_warnings(result: EditResult) -> list[str]:
    """A warning for each set of chunks whose exchange nobody sees in either image."""
    return [
        f"Exchanging {result.layout.describe(chunks)} changes both images by less than {LEAST_CHANGE:g} of 255 grey "
        "levels: what differs between them is in other chunks. --grid shows all of them."
        for chunks in unseen(result)
    ]


def overview_note(result: EditResult) -> str:
    """Which rows of an overview show nothing, in a sentence; "" where all show something."""
    rows = [result.layout.describe(chunks) for chunks in unseen(result)]
    if not rows:
        return ""
    return f"Rows without a visible change (less than {LEAST_CHANGE:g} of 255 grey levels): {', '.join(rows)}."


def unseen(result: EditResult) -> list[tuple[int, ...]]:
    """The sets of chunks whose exchange nobody sees in either image."""
    alpha = max(result.alphas, key=abs)
    images = dict(zip(SIDES, result.reconstructions.astype(np.float32), strict=True))

    def change(chunks: tuple[int, ...]) -> float:
        return max(float(np.abs(result.edits[Edit(s, chunks, alpha)] - images[s]).mean()) for s in SIDES)

    return [chunks for chunks in (result.chunk_sets if alpha else ()) if change(chunks) < LEAST_CHANGE]


def _usual(model: KnownModel) -> str:
    least = decibels(model.usual_psnr or 0.0)
    if model.usual_range is None:
        return f"{least} is usual for this model"
    low, high, images = model.usual_range
    return f"{low:.0f} to {high:.0f} dB are usual for this model (the worst of {images} images had {least})"


def _cause(settings: EditSettings, model: KnownModel, *, as_usual: bool) -> str:
    """`as_usual`: its own images come back no better."""
    timesteps = model.chunks.timesteps
    images = f", such as {model.trained_on}" if model.trained_on else ""
    steps, enough = min(settings.steps_run(timesteps)), min(ENOUGH_STEPS[settings.solver], timesteps - 1)
    if steps < enough:
        return (
            f"{steps} steps of {settings.solver} are too few: use --steps {enough}. Where that changes little, the "
            f"images are unlike those that the model was trained on{images}."
        )
    short = short_training(model.trained_images, faces=model.trained_on == IN_WORDS)
    cause = (
        f"The model gives its own images back no better ({decibels(model.usual_psnr or 0.0)})."
        if as_usual
        else f"The model gives back well only images like those it was trained on{images}."
    )
    return f"{cause} {short}".strip()
