"""A held-out attribute classifier: a small convolutional network that predicts attributes from pixels.

It judges edits, so it must know nothing of the model that made them: it is trained on labelled images alone. What it
cannot read on images of its own that it never saw, it cannot judge either; `AttributeClassifier.reliability` says so.

Legend of shape suffixes: N images, C channels, H height, W width, A attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from diticli.data.labels import LabelColumn
from diticli.evaluation.classifier_training import (
    ClassifierNetwork,
    check_enough,
    fit_classifier,
    learnable,
    split_rows,
)
from diticli.evaluation.kept import Arrays, KeptArrays, content, labels_content
from diticli.models.device import global_generators_kept
from diticli.probing.metrics import binary_score
from diticli.progress import Reporter, SilentReporter
from diticli.targets import Target
from diticli.types import DoubleArray, Rows

GRAIN = 0.1
"""Largest standard deviation of the noise on training images: decoded images are never quite as clean as drawn ones."""
READABLE = 0.5
"""Attributes that the classifier predicts with less reliability than this are not used to measure edits."""


class AttributeClassifier(ClassifierNetwork):
    """Images -> standardised attributes.

    Args:
        attributes: what it predicts, in the order of its outputs.
        resolution: height and width of its images.
        channels: of its images.

    Attributes:
        reliability: attribute -> score on held-out images: R2 of a number, 2 (AUC - 0.5) of a binary one; 0 is
            chance, 1 perfect. Filled by `train_classifier`.
    """

    def __init__(self, attributes: Sequence[Target], resolution: int, channels: int = 3) -> None:
        super().__init__(attributes)
        self.reliability: dict[str, float] = {}
        widths = [channels, 32]
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

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Raw outputs [N, A]: logits of the binary attributes, standardised values of the others."""
        return self.head(self.body(x_NCHW))

    @torch.no_grad()
    def read(self, images_NCHW: torch.Tensor, batch_size: int = 512) -> DoubleArray:
        """Standardised attributes [N, A] of images in [-1, 1]; probabilities are standardised like their 0/1."""
        assert not self.training
        device = self.mean_A.device
        raw = torch.cat([self(part.to(device).float()) for part in images_NCHW.split(batch_size)])
        return self.standardised(raw)


def unreadable(classifier: AttributeClassifier) -> list[str]:
    """Attributes that the classifier cannot judge."""
    return [name for name, score in classifier.reliability.items() if score < READABLE]


def _layer(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.GroupNorm(8, outputs), nn.SiLU())


def train_classifier(
    images_NCHW: torch.Tensor,
    columns: Mapping[str, LabelColumn],
    *,
    epochs: int = 8,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> AttributeClassifier:
    """Train a classifier on labelled images; a tenth of them is held out to measure its reliability.

    Args:
        images_NCHW: uint8 [N, 3, R, R], at least 200.
        columns: attribute -> its N labels, binary ones and numbers.
        epochs: passes over the images.
        batch_size: images per step.
        seed: of its weights, order and noise.
        device: where to train, and where the classifier stays.
        reporter: receiver of progress.
        kept: where a classifier that learned the same before is found.

    Returns:
        The classifier in eval mode.

    Raises:
        ConfigError: for too few images, or an attribute without two different values.
    """
    reporter = reporter or SilentReporter()
    count = len(images_NCHW)
    check_enough(count, len(columns))
    train, test = split_rows(count, seed)
    attributes = learnable(columns, train)
    with global_generators_kept(torch.device(device)):
        torch.manual_seed(seed)
        classifier = AttributeClassifier(attributes, images_NCHW.shape[-1], images_NCHW.shape[1]).to(device)

        def learn() -> Arrays:
            options: Any = {"epochs": epochs, "batch_size": batch_size, "reporter": reporter}
            title = "Training the attribute classifier"
            fit_classifier(classifier, images_NCHW, train, with_grain, title=title, **options)
            return {name: value.cpu().numpy() for name, value in classifier.state_dict().items()}

        facts = [content(images_NCHW), labels_content(columns), epochs, batch_size, seed]
        learned = (kept or KeptArrays()).get("classifier", facts, learn)
        classifier.load_state_dict({name: torch.from_numpy(value) for name, value in learned.items()})
    classifier.eval().requires_grad_(False)
    classifier.reliability = _reliability(classifier, images_NCHW, test)
    return classifier


def with_grain(x_NCHW: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor]:
    """The images with a little noise, of another strength each."""
    strength = GRAIN * torch.rand(len(x_NCHW), 1, 1, 1, generator=generator)
    return (x_NCHW + strength * torch.randn(x_NCHW.shape, generator=generator),)


def _reliability(classifier: AttributeClassifier, images_NCHW: torch.Tensor, rows: Rows) -> dict[str, float]:
    read = classifier.read(images_NCHW[torch.from_numpy(rows)].float().div(127.5).sub(1.0))
    scores = {}
    for index, attribute in enumerate(classifier.attributes):
        values = attribute.values[rows]
        known = ~np.isnan(values)
        truth, said = values[known], read[known, index]
        if attribute.kind == "number":
            truth = (truth - attribute.mean) / attribute.std
            scores[attribute.name] = float(1 - np.mean((said - truth) ** 2) / max(np.var(truth), 1e-12))
        elif len(set(truth.tolist())) == 2:
            scores[attribute.name] = 2 * binary_score(truth, said).extras["roc_auc"] - 1
        else:
            scores[attribute.name] = 0.0
    return scores
