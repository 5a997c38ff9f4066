"""Does the decoder use each chunk? How much the loss rises when a chunk's features are taken away.

Legend of shape suffixes: N images, B batch, D latent dim, G groups of chunks, K timesteps measured, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from diticli.editing.mixing import check_chunks
from diticli.editing.stages import grouped
from diticli.errors import DataError
from diticli.evaluation.denoising import Denoiser, NoisyImages
from diticli.evaluation.kept import Arrays, KeptArrays, content
from diticli.evaluation.scores import to_json
from diticli.models.reconstruction_gap import check_images, noisy_batches
from diticli.progress import Reporter, SilentReporter
from diticli.statistics import Bootstrap, Estimate
from diticli.types import DoubleArray

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.models.model import DiTiModel

IGNORED = 0.05
"""A chunk is ignored that gives less than this part of what it would if all gave the same."""
POINTS = 32
"""About as many timesteps are measured, and at least one in every group's own range."""
MIN_IMAGES = 8


@dataclass(frozen=True, kw_only=True)
class ChunkAblation:
    """How much the loss rises without a group of chunks.

    Each of its dims is set to its mean over the measured images. That takes away what the dims say of an image without
    saying anything wrong (another image's dims would, and would seem about twice as important); the loss is that of
    training, w_t (noise - estimate)^2.

    Attributes:
        chunks: of the group.
        timesteps: its own range of timesteps, [first, last).
        own: rise of the loss within this range, as a part of what the base alone loses there.
        beyond: the same over the other timesteps that see the group, which with the published layout are all later
            ones; None where there are none.
        share: its part of the rises of all groups, over all timesteps.
        ignored: whether the rise does not differ from 0 (its 95 % interval), or `share` is below `IGNORED` / G.
    """

    chunks: tuple[int, ...]
    timesteps: tuple[int, int]
    own: Estimate
    beyond: Estimate | None
    share: Estimate
    ignored: bool


@dataclass(frozen=True, kw_only=True)
class FeatureAblation:
    """How much the loss rises without each group of chunks, and without all.

    Attributes:
        groups: one entry per group of chunks.
        everything: rise of the loss when all of z is replaced by its mean, as a part of what the base alone loses.
        gain: part of the base's loss that the features take away.
        images: how many were measured.
    """

    groups: tuple[ChunkAblation, ...]
    everything: Estimate
    gain: Estimate
    images: int

    @property
    def ignored(self) -> tuple[int, ...]:
        """Chunks of groups that are ignored."""
        return tuple(chunk for group in self.groups if group.ignored for chunk in group.chunks)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        json: dict[str, Any] = to_json({**vars(self), "ignored": self.ignored})
        return json


def measure_ablation(
    pipeline: DiTiModel,
    images_NCHW: torch.Tensor,
    *,
    groups: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    batch_size: int = 64,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> FeatureAblation:
    """How much the loss rises without each chunk, at the timesteps that see it.

    The cost is about 32 timesteps (at least one a group) times half the groups, in forwards of the shift branch per
    image.

    Args:
        pipeline: the model.
        images_NCHW: uint8 [N, 3, R, R], N at least 8; not those that it was trained on.
        groups: consecutive chunks that go together, from the first to the last; default: every chunk by itself.
        seed: of noise and bootstrap (over images).
        batch_size: images at a time.
        reporter: receiver of progress; it is warned of ignored chunks.
        kept: where losses that were measured before are found.

    Raises:
        DataError: for anything but uint8 images, or fewer than 8.
        ChunkError: for a chunk that the model lacks.
        ModelError: for an encoder alone.
    """
    reporter = reporter or SilentReporter()
    check_images(images_NCHW)
    if len(images_NCHW) < MIN_IMAGES:
        raise DataError(f"{len(images_NCHW)} images are too few.", remedy=f"Give at least {MIN_IMAGES}.")
    layout = pipeline.chunks
    chosen = [tuple(sorted(group)) for group in (groups or grouped(layout, layout.chunks))]
    for group in chosen:
        check_chunks(group, layout)
    ranges = [(layout.timestep_starts[g[0]], layout.timestep_ends[g[-1]]) for g in chosen]
    grid = _grid(ranges)
    seen_KG = np.array([[_sees(layout, t, group) for group in chosen] for t in grid.timesteps])

    def measure() -> Arrays:
        return vars(_losses(pipeline, images_NCHW, chosen, seen_KG, grid, seed, batch_size, reporter))

    facts: list[Any] = [pipeline.model_hash, content(images_NCHW), chosen, grid.timesteps, seed, batch_size]
    losses = _Losses(**(kept or KeptArrays()).get("ablation", facts, measure))
    use = _summary(chosen, ranges, seen_KG, grid, losses, seed)
    if use.ignored:
        reporter.warn(
            f"The decoder ignores {layout.describe(use.ignored)}: without their features the loss hardly rises."
        )
    return use


@dataclass(frozen=True)
class _Grid:
    """Timesteps, how many each stands for, and whose own range each lies in."""

    timesteps: tuple[int, ...]
    weights_K: DoubleArray
    owners: tuple[int, ...]


@dataclass(frozen=True)
class _Losses:
    """Of each image at each timestep: the base's, with features, with all replaced, and the rise without a group."""

    base_KN: DoubleArray
    whole_KN: DoubleArray
    none_KN: DoubleArray
    rise_GKN: DoubleArray


def _grid(ranges: Sequence[tuple[int, int]]) -> _Grid:
    """The centres of equal parts of each range, so many that there are about `POINTS` in all."""
    each = max(1, round(POINTS / len(ranges)))
    timesteps, weights, owners = [], [], []
    for owner, (start, end) in enumerate(ranges):
        count = min(each, end - start)
        timesteps += [start + int((i + 0.5) * (end - start) / count) for i in range(count)]
        weights += [(end - start) / count] * count
        owners += [owner] * count
    return _Grid(tuple(timesteps), np.array(weights), tuple(owners))


def _sees(layout: ChunkLayout, timestep: int, group: Sequence[int]) -> bool:
    return not set(group).isdisjoint(layout.seen_by(layout.chunk_of(timestep)))


def _losses(
    pipeline: DiTiModel,
    images_NCHW: torch.Tensor,
    groups: Sequence[tuple[int, ...]],
    seen_KG: npt.NDArray[np.bool_],
    grid: _Grid,
    seed: int,
    batch_size: int,
    reporter: Reporter,
) -> _Losses:
    denoiser = Denoiser(pipeline)
    masks = [torch.from_numpy(pipeline.chunks.dim_mask(group)) for group in groups]
    z_ND = pipeline.encode_uint8(images_NCHW)
    mean_D = z_ND.mean(dim=0)
    reporter.start("Taking chunks away", len(images_NCHW) * len(grid.timesteps), unit="images")
    parts = []
    for (x0, noise), z in zip(
        noisy_batches(images_NCHW, seed, batch_size, denoiser.device), z_ND.split(batch_size), strict=True
    ):
        rows = []
        for t, seen_G in zip(grid.timesteps, seen_KG, strict=True):
            step = NoisyImages(denoiser, x0, noise, t)
            weight = denoiser.schedule.loss_weight[t].item()
            seen = [mask if sees else None for mask, sees in zip(masks, seen_G, strict=True)]
            estimates = _estimates(step, z, mean_D, seen)
            rows.append(weight * torch.stack([(noise - e).square().mean(dim=(1, 2, 3)) for e in estimates]))
            reporter.advance(len(x0))
        parts.append(torch.stack(rows, dim=1).double().cpu().numpy())
    reporter.finish()
    base_KN, whole_KN, none_KN, *without = np.concatenate(parts, axis=2)
    return _Losses(base_KN, whole_KN, none_KN, np.stack(without) - whole_KN)


def _estimates(
    step: NoisyImages, z_BD: torch.Tensor, mean_D: torch.Tensor, masks: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """Of the base, with features, with their mean, and without each group; a group that is not seen changes nothing."""
    whole = step.estimate(z_BD)
    without = [whole if mask is None else step.estimate(torch.where(mask, mean_D, z_BD)) for mask in masks]
    return [step.base_BCHW, whole, step.estimate(mean_D.expand_as(z_BD)), *without]


def _summary(
    groups: Sequence[tuple[int, ...]],
    ranges: Sequence[tuple[int, int]],
    seen_KG: npt.NDArray[np.bool_],
    grid: _Grid,
    losses: _Losses,
    seed: int,
) -> FeatureAblation:
    """Sums over timesteps, of all images (the first sample) and of resampled ones."""
    images = losses.base_KN.shape[1]
    samples_SN = np.vstack([np.ones(images), Bootstrap.over_rows(images, seed=seed).counts()])
    owner_K, weights_K = np.array(grid.owners), grid.weights_K
    base_SK = samples_SN @ (losses.base_KN * weights_K[:, None]).T
    rise_GSK = np.stack([samples_SN @ (rise_KN * weights_K[:, None]).T for rise_KN in losses.rise_GKN])
    total_GS = rise_GSK.sum(axis=2)
    share_GS = _over(total_GS, np.maximum(total_GS, 0).sum(axis=0))

    def within(group: int, chosen_K: npt.NDArray[np.bool_]) -> Estimate:
        return _estimate(_over(rise_GSK[group][:, chosen_K].sum(axis=1), base_SK[:, chosen_K].sum(axis=1)))

    def part(loss_KN: DoubleArray) -> Estimate:
        return _estimate(_over((samples_SN @ (loss_KN * weights_K[:, None]).T).sum(axis=1), base_SK.sum(axis=1)))

    uses = []
    for g, (chunks, span) in enumerate(zip(groups, ranges, strict=True)):
        total, share = _estimate(total_GS[g]), _estimate(share_GS[g])
        beyond_K = seen_KG[:, g] & (owner_K != g)
        use = ChunkAblation(
            chunks=chunks,
            timesteps=span,
            own=within(g, owner_K == g),
            beyond=within(g, beyond_K) if beyond_K.any() else None,
            share=share,
            ignored=total.low is None or total.low <= 0 or share.value < IGNORED / len(groups),
        )
        uses.append(use)
    return FeatureAblation(
        groups=tuple(uses),
        everything=part(losses.none_KN - losses.whole_KN),
        gain=part(losses.base_KN - losses.whole_KN),
        images=images,
    )


def _estimate(samples_S: DoubleArray) -> Estimate:
    return Estimate.from_resamples(samples_S[0], samples_S[1:])


def _over(top: DoubleArray, bottom: DoubleArray) -> DoubleArray:
    return np.divide(top, bottom, out=np.zeros_like(top), where=np.broadcast_to(bottom > 0, top.shape))
