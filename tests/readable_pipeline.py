"""A stand-in for `DiTiPipeline` whose pictures say what was changed."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from diticli.chunks import ChunkLayout

SIZE = 8
LAYOUT = ChunkLayout.uniform(chunks=4, latent_dim=SIZE)


class ReadablePipeline:
    """Red shows z (column d is dim d), green shows x_T, blue is black."""

    chunks = LAYOUT
    resolution = SIZE
    crop = "center"
    reading: ClassVar[dict[str, Any]] = {"crop": "center", "value_range": None, "channels": 3}
    model_hash = "0123456789abcdef"
    model_id = "readable"
    origin = known_as = "readable (--model)"
    trained_on = ""
    usual_psnr: float | None = None
    usual_range = None
    transfer_rates: ClassVar[dict[str, float]] = {}
    trained_images: int | None = None

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.inverted: list[int] = []
        self.samplers: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}

    def hash_like(self, recorded):
        return self.model_hash

    def preprocess(self, images):
        arrays = np.stack([np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in images])
        return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1

    def encode(self, images):
        return images[:, 0, 0, :].clone()

    def sampler(self, **options):
        self.options = options
        return self

    def invert(self, images, z, steps=100, *, callback=None):
        assert torch.equal(z, self.encode(images))  # each image under its own features
        self.samplers.append(self.options)
        self.inverted.append(len(images))
        self.inverted_with = steps
        for step in range(steps if callback else 0):
            callback(step + 1, steps)
        return images.clone()

    def decode(self, x_T, z, steps=100, *, callback=None):
        self.batches.append(len(z))
        self.samplers.append(self.options)
        for step in range(steps if callback else 0):
            callback(step + 1, steps)
        out = torch.full_like(x_T, -1.0)
        out[:, 0] = z[:, None, :]
        out[:, 1] = x_T[:, 1]
        return out


class Recorder:
    """A reporter that remembers [title, total, done] of each task, and what it was warned of."""

    def __init__(self) -> None:
        self.tasks: list[list[Any]] = []
        self.warnings: list[str] = []

    def start(self, title, total, unit="images", done=0):
        self.tasks.append([title, total, done])

    def advance(self, amount=1, **fields):
        self.tasks[-1][2] += amount

    def finish(self):
        pass

    def note(self, message):
        pass

    def warn(self, message):
        self.warnings.append(message)


def picture(red, green) -> Image.Image:
    pixels = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = red, green
    return Image.fromarray(pixels)


A, B = picture(np.arange(SIZE) * 10, 200), picture(np.arange(SIZE) * 10 + 100, 40)
