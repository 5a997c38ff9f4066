"""How networks learn to read attributes from images: targets, loss and loop.

Legend of shape suffixes: N images, C channels, R resolution, A attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from diticli.data.labels import LabelColumn
from diticli.errors import ConfigError
from diticli.models.pixels import normalise
from diticli.progress import Reporter
from diticli.reading import quoted
from diticli.targets import Requirements, Target, UnfitError, make_target
from diticli.types import DoubleArray, Rows

Inputs = Callable[[torch.Tensor, torch.Generator], tuple[torch.Tensor, ...]]
MIN_IMAGES = 200
HELD_OUT = 0.1


class ClassifierNetwork(nn.Module):
    """Base class of attribute classifiers: which attributes, their scales, and predictions from outputs.

    Args:
        attributes: what it predicts, in the order of its outputs.
    """

    mean_A: torch.Tensor
    std_A: torch.Tensor
    binary_A: torch.Tensor

    def __init__(self, attributes: Sequence[Target]) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        self.register_buffer("mean_A", torch.tensor([a.mean for a in attributes]), persistent=False)
        self.register_buffer("std_A", torch.tensor([a.std for a in attributes]), persistent=False)
        self.register_buffer("binary_A", torch.tensor([a.kind == "binary" for a in attributes]), persistent=False)

    def standardised(self, raw_NA: torch.Tensor) -> DoubleArray:
        """What raw outputs say, in standard deviations; probabilities are standardised like their 0/1."""
        probability = (raw_NA.sigmoid() - self.mean_A) / self.std_A
        return torch.where(self.binary_A, probability, raw_NA).double().cpu().numpy()


def check_enough(images: int, attributes: int) -> None:
    """Raise ConfigError where a classifier has too little to learn from."""
    if images < MIN_IMAGES or not attributes:
        raise ConfigError(
            f"A classifier needs at least {MIN_IMAGES} images and one attribute, got {images} and {attributes}.",
            remedy="Give more labelled images.",
        )


def split_rows(count: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from, and the tenth that is held out to measure how well it went."""
    order = np.random.default_rng(seed).permutation(count)
    return order[int(HELD_OUT * count) :], order[: int(HELD_OUT * count)]


def learnable(columns: Mapping[str, LabelColumn], train: Rows) -> list[Target]:
    """The attributes, with mean and standard deviation of the training rows.

    Raises:
        ConfigError: for an attribute without two different values.
    """
    targets = []
    for name, column in columns.items():
        try:
            targets.append(make_target(name, column, {"train": train}, Requirements(train_rows=1)))
        except UnfitError as reason:
            raise ConfigError(
                f"The attribute {quoted(name)} cannot be learned: {reason}.", remedy="Leave it out."
            ) from reason
    return targets


def fit_classifier(
    classifier: ClassifierNetwork,
    images_NCHW: torch.Tensor,
    train: Rows,
    inputs: Inputs,
    *,
    epochs: int,
    batch_size: int,
    title: str,
    reporter: Reporter,
) -> None:
    """Train a classifier in place on the rows `train` of uint8 images; seeded by the global generator.

    It is left in train mode.

    Args:
        classifier: what is trained; its attributes hold the labels.
        images_NCHW: uint8 [N, 3, R, R].
        train: rows to learn from.
        inputs: images in [-1, 1] and a generator -> what the classifier's forward takes.
        epochs: passes over the rows.
        batch_size: images per step.
        title: of the progress.
        reporter: its receiver.
    """
    device = classifier.mean_A.device
    targets_NA = np.stack([target.values for target in classifier.attributes], axis=1)
    steps = epochs * max(1, len(train) // batch_size)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    reporter.start(title, steps * batch_size, unit="images")
    classifier.train()
    for step in range(steps):
        position = step * batch_size % max(1, len(train) - batch_size + 1)
        if position < batch_size:
            train = train[torch.randperm(len(train), generator=generator).numpy()]
        rows = train[position : position + batch_size]
        x = normalise(images_NCHW[torch.from_numpy(rows)])
        raw_NA = classifier(*(part.to(device) for part in inputs(x, generator)))
        loss = _loss(classifier, raw_NA, torch.from_numpy(targets_NA[rows]).to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        reporter.advance(len(rows))
    reporter.finish()


def _loss(classifier: ClassifierNetwork, raw_NA: torch.Tensor, targets_NA: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the binary attributes, squared error of the others; unknown values do not count."""
    known = ~targets_NA.isnan()
    targets = torch.where(known, targets_NA, 0).float()
    squared = (raw_NA - (targets - classifier.mean_A) / classifier.std_A).square()
    entropy = F.binary_cross_entropy_with_logits(raw_NA, targets.clamp(0, 1), reduction="none")
    losses = torch.where(classifier.binary_A, entropy, squared)
    return (losses * known).sum() / known.sum().clamp(min=1)
