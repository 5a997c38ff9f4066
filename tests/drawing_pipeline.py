"""A stand-in for a trained model, whose edits are perfect by construction, and a reader that cannot be wrong."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from diticli.chunks import ChunkLayout
from diticli.data.faces import FACTORS, render_face, sample_factors
from diticli.evaluation.images import EvaluationImages
from diticli.targets import Target

SIDE = 32


class DrawingPipeline:
    """A perfect editor: features are the true factors, one chunk each, and decoding draws them."""

    model_id, model_hash, origin, resolution = "drawn", "0", "drawn (--model)", SIDE
    usual_psnr, usual_range, trained_on, trained_images = None, None, "", None
    chunks = ChunkLayout.uniform(chunks=len(FACTORS), latent_dim=len(FACTORS))

    def __init__(self, images: EvaluationImages) -> None:
        self.images = images
        self.seen: dict[bytes, np.ndarray] = {}

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        count = len(self.images.judge_NCHW)
        return torch.from_numpy(self.images.factors if len(images) == count else sample_factors(2, range(len(images))))

    def sampler(self, **_: Any) -> DrawingPipeline:
        return self

    def invert(self, images: torch.Tensor, z: torch.Tensor, **_: Any) -> torch.Tensor:
        return images

    def decode(self, x_T: torch.Tensor, z: torch.Tensor, **_: Any) -> torch.Tensor:
        images = torch.from_numpy(np.stack([render_face(row, SIDE) for row in z.numpy()])).permute(0, 3, 1, 2)
        x = images.float().div(127.5).sub(1.0)
        self.seen |= {image.numpy().tobytes(): row for image, row in zip(x, z.numpy(), strict=True)}
        return x


def oracle(pipeline: DrawingPipeline) -> Any:
    """Reads the very factors that an image was drawn from, in units of their range."""
    attributes = [Target(name=f.name, kind=f.kind, mean=0, std=1) for f in FACTORS]
    spans = np.array([f.high - f.low for f in FACTORS])
    truth = {
        image.numpy().tobytes(): row
        for image, row in zip(
            pipeline.images.judge_NCHW.float().div(127.5).sub(1.0), pipeline.images.factors, strict=True
        )
    }

    def read(images: torch.Tensor) -> np.ndarray:
        known = truth | pipeline.seen
        return np.stack([known[image.numpy().tobytes()] for image in images]) / spans

    return SimpleNamespace(attributes=attributes, read=read, reliability=dict.fromkeys((f.name for f in FACTORS), 1.0))
