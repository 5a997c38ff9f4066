"""A held-out reader: a small convolutional network that tells attributes from pixels.

It judges edits, so it must know nothing of the model that made them: it is trained on labelled images alone. What it
cannot read on images of its own that it never saw, it cannot judge either; `AttributeReader.reliability` says so.

Legend of shape suffixes: N images, C channels, H height, W width, A attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from diticli.errors import ConfigError
from diticli.probing.metrics import binary_score
from diticli.progress import Reporter, SilentReporter

DoubleArray = npt.NDArray[np.float64]
MIN_IMAGES = 200
HELD_OUT = 0.1
GRAIN = 0.1
"""Largest standard deviation of the noise on training images: decoded images are never quite as clean as drawn ones."""
READABLE = 0.5
"""Attributes that the reader tells worse than this judge nothing."""


@dataclass(frozen=True, kw_only=True)
class ReadAttribute:
    """One attribute that a reader tells.

    Attributes:
        name: of the attribute.
        kind: "binary" is read as a probability, "number" as a value.
        mean: of the training images.
        std: likewise; what the reader says is standardised by both.
    """

    name: str
    kind: Literal["binary", "number"]
    mean: float
    std: float


class AttributeReader(nn.Module):
    """Images -> standardised attributes.

    Args:
        attributes: what it tells, in the order of its outputs.
        resolution: height and width of its images.

    Attributes:
        reliability: attribute -> score on held-out images: R2 of a number, 2 (AUC - 0.5) of a binary one; 0 is
            chance, 1 perfect. Filled by `train_reader`.
    """

    def __init__(self, attributes: Sequence[ReadAttribute], resolution: int) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.reliability: dict[str, float] = {}
        widths = [3, 32]
        while resolution // 2 ** (len(widths) - 2) > 4:
            widths.append(min(2 * widths[-1], 128))
        strides = [1, *([2] * (len(widths) - 2))]
        self.body = nn.Sequential(
            *(_layer(i, o, s) for i, o, s in zip(widths[:-1], widths[1:], strides, strict=True)), nn.Flatten()
        )
        side = -(-resolution // 2 ** (len(widths) - 2))
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * side**2, 256), nn.SiLU(), nn.Dropout(0.2), nn.Linear(256, len(attributes))
        )
        self.register_buffer("mean_A", torch.tensor([a.mean for a in attributes]), persistent=False)
        self.register_buffer("std_A", torch.tensor([a.std for a in attributes]), persistent=False)
        self.register_buffer("binary_A", torch.tensor([a.kind == "binary" for a in attributes]), persistent=False)

    mean_A: torch.Tensor
    std_A: torch.Tensor
    binary_A: torch.Tensor

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Raw outputs [N, A]: logits of the binary attributes, standardised values of the others."""
        return self.head(self.body(x_NCHW))

    @torch.no_grad()
    def read(self, images_NCHW: torch.Tensor, batch_size: int = 512) -> DoubleArray:
        """Standardised attributes [N, A] of images in [-1, 1]; probabilities are standardised like their 0/1."""
        assert not self.training
        device = self.mean_A.device
        raw = torch.cat([self(part.to(device).float()) for part in images_NCHW.split(batch_size)])
        probability = (raw.sigmoid() - self.mean_A) / self.std_A
        return torch.where(self.binary_A, probability, raw).double().cpu().numpy()


def unreadable(reader: AttributeReader) -> list[str]:
    """Attributes that the reader cannot judge."""
    return [name for name, score in reader.reliability.items() if score < READABLE]


def _layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


def train_reader(
    images_NCHW: torch.Tensor,
    labels: Mapping[str, tuple[Literal["binary", "number"], npt.NDArray[np.floating]]],
    *,
    epochs: int = 8,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> AttributeReader:
    """Train a reader on labelled images; a tenth of them only tell how well it reads.

    Args:
        images_NCHW: uint8 [N, 3, R, R], at least 200.
        labels: attribute -> (kind, values [N] with NaN where unknown).
        epochs: passes over the images.
        batch_size: images per step.
        seed: of its weights, order and noise.
        device: where to train, and where the reader stays.
        reporter: receiver of progress.

    Returns:
        The reader in eval mode.

    Raises:
        ConfigError: for too few images, or an attribute without two different values.
    """
    reporter = reporter or SilentReporter()
    count = len(images_NCHW)
    if count < MIN_IMAGES or not labels:
        raise ConfigError(
            f"A reader needs at least {MIN_IMAGES} images and one attribute, got {count} and {len(labels)}.",
            remedy="Give more labelled images.",
        )
    order = np.random.default_rng(seed).permutation(count)
    test, train = order[: int(HELD_OUT * count)], order[int(HELD_OUT * count) :]
    targets_NA = np.stack([values.astype(np.float64) for _, values in labels.values()], axis=1)
    attributes = [_attribute(name, kind, values[train]) for name, (kind, values) in labels.items()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = AttributeReader(attributes, images_NCHW.shape[-1]).to(device)
        _fit(reader, images_NCHW, targets_NA, train, epochs, batch_size, reporter)
    reader.eval().requires_grad_(False)
    reader.reliability = _reliability(reader, images_NCHW[test], targets_NA[test])
    return reader


def _attribute(name: str, kind: Literal["binary", "number"], values: npt.NDArray[np.floating]) -> ReadAttribute:
    mean, std = float(np.nanmean(values)), float(np.nanstd(values))
    if not std > 0:
        raise ConfigError(f"The attribute {name!r} has the same value in all images.", remedy="Leave it out.")
    return ReadAttribute(name=name, kind=kind, mean=mean, std=std)


def _fit(
    reader: AttributeReader,
    images_NCHW: torch.Tensor,
    targets_NA: DoubleArray,
    train: npt.NDArray[np.int64],
    epochs: int,
    batch_size: int,
    reporter: Reporter,
) -> None:
    device = reader.mean_A.device
    steps = epochs * max(1, len(train) // batch_size)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    reporter.start("Training the reader", steps * batch_size, unit="images")
    reader.train()
    for step in range(steps):
        position = step * batch_size % max(1, len(train) - batch_size + 1)
        if position < batch_size:
            train = train[torch.randperm(len(train), generator=generator).numpy()]
        rows = train[position : position + batch_size]
        x = images_NCHW[torch.from_numpy(rows)].to(device).float().div(127.5).sub(1.0)
        grain = GRAIN * torch.rand(len(x), 1, 1, 1, generator=generator) * torch.randn(x.shape, generator=generator)
        loss = _loss(reader, reader(x + grain.to(device)), torch.from_numpy(targets_NA[rows]).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        reporter.advance(len(rows))
    reporter.finish()


def _loss(reader: AttributeReader, raw_NA: torch.Tensor, targets_NA: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the binary attributes, squared error of the others; unknown values do not count."""
    known = ~targets_NA.isnan()
    targets = torch.where(known, targets_NA, 0).float()
    squared = (raw_NA - (targets - reader.mean_A) / reader.std_A).square()
    entropy = F.binary_cross_entropy_with_logits(raw_NA, targets.clamp(0, 1), reduction="none")
    losses = torch.where(reader.binary_A, entropy, squared)
    return (losses * known).sum() / known.sum().clamp(min=1)


def _reliability(reader: AttributeReader, images_NCHW: torch.Tensor, targets_NA: DoubleArray) -> dict[str, float]:
    read = reader.read(images_NCHW.float().div(127.5).sub(1.0))
    scores = {}
    for index, attribute in enumerate(reader.attributes):
        known = ~np.isnan(targets_NA[:, index])
        truth, said = targets_NA[known, index], read[known, index]
        if attribute.kind == "number":
            truth = (truth - attribute.mean) / attribute.std
            scores[attribute.name] = float(1 - np.mean((said - truth) ** 2) / max(np.var(truth), 1e-12))
        elif len(set(truth.tolist())) == 2:
            scores[attribute.name] = 2 * binary_score(truth, said).extras["roc_auc"] - 1
        else:
            scores[attribute.name] = 0.0
    return scores
