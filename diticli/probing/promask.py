"""Which few dimensions predict an attribute? Learned with a probabilistic mask (ProMask).

masks = learn_masks(standardised, targets, MaskSettings(dims=16))      # [A, d] scores, [A, 16] chosen dimensions

Method: Zhou et al., "Effective Sparsification of Neural Networks with Global Sparsity Constraint", CVPR 2021
(arXiv 2105.01571): every dimension is kept with a probability, the probabilities are trained together with the
linear classifier through Gumbel-sigmoid samples, and their sum is held to a budget that shrinks to the wanted
number. Used for attribute editing in Yue et al., ICLR 2024 (arXiv 2401.11430).

Shape suffixes: N rows, B rows of a batch, D features, A attributes, R outputs (one, or one per class), S samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from diticli.errors import ConfigError
from diticli.progress import Reporter, SilentReporter
from diticli.targets import Target

_BISECTIONS = 24
_FLOOR = 1e-3
_CONSTANT = 1e-3
_REPORT_EVERY = 25


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """How a mask is learned.

    Attributes:
        dims: dimensions to choose for each attribute.
        steps: training steps.
        batch_size: rows a step, shared by `samples`.
        samples: masks drawn at each step, each seen by its share of the rows.
        prune_start: share of the steps before the budget begins to shrink from all dimensions.
        prune_end: share of the steps at which it has reached `dims`.
        coldest: temperature at the end; it falls linearly from 1.
        weight_lr: Adam's learning rate for the classifier.
        score_lr: likewise for the probabilities.

    Raises:
        ConfigError: for values that cannot be.
    """

    dims: int
    steps: int = 600
    batch_size: int = 2048
    samples: int = 8
    prune_start: float = 0.1
    prune_end: float = 0.4
    coldest: float = 0.03
    weight_lr: float = 1e-2
    score_lr: float = 1e-2

    def __post_init__(self) -> None:
        for name in ("dims", "steps", "samples", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} of a mask is {getattr(self, name)}.", remedy="Use 1 or more.")
        if not 0 <= self.prune_start < self.prune_end <= 1:
            raise ConfigError(
                f"The pruning from {self.prune_start} to {self.prune_end} of the steps runs backwards or outside 0..1.",
                remedy="Use e.g. 0.1 and 0.4.",
            )
        if not 0 < self.coldest <= 1:
            raise ConfigError(f"The temperature {self.coldest} is not above 0 and at most 1.", remedy="Use e.g. 0.03.")

    def temperature(self, step: int) -> float:
        """Temperature of the Gumbel-sigmoid at `step`."""
        return 1 - (1 - self.coldest) * step / self.steps

    def budget(self, step: int, width: int) -> float:
        """Sum that the probabilities of `width` dimensions may have at `step`, falling by a cube."""
        start, end = self.prune_start * self.steps, self.prune_end * self.steps
        left = min(1.0, max(0.0, (end - step) / (end - start)))
        return self.dims + (width - self.dims) * left**3


@dataclass(frozen=True, kw_only=True)
class Masks:
    """The learned masks: the dims chosen for each attribute.

    Attributes:
        scores: float32 [A, D] probability of each dimension at the end, 0..1.
        chosen: int64 [A, dims] the most probable dimensions, ascending.
    """

    scores: npt.NDArray[np.float32]
    chosen: npt.NDArray[np.int64]


def learn_masks(
    standard_ND: npt.NDArray[np.float32],
    targets: Sequence[Target],
    settings: MaskSettings,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
) -> Masks:
    """Choose `settings.dims` dimensions for every attribute, all attributes at once.

    Args:
        standard_ND: features of mean 0 and deviation 1; a constant one is all 0 and is never chosen.
        targets: A attributes of N rows each.
        settings: how.
        seed: of batches and masks. The same seed on the same device gives the same result.
        device: where to learn; features and labels are copied there.
        reporter: receiver of progress.

    Raises:
        ConfigError: when fewer than `settings.dims` features vary.
    """
    reporter = reporter or SilentReporter()
    varying = np.flatnonzero(np.ptp(standard_ND, axis=0) > _CONSTANT)
    if settings.dims > len(varying):
        raise ConfigError(
            f"A mask of {settings.dims} dims cannot be chosen from {len(varying)} features that vary.",
            remedy=f"Use at most {len(varying)}.",
        )
    x_ND = torch.from_numpy(np.ascontiguousarray(standard_ND[:, varying])).to(device)
    learner = _Learner(x_ND, _Objective(targets, x_ND.device), settings, seed)
    scores_AD = _learn(learner, settings.steps, reporter).cpu().numpy()
    scores = np.zeros((len(targets), standard_ND.shape[1]), dtype=np.float32)
    scores[:, varying] = scores_AD
    best = varying[np.argsort(-scores_AD, axis=1, kind="stable")[:, : settings.dims]]
    return Masks(scores=scores, chosen=np.sort(best, axis=1).astype(np.int64))


def project_scores(scores_AD: torch.Tensor, budget: float) -> torch.Tensor:
    """Nearest point of {0 <= s <= 1, sum s <= budget}, row by row: clip(s - v) with the v that bisection finds."""
    low = torch.zeros_like(scores_AD[:, :1])
    high = scores_AD.amax(dim=1, keepdim=True).clamp_min(0)
    high = torch.where(scores_AD.clamp(0, 1).sum(dim=1, keepdim=True) > budget, high, low)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = (scores_AD - middle).clamp(0, 1).sum(dim=1, keepdim=True) > budget
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (scores_AD - high).clamp_(0, 1)


def sample_masks(scores_AD: torch.Tensor, temperature: float, samples: int, generator: torch.Generator) -> torch.Tensor:
    """Relaxed Bernoulli masks [S, A, D] in 0..1 (Gumbel-sigmoid); gradients reach the scores.

    A probability of exactly 0 or 1 would pass no gradient, and its dimension could never change its mind.
    """
    kept = _FLOOR + (1 - 2 * _FLOOR) * scores_AD
    uniform = torch.rand((samples, *scores_AD.shape), generator=generator, device=scores_AD.device)
    noise = uniform.clamp(1e-6, 1 - 1e-6).logit()
    return ((kept.logit() + noise) / temperature).sigmoid()


class _Learner:
    """Scores, and the classifier that is trained with them."""

    def __init__(self, x_ND: torch.Tensor, objective: _Objective, settings: MaskSettings, seed: int) -> None:
        width, outputs, device = x_ND.shape[1], len(objective.owner), x_ND.device
        self.x_ND, self.objective, self.settings = x_ND, objective, settings
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.scores = torch.ones(objective.attributes, width, device=device, requires_grad=True)
        self.weights = torch.zeros(outputs, width, device=device, requires_grad=True)
        self.bias = torch.zeros(outputs, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam(
            [
                {"params": [self.weights, self.bias], "lr": settings.weight_lr},
                {"params": [self.scores], "lr": settings.score_lr},
            ]
        )

    def step(self, step: int) -> None:
        """One batch, one step of both, and the scores back within the budget."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            self._loss(self.settings.temperature(step)).backward()
        self.optimizer.step()
        budget = self.settings.budget(step + 1, self.scores.shape[1])
        with torch.no_grad():
            self.scores.copy_(project_scores(self.scores, budget))

    def _loss(self, temperature: float) -> torch.Tensor:
        samples, (count, width) = self.settings.samples, self.x_ND.shape
        share = max(1, min(self.settings.batch_size, count) // samples)
        rows = torch.randint(count, (samples * share,), generator=self.generator, device=self.x_ND.device)
        masks_SAD = sample_masks(self.scores, temperature, samples, self.generator)
        weights_SRD = masks_SAD[:, self.objective.owner] * self.weights
        outputs_SBR = self.x_ND[rows].view(samples, share, width) @ weights_SRD.transpose(1, 2) + self.bias
        return self.objective(outputs_SBR.flatten(0, 1), rows)


def _learn(learner: _Learner, steps: int, reporter: Reporter) -> torch.Tensor:
    reporter.start("Learning masks", steps, unit="steps")
    for step in range(steps):
        learner.step(step)
        if (step + 1) % _REPORT_EVERY == 0:
            reporter.advance(_REPORT_EVERY)
    reporter.advance(steps % _REPORT_EVERY)
    reporter.finish()
    return learner.scores.detach()


class _Objective:
    """Sum over attributes of the mean loss over a batch's rows; unknown values cost nothing."""

    def __init__(self, targets: Sequence[Target], device: torch.device) -> None:
        self.attributes = len(targets)
        self.owner = torch.tensor([a for a, t in enumerate(targets) for _ in range(t.width)], device=device)
        self.first: dict[str, list[int]] = {"binary": [], "number": [], "category": []}
        self.widths: list[int] = []
        values: dict[str, list[npt.NDArray[Any]]] = {kind: [] for kind in self.first}
        start = 0
        for target in targets:
            self.first[target.kind].append(start)
            values[target.kind].append(target.standard)
            self.widths += [target.width] if target.kind == "category" else []
            start += target.width
        self.values = {
            kind: torch.from_numpy(np.stack(arrays, axis=1).astype(np.float32)).to(device)
            for kind, arrays in values.items()
            if arrays
        }
        self.columns = {kind: torch.tensor(first, device=device) for kind, first in self.first.items()}

    def __call__(self, outputs_BR: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        total = outputs_BR.new_zeros(())
        for kind, values_NA in self.values.items():
            truth = values_NA[rows]
            if kind == "category":
                total = total + self._categories(outputs_BR, truth)
                continue
            own, known = outputs_BR[:, self.columns[kind]], truth.isfinite()
            truth = truth.nan_to_num(0.0)
            if kind == "binary":
                losses = F.binary_cross_entropy_with_logits(own, truth, reduction="none")
            else:
                losses = 0.5 * (own - truth).square()
            total = total + (losses * known).mean(dim=0).sum()
        return total

    def _categories(self, outputs_BR: torch.Tensor, truth_BA: torch.Tensor) -> torch.Tensor:
        total = outputs_BR.new_zeros(())
        for column, (first, width) in enumerate(zip(self.first["category"], self.widths, strict=True)):
            codes = truth_BA[:, column].nan_to_num(-1.0).long()
            losses = F.cross_entropy(outputs_BR[:, first : first + width], codes, ignore_index=-1, reduction="sum")
            total = total + losses / len(codes)
        return total
