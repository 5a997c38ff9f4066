"""Labelled images in two disjoint parts: some to learn from (the classifier, the directions), some to edit and judge.

Legend of shape suffixes: N images, R resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.config_groups import Crop, ValueRange
from diticli.data.faces import FACTORS, render_face, sample_factors
from diticli.data.images import FaceImages, load_images, open_images
from diticli.data.labels import LabelColumn, read_groups, read_labels
from diticli.data.square import to_square
from diticli.errors import ConfigError
from diticli.probing.label_join import identity_note, join_labels
from diticli.progress import Reporter
from diticli.reading import quoted
from diticli.types import Rows

Pixels = npt.NDArray[np.uint8]

# Training draws faces of seed 0 and the demo probes those of 1.
LEARN_SEED = 2
JUDGE_SEED = 3
_BOTH = "those that the classifier learns from and in those that are judged"


@dataclass(frozen=True, kw_only=True)
class EvaluationImages:
    """Images to learn from and images to judge.

    Attributes:
        learn_NCHW: uint8 [N, 3, R, R].
        columns: labels of `learn_NCHW`, binary and numeric ones.
        judge_NCHW: uint8 [M, 3, R, R], M even; rows 2i and 2i+1 are a pair.
        factors: [M, 13] ground truth of `judge_NCHW` where it is known (the built-in faces), else None.
        name: what they are.
    """

    learn_NCHW: torch.Tensor
    columns: dict[str, LabelColumn]
    judge_NCHW: torch.Tensor
    factors: npt.NDArray[np.float32] | None
    name: str

    @property
    def labels(self) -> dict[str, LabelColumn]:
        """Those of `columns` that a classifier can learn."""
        return {name: column for name, column in self.columns.items() if column.kind != "category"}

    def drawn(self, change: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> Pixels:
        """Drawings [M, R, R, C] of the judged faces with changed factors: what a perfect edit would give.

        Args:
            change: factors [M, 13] -> factors [M, 13].
        """
        assert self.factors is not None
        side = self.judge_NCHW.shape[-1]
        faces = np.stack([render_face(row, side) for row in change(self.factors.copy())])
        if self.judge_NCHW.shape[1] == 3:
            return faces
        return np.stack([to_square(Image.fromarray(face), side, channels=1) for face in faces])


def evaluation_faces(
    resolution: int, *, learn: int, pairs: int, reporter: Reporter, channels: int = 3
) -> EvaluationImages:
    """Built-in faces that neither training nor the demo's probe saw."""
    source = FaceImages(learn, LEARN_SEED, resolution)
    factors = source.factors()
    columns = {f.name: LabelColumn(f.kind, factors[:, i]) for i, f in enumerate(FACTORS)}
    images = FaceImages(2 * pairs, JUDGE_SEED, resolution)
    source.channels = images.channels = channels
    return EvaluationImages(
        learn_NCHW=_tensor(load_images(source, reporter=reporter).images),
        columns=columns,
        judge_NCHW=_tensor(load_images(images, reporter=reporter).images),
        factors=sample_factors(JUDGE_SEED, range(2 * pairs)),
        name="built-in faces",
    )


def evaluation_folder(
    data: str,
    labels: Path,
    resolution: int,
    *,
    learn: int,
    pairs: int,
    crop: Crop,
    seed: int,
    reporter: Reporter,
    value_range: ValueRange | None = None,
    channels: int = 3,
    groups: Path | None = None,
) -> EvaluationImages:
    """Labelled images of the user's, split at random: `2 * pairs` to judge, at most `learn` others to learn from.

    No group of a file of groups, such as the images of one person, is in both.

    Raises:
        DataError: when the images cannot be read.
        LabelError: when no image has a label.
        ConfigError: when there are too few.
    """
    source = open_images(data, resolution, crop=crop, value_range=value_range, channels=channels, reporter=reporter)
    loaded = load_images(source, reporter=reporter)
    files = [source.file_name(int(index)) for index in loaded.indices]
    joined = join_labels(files, read_labels(labels, files), read_groups(groups, files) if groups else None)
    for line in (joined.describe(), *joined.notes):
        reporter.note(line)
    if joined.groups is None and (likely := identity_note(files, list(joined.columns), apart=_BOTH)):
        reporter.warn(likely)
    columns = {name: column for name, column in joined.columns.items() if column.kind != "category"}
    if not columns:
        named = ", ".join(map(quoted, list(joined.columns)[:3]))
        raise ConfigError(
            f"Edits are judged by numbers and yes/no attributes, and all columns of {labels} are categories ({named}).",
            remedy="Give labels with numbers or two values, e.g. a column of 0 and 1 for each category.",
        )
    if (count := len(joined.rows)) < 4 * pairs:
        raise ConfigError(
            f"{count:,} labelled images are too few for {pairs} pairs.", remedy="Give more images, or fewer --pairs."
        )
    judge, others = _drawn(joined.groups, count, 2 * pairs, seed)
    others = np.sort(others[:learn])
    if len(judge) < 2 * pairs or len(others) < 2 * pairs:
        raise ConfigError(
            f"{count:,} images in {len(set(joined.groups or ())):,} groups are too few for {pairs} pairs.",
            remedy="Give more images, smaller groups, or fewer --pairs.",
        )
    return EvaluationImages(
        learn_NCHW=_tensor(loaded.images[joined.rows[others]]),
        columns={name: LabelColumn(c.kind, c.values[others]) for name, c in columns.items()},
        judge_NCHW=_tensor(loaded.images[joined.rows[judge]]),
        factors=None,
        name=data,
    )


def _drawn(groups: Sequence[str] | None, count: int, judged: int, seed: int) -> tuple[Rows, Rows]:
    """Rows to judge, and the others, in random order; groups are kept together, and the last of them is cut."""
    order = np.random.default_rng(seed).permutation(count)
    if groups is None:
        return order[:judged], order[judged:]
    names = [groups[row] for row in order]
    sizes, taken, held = Counter(names), 0, set()
    for name in dict.fromkeys(names):
        if taken >= judged:
            break
        held.add(name)
        taken += sizes[name]
    inside = np.array([name in held for name in names])
    return order[inside][:judged], order[~inside]


def _tensor(images_NHWC: Pixels) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
