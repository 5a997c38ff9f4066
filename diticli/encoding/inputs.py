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
FEWEST = 3
"""Images from which on some are looked at: that takes nearly as long as all the rest of encoding one, and `diti probe`
takes no fewer than these."""
PIXELS = {"cpu": LOOKED_AT * 32**2, "cuda": LOOKED_AT * 128**2}
"""Of all of them together: by the shipped model they take about a second."""
STEPS = (DEFAULT_STEPS // 2, DEFAULT_STEPS)
"""Each way. Images that come back well in few steps need no more; only those of the last ones are spoken of."""


def input_warnings(model: DiTiModel, source: ImageSource) -> list[str]:
    """What `diti edit` would say of the reconstructions of a few of these images.

    None of an encoder without a base, of built-in faces by a model of such, of fewer than `FEWEST`, and where even a
    single image is too large to be looked at by the way.

    Args:
        model: that encodes.
        source: the images.
    """
    count = min(LOOKED_AT, len(source), PIXELS.get(model.device.type, PIXELS["cpu"]) // model.resolution**2)
    own = isinstance(source, FaceImages) and model.trained_on == IN_WORDS
    if model.unet is None or own or not count or len(source) < FEWEST:
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
    sampler = model.sampler(**EditSettings().sampler_kwargs())
    warnings: list[str] = []
    for steps in dict.fromkeys(min(steps, model.chunks.timesteps - 1) for steps in STEPS):
        settings = EditSettings(invert_steps=steps, decode_steps=steps)
        back = reconstruct(model, images, noises=("keep",), settings=settings, names=list(pixels), sampler=sampler)
        psnr = dict(zip(back.names, back.psnr["keep"], strict=True))
        if not (warnings := reconstruction_warnings(psnr, settings, model)):
            break
    looked = f" ({len(pixels)} of {len(source):,} images were decoded from their features to see it.)"
    return [warning + looked for warning in warnings]
