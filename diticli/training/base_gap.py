"""The gap of a run's base by timestep: measured once between the stages and kept in gap.json.

A resumed run and all processes read it from there, and so see the same curve.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from diticli.distributed import Rank
from diticli.errors import CheckpointError
from diticli.files import write_json
from diticli.models.frozen import FrozenBase
from diticli.models.reconstruction_gap import GapCurve, measure_gap
from diticli.models.unet import UNet
from diticli.progress import Reporter, SilentReporter
from diticli.reading import read_regular, shortened
from diticli.schedule import NoiseSchedule
from diticli.training.batches import DataOrder, ImageFeed, fold_seed

GAP_IMAGES = 128
_BATCH = 32


def write_gap(
    path: Path,
    unet: UNet,
    schedule: NoiseSchedule,
    feed: ImageFeed,
    images: int,
    *,
    seed: int,
    precision: str,
    device: torch.device,
    reporter: Reporter | None = None,
) -> None:
    """Measure `unet` on images of the run drawn at random, and write the curve to `path` unless it is there.

    Args:
        path: JSON file.
        unet: the base.
        schedule: its noise schedule.
        feed: the run's images.
        images: how many the feed has.
        seed: of the run.
        precision: "bf16" or "fp32", as stage 2 computes the base.
        device: where to measure.
        reporter: receiver of progress.

    Raises:
        TrainingDivergedError: when the base says NaN or infinity.
    """
    if path.is_file():
        return
    order = DataOrder(images, _BATCH, fold_seed(seed, "gap", "order"))
    drawn = feed.batches(order, 0, -(-min(images, GAP_IMAGES) // _BATCH), Rank(), torch.device("cpu"))
    base = FrozenBase(unet, torch.bfloat16 if precision == "bf16" else torch.float32).to(device)
    curve = measure_gap(
        base,
        schedule.to(device),
        _distinct(torch.cat(list(drawn)).cpu()),
        seed=fold_seed(seed, "gap", "noise"),
        reporter=reporter or SilentReporter(),
    )
    write_json(path, curve.to_dict())


def _distinct(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Each image once, in order: the last batch begins the images anew, and an unreadable one is replaced by the next.

    Repeats would make the standard errors too small.
    """
    return torch.stack(list({image.numpy().tobytes(): image for image in images_BCHW}.values()))


def read_gap(path: Path, timesteps: int) -> GapCurve:
    """The curve that `write_gap` left of a schedule with so many timesteps.

    Raises:
        CheckpointError: when it is missing, damaged, or of another schedule.
    """
    try:
        facts: dict[str, Any] = json.loads(read_regular(path))
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
        curve = GapCurve(**fields)
        _check(curve, timesteps)
        return curve
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({shortened(error)}).",
            remedy="Remove it; the same command measures it again.",
        ) from error


def _check(curve: GapCurve, timesteps: int) -> None:
    """See that a curve from a file is one that can be, of a schedule with so many timesteps.

    Raises:
        ValueError: saying what it is not.
        TypeError: likewise.
    """
    counts = (curve.images, curve.total_timesteps, *curve.timesteps)
    if not all(type(count) is int for count in counts):
        raise ValueError("its counts are no whole numbers")
    grid = curve.timesteps
    rising = all(low < high for low, high in pairwise((-1, *grid, curve.total_timesteps)))
    if not grid or not rising or curve.total_timesteps != timesteps or curve.images < 1:
        raise ValueError("its timesteps are not those of the noise schedule")
    values = (curve.error, curve.stderr, curve.clamped, curve.clamped_stderr)
    if any(len(part) != len(grid) or not all(type(value) in (int, float) for value in part) for part in values):
        raise ValueError("it has other than one number for each timestep")
    others = (*curve.clamped, 0.0 if curve.mean_image is None else curve.mean_image)
    if not all(0 < value < math.inf for value in curve.error) or not all(0 <= value < math.inf for value in others):
        raise ValueError("its errors are not all above zero and finite")
