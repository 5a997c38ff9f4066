"""Whether images are like those that a model was trained on, by the reconstructions of a few of them."""

from __future__ import annotations

from PIL import Image

from diticli.data.faces_word import IN_WORDS
from diticli.data.images import FaceImages, ImageSource, iter_decoded
from diticli.editing.quality import reconstruction_warnings
from diticli.editing.reconstruct import reconstruct
from diticli.editing.settings import EditSettings
from diticli.errors import UnreadableImageError
from diticli.models.model import DiTiModel
from diticli.sampling.defaults import DEFAULT_STEPS

LOOKED_AT = 2
PIXELS = {"cpu": LOOKED_AT * 32**2, "cuda": LOOKED_AT * 128**2}
"""Of all of them together: by the shipped model they take about a second."""


def input_warnings(model: DiTiModel, source: ImageSource) -> list[str]:
    """What `diti edit` would say of the reconstructions of a few of these images.

    None of an encoder without a base, of built-in faces by a model of such, and where even a single image is too large
    to be looked at by the way.

    Args:
        model: that encodes.
        source: the images.
    """
    count = min(LOOKED_AT, len(source), PIXELS.get(model.device.type, PIXELS["cpu"]) // model.resolution**2)
    own = isinstance(source, FaceImages) and model.trained_on == IN_WORDS
    if model.unet is None or own or not count:
        return []
    spread = [len(source) * place // count for place in range(count)]
    pixels = {
        source.file_name(index): found
        for index, found in iter_decoded(source, spread, workers=0)
        if not isinstance(found, UnreadableImageError)
    }
    if not pixels:
        return []
    images = [Image.fromarray(found if model.channels == 3 else found[..., 0]) for found in pixels.values()]
    steps = min(DEFAULT_STEPS, model.chunks.timesteps - 1)
    settings = EditSettings(invert_steps=steps, decode_steps=steps)
    back = reconstruct(model, images, noises=("keep",), settings=settings, names=list(pixels))
    looked = f" ({len(pixels)} of {len(source):,} images were decoded from their features to see it.)"
    psnr = dict(zip(back.names, back.psnr["keep"], strict=True))
    return [warning + looked for warning in reconstruction_warnings(psnr, settings, model)]
