"""A classifier of noisy images: how much of each attribute x_t still shows when the timestep is known.

Legend of shape suffixes: N images, C channels, R resolution, A attributes, E embedding, T timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from diticli.data.labels import LabelColumn
from diticli.evaluation.classifier_training import ClassifierNetwork, fit_classifier, learnable
from diticli.models.device import global_generators_kept
from diticli.models.pixels import normalise
from diticli.progress import Reporter
from diticli.schedule import NoiseSchedule
from diticli.targets import Target
from diticli.types import DoubleArray, Rows

EMBEDDED = 32
WIDTHS = (32, 64, 96, 128)


class NoisyClassifier(ClassifierNetwork):
    """Noisy images and their timesteps -> standardised attributes.

    A small convolutional network; after each norm the channels are scaled and shifted by what the timestep embeds to
    (FiLM, Perez et al., 2018, arXiv 1709.07871).

    Args:
        attributes: what it predicts, in the order of its outputs.
        resolution: height and width of its images.
        timesteps: T.
        channels: of its images.
    """

    def __init__(self, attributes: Sequence[Target], resolution: int, timesteps: int, channels: int = 3) -> None:
        super().__init__(attributes)
        self.timesteps = timesteps
        halvings = max(1, min(len(WIDTHS) - 1, int(math.log2(resolution / 4))))
        widths = (channels, *WIDTHS[: halvings + 1])
        self.layers = nn.ModuleList(
            _FilmLayer(i, o, 1 if index == 0 else 2) for index, (i, o) in enumerate(pairwise(widths))
        )
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.head = nn.Sequential(nn.Linear(widths[-1] * 16, 256), nn.SiLU(), nn.Linear(256, len(attributes)))

    def forward(self, x_NCHW: torch.Tensor, t_N: torch.Tensor) -> torch.Tensor:
        """Raw outputs [N, A] of images at integer timesteps: logits of the binary attributes, else values."""
        embedded_NE = self._embed(t_N)
        h = x_NCHW
        for layer in self.layers:
            h = layer(h, embedded_NE)
        raw_NA: torch.Tensor = self.head(self.pool(h).flatten(1))
        return raw_NA

    @torch.no_grad()
    def read(self, x_NCHW: torch.Tensor, t: int, batch_size: int = 512) -> DoubleArray:
        """Standardised attributes [N, A] of images that all are at timestep t; see `AttributeClassifier.read`."""
        device = self.mean_A.device
        parts = [p.to(device) for p in x_NCHW.split(batch_size)]
        raw = torch.cat([self(part, torch.full((len(part),), t, device=device)) for part in parts])
        return self.standardised(raw)

    def _embed(self, t_N: torch.Tensor) -> torch.Tensor:
        """Sines and cosines of the timestep, from one half period over all timesteps upwards: [N, E]."""
        frequencies = math.pi * 2.0 ** torch.arange(EMBEDDED // 2, device=t_N.device).mul(6 / (EMBEDDED // 2))
        angles = (t_N.float() / self.timesteps)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class _FilmLayer(nn.Module):
    """Convolution, norm, scale and shift by the embedding, SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.GroupNorm(8, outputs)
        self.film = nn.Sequential(nn.Linear(EMBEDDED, 64), nn.SiLU(), nn.Linear(64, 2 * outputs))

    def forward(self, x_NCHW: torch.Tensor, embedded_NE: torch.Tensor) -> torch.Tensor:
        scale, shift = self.film(embedded_NE)[:, :, None, None].chunk(2, dim=1)
        h: torch.Tensor = nn.functional.silu((1 + scale) * self.norm(self.conv(x_NCHW)) + shift)
        return h


def train_noisy_classifier(
    images_NCHW: torch.Tensor,
    columns: Mapping[str, LabelColumn],
    train: Rows,
    schedule: NoiseSchedule,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    reporter: Reporter,
) -> NoisyClassifier:
    """Train on the rows `train`, each image at a random timestep; returned in eval mode.

    Raises:
        ConfigError: for an attribute without two different values.
    """
    attributes = learnable(columns, train)
    bar_T = schedule.alphas_cumprod.cpu()

    def inputs(x0_NCHW: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        # One timestep from each of N equal ranges, in any order: less chance in the mixture than N free draws.
        count = len(x0_NCHW)
        place = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
        t_N = (place / count * len(bar_T)).long().clamp(max=len(bar_T) - 1)
        noise = torch.randn(x0_NCHW.shape, generator=generator)
        bar = bar_T[t_N].view(-1, 1, 1, 1)
        return bar.sqrt() * x0_NCHW + (1 - bar).sqrt() * noise, t_N

    with global_generators_kept(torch.device(device)):
        torch.manual_seed(seed)
        classifier = NoisyClassifier(attributes, images_NCHW.shape[-1], schedule.timesteps, images_NCHW.shape[1]).to(
            device
        )
        options: Any = {"epochs": epochs, "batch_size": batch_size, "reporter": reporter}
        title = "Training a classifier of noisy images"
        fit_classifier(classifier, images_NCHW, train, inputs, title=title, **options)
    return classifier.eval().requires_grad_(False)


def noisy(images_NCHW: torch.Tensor, t: int, schedule: NoiseSchedule, generator: torch.Generator) -> torch.Tensor:
    """x_t of uint8 images, float32 on the CPU (DDPM eq. 4)."""
    bar = schedule.alphas_cumprod[t].cpu()
    return bar.sqrt() * normalise(images_NCHW) + (1 - bar).sqrt() * torch.randn(images_NCHW.shape, generator=generator)
