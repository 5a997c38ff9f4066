"""Half-lives of attributes under noise: the timestep at which a noisy image no longer shows them.

This is the truth that chunks are judged by, from the diffusion process and the data alone: no base, no encoder and no
features have a part in it. A small network learns each attribute from x_t at a known t
(`diticli.evaluation.noisy_classifier`); what it cannot read on images of its own that it never saw, the noise has
hidden, as far as a network of this size can predict it. Idea: Yue et al., ICLR 2024 (arXiv 2401.11430), section 3; the
measurement is ours.

Legend of shape suffixes: N images, C channels, R resolution, A attributes, G timesteps of the grid, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from diticli.data.labels import LabelColumn
from diticli.errors import ConfigError
from diticli.evaluation.classifier_training import check_enough, learnable, split_rows
from diticli.evaluation.kept import Arrays, KeptArrays, content, labels_content
from diticli.evaluation.noisy_classifier import NoisyClassifier, noisy, train_noisy_classifier
from diticli.evaluation.scores import to_json
from diticli.progress import Reporter, SilentReporter
from diticli.schedule import NoiseSchedule
from diticli.statistics import Bootstrap, Estimate
from diticli.types import DoubleArray

GRID = 40
READ_AT_ALL = 0.25
"""An attribute that the classifier explains less than this of on clean images has no half-life."""
HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class SurvivalCurves:
    """How much of each attribute is left at each timestep.

    Attributes:
        timesteps: the grid, rising from 0.
        explained: attribute -> explained variance 1 - mean (truth - said)^2 / variance on held-out images at each
            timestep of the grid. A binary attribute is said as a probability: then this is Brier's skill score.
        left: the same as a falling curve (isotonic regression, not below 0), 1 at the first timestep; None for an
            attribute that cannot be read from clean images.
        half: timestep at which `left` falls below one half, with a bootstrap interval over the held-out images; None
            as above, or where it never falls so far.
        learned_from: images that the classifier learned from.
        held_out: images that it was judged on.
        total_timesteps: T.
        half_draws: [S, A] the same of the resampled images; NaN where there is none.
    """

    timesteps: tuple[int, ...]
    explained: dict[str, tuple[float, ...]]
    left: dict[str, tuple[float, ...] | None]
    half: dict[str, Estimate | None]
    learned_from: int
    held_out: int
    total_timesteps: int
    half_draws: DoubleArray = field(repr=False, compare=False)

    @property
    def order(self) -> tuple[str, ...]:
        """Attributes from the first to be lost to the last; those without a time are left out."""
        known = {name: half.value for name, half in self.half.items() if half is not None}
        return tuple(sorted(known, key=known.__getitem__))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the draws."""
        json: dict[str, Any] = to_json({k: v for k, v in vars(self).items() if k != "half_draws"})
        return json


def measure_survival(
    images_NCHW: torch.Tensor,
    columns: Mapping[str, LabelColumn],
    schedule: NoiseSchedule,
    *,
    epochs: int = 6,
    batch_size: int = 128,
    grid: int = GRID,
    resamples: int = 500,
    seed: int = 0,
    device: torch.device | str = "cpu",
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> SurvivalCurves:
    """Train a classifier of noisy images, and say how much of each attribute it reads at each timestep.

    The cost is `epochs` passes over nine tenths of the images, and one forward of the others per point of the grid.

    Args:
        images_NCHW: uint8 [N, 3, R, R], at least 200; 20,000 are good.
        columns: attribute -> its N labels, binary ones and numbers.
        schedule: the noise.
        epochs: passes of the classifier.
        batch_size: images per step.
        grid: timesteps at which it is judged, the first being 0.
        resamples: of the bootstrap.
        seed: of weights, order, noise and bootstrap.
        device: where the classifier learns.
        reporter: receiver of progress.
        kept: where what such a classifier read before is found.

    Raises:
        ConfigError: for too few images, an attribute without two different values, or a grid of less than 2.
    """
    reporter = reporter or SilentReporter()
    check_enough(len(images_NCHW), len(columns))
    timesteps = _grid(grid, schedule.timesteps)
    train, test = split_rows(len(images_NCHW), seed)
    options: Any = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "device": device, "reporter": reporter}

    def read() -> Arrays:
        classifier = train_noisy_classifier(images_NCHW, columns, train, schedule, **options)
        return {"readings": _say(classifier, images_NCHW[test], timesteps, schedule, seed, reporter)}

    facts: list[Any] = [content(images_NCHW), labels_content(columns), content(schedule.alphas_cumprod)]
    facts += [timesteps, epochs, batch_size, seed]
    attributes = learnable(columns, train)
    truth_NA = np.stack([(a.values[test] - a.mean) / a.std for a in attributes], axis=1)
    predictions_GNA = (kept or KeptArrays()).get("noisy", facts, read)["readings"]
    names = [attribute.name for attribute in attributes]
    explained_GA = explained_variance(truth_NA, predictions_GNA, np.ones((1, len(test))))[0]
    draws_SGA = explained_variance(
        truth_NA, predictions_GNA, Bootstrap.over_rows(len(test), seed=seed, resamples=resamples).counts()
    )
    halves_SA = np.array([[_half(curve, timesteps) for curve in draw_GA.T] for draw_GA in draws_SGA])
    return SurvivalCurves(
        timesteps=timesteps,
        explained={name: tuple(explained_GA[:, a].tolist()) for a, name in enumerate(names)},
        left={name: _as_tuple(survival(explained_GA[:, a])) for a, name in enumerate(names)},
        half={name: _estimate(explained_GA[:, a], timesteps, halves_SA[:, a]) for a, name in enumerate(names)},
        learned_from=len(train),
        held_out=len(test),
        total_timesteps=schedule.timesteps,
        half_draws=halves_SA,
    )


def explained_variance(truth_NA: DoubleArray, predictions_GNA: DoubleArray, counts_SN: DoubleArray) -> DoubleArray:
    """1 - mean (truth - said)^2 / variance of the truth, in each sample of rows: [S, G, A]; NaN truth does not count.

    Args:
        truth_NA: labels.
        predictions_GNA: what was read, at each of G timesteps.
        counts_SN: how often each row is in each of S samples.
    """
    known_NA = (~np.isnan(truth_NA)).astype(np.float64)
    truth_NA = np.nan_to_num(truth_NA)
    count_SA = np.maximum(counts_SN @ known_NA, 1)
    mean_SA = counts_SN @ truth_NA / count_SA
    variance_SA = counts_SN @ truth_NA**2 / count_SA - mean_SA**2
    errors_GNA = known_NA * (predictions_GNA - truth_NA) ** 2
    error_SGA = np.stack([counts_SN @ errors_NA for errors_NA in errors_GNA], axis=1) / count_SA[:, None]
    return 1 - error_SGA / np.maximum(variance_SA, 1e-12)[:, None]


def survival(explained_G: DoubleArray) -> DoubleArray | None:
    """Explained variance as a falling curve that starts at 1; None where it starts too low to be read at all."""
    from sklearn.isotonic import isotonic_regression

    falling_G = np.maximum(np.asarray(isotonic_regression(explained_G, increasing=False)), 0.0)
    return falling_G / falling_G[0] if falling_G[0] >= READ_AT_ALL else None


def _half(explained_G: DoubleArray, timesteps: tuple[int, ...]) -> float:
    """Where the falling curve crosses one half, on the straight line between two points of the grid; else NaN."""
    curve = survival(explained_G)
    if curve is None or curve[-1] > HALF:
        return float("nan")
    after = int(np.argmax(curve <= HALF))
    (t0, t1), (y0, y1) = timesteps[after - 1 : after + 1], curve[after - 1 : after + 1]
    return float(t0 + (t1 - t0) * (y0 - HALF) / (y0 - y1))


def _estimate(explained_G: DoubleArray, timesteps: tuple[int, ...], draws_S: DoubleArray) -> Estimate | None:
    value = _half(explained_G, timesteps)
    return None if np.isnan(value) else Estimate.from_resamples(value, draws_S)


def _say(
    classifier: NoisyClassifier,
    images_NCHW: torch.Tensor,
    timesteps: tuple[int, ...],
    schedule: NoiseSchedule,
    seed: int,
    reporter: Reporter,
) -> DoubleArray:
    """[G, N, A]: what the classifier says of the images at each timestep, under new noise each."""
    generator = torch.Generator().manual_seed(seed)
    reporter.start("Reading noisy images", len(images_NCHW) * len(timesteps), unit="images")
    said = []
    for t in timesteps:
        said.append(classifier.read(noisy(images_NCHW, t, schedule, generator), t))
        reporter.advance(len(images_NCHW))
    reporter.finish()
    return np.stack(said)


def _grid(points: int, total: int) -> tuple[int, ...]:
    if points < 2:
        raise ConfigError(f"{points} timesteps make no curve.", remedy="Use a grid of at least 2.")
    return tuple(dict.fromkeys(round(t) for t in np.linspace(0, total - 1, points)))


def _as_tuple(values: DoubleArray | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values.tolist())
