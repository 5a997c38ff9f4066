"""Which images make up step n, and the randomness that step n uses: both functions of (seed, step) alone.

Images stay uint8 until they lie on the device. Nothing here keeps state between steps, so a resumed run, or one on
another number of processes, sees the same images, timesteps and noise.

Legend of shape suffixes: B batch, C channels, H height, W width, N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from diticli.data.images import ImageSource, Skipped, UnreadableImageError, check_skipped
from diticli.distributed import Rank
from diticli.errors import MachineError
from diticli.models.pipeline import normalise
from diticli.models.transfer import fits_in_memory, prefetched, upload, uploaded

RESIDENT_SHARE = 0.25
"""Images stay on a GPU where they take at most this share of its free memory; activations need the rest."""


class DataOrder:
    """Endless shuffled order over N images; each pass is a new permutation from (seed, pass)."""

    def __init__(self, images: int, batch_size: int, seed: int) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self._cached: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """[batch_size] image indices of step `step` (zero-based)."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = position // self.images
        parts = [self._permutation(e)[position[epochs == e] % self.images] for e in np.unique(epochs).tolist()]
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._cached[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._cached = (epoch, rng.permutation(self.images))
        return self._cached[1]


class ImageFeed(Protocol):
    """Delivers uint8 batches [B, C, H, W] in the order of a `DataOrder`, from some step on."""

    def batches(
        self, order: DataOrder, first_step: int, last_step: int, rank: Rank, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """One local batch on `device` per step in [first_step, last_step); the host does not wait for the device."""


class MemoryFeed:
    """Images decoded once and kept as uint8 [N, C, H, W], on the GPU where they fit.

    Where they do not, a thread gathers batches into pinned memory, and they are copied ahead of their use.

    Args:
        images_NHWC: the images.
        resident_share: of a GPU's free memory that they may take for the length of a run.
    """

    def __init__(self, images_NHWC: npt.NDArray[np.uint8], resident_share: float = RESIDENT_SHARE) -> None:
        self.images_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
        self.resident_share = resident_share
        self._resident = self.images_NCHW

    def batches(
        self, order: DataOrder, first_step: int, last_step: int, rank: Rank, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """See `ImageFeed.batches`."""
        mine = rank.local_slice(order.batch_size)
        rows = (torch.from_numpy(order.batch(step)[mine]) for step in range(first_step, last_step))
        images_NCHW = self._on(device)
        if images_NCHW.device.type == device.type:
            yield from (images_NCHW.index_select(0, upload(chosen, device)) for chosen in rows)
        else:
            yield from uploaded(prefetched(_gather_pinned(images_NCHW, chosen) for chosen in rows), device)

    def _on(self, device: torch.device) -> torch.Tensor:
        """All images on `device` where they fit, else on the host."""
        if self._resident.device.type != device.type and fits_in_memory(
            self.images_NCHW.nbytes, device, self.resident_share
        ):
            self._resident = self.images_NCHW.to(device)
        return self._resident if self._resident.device.type == device.type else self.images_NCHW


def _gather_pinned(images_NCHW: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    shape = (len(rows), *images_NCHW.shape[1:])
    return torch.index_select(images_NCHW, 0, rows, out=torch.empty(shape, dtype=torch.uint8, pin_memory=True))


class StreamFeed:
    """Images decoded by worker processes as they are needed.

    An unreadable image is replaced by the next readable one, counted once, and listed in `skipped_list`.

    Args:
        source: the images.
        workers: decoding processes; 0 decodes in this one.
        skipped_list: text file, `name<TAB>reason` a line, written when there are any; None writes none.
    """

    def __init__(self, source: ImageSource, workers: int, skipped_list: Path | None) -> None:
        self.source, self.workers, self.skipped_list = source, workers, skipped_list
        self._skipped: dict[str, Skipped] = {}

    def batches(
        self, order: DataOrder, first_step: int, last_step: int, rank: Rank, device: torch.device
    ) -> Iterator[torch.Tensor]:
        """See `ImageFeed.batches`.

        Raises:
            DataError: when more than 5 % of all images turned out unreadable.
        """
        mine = rank.local_slice(order.batch_size)
        steps = (order.batch(step)[mine].tolist() for step in range(first_step, last_step))
        loader: DataLoader[_Batch] = DataLoader(
            _Decoded(self.source),
            batch_sampler=steps,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            prefetch_factor=4 if self.workers else None,
            multiprocessing_context=_start_method(rank, device, self.source) if self.workers else None,
        )
        yield from uploaded(self._noting(loader), device)

    def first(self, count: int) -> torch.Tensor:
        """The first `count` readable images, uint8 [B, C, H, W]."""
        decoded = _Decoded(self.source)
        return _images(_collate([decoded[i] for i in range(min(count, len(self.source)))]))[0]

    @property
    def skipped(self) -> dict[str, str]:
        """Unreadable images that were met so far -> why."""
        return {name: item.reason for name, item in self._skipped.items()}

    def readable_of(self, others: dict[str, str]) -> str:
        """The first image that another process could not read and this one can; else "", and all are noted here.

        Args:
            others: their `skipped`.
        """
        new = {name: reason for name, reason in others.items() if name not in self._skipped}
        if not new:
            return ""
        for index in range(len(self.source)):
            if (name := self.source.file_name(index)) in new:
                try:
                    self.source.load(index)
                except UnreadableImageError:
                    continue
                return name
        self._note([Skipped(name, reason) for name, reason in new.items()])
        return ""

    def _noting(self, loader: DataLoader[_Batch]) -> Iterator[torch.Tensor]:
        for batch in loader:
            images, skipped = _images(batch)
            if skipped:
                self._note(skipped)
            yield images

    def _note(self, skipped: list[Skipped]) -> None:
        new = {item.file: item for item in skipped if item.file not in self._skipped}
        if new:
            self._skipped |= new
            check_skipped(list(self._skipped.values()), len(self.source), skipped_list=self.skipped_list)


# A decoding process hands its error over as a value: raised there, it would lose its type and its remedy.
_Item = tuple[torch.Tensor, list[Skipped]] | MachineError
_Batch = tuple[torch.Tensor, list[Skipped]] | MachineError


class _Decoded(Dataset[_Item]):
    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> _Item:
        skipped = []
        for offset in range(len(self.source)):
            position = (index + offset) % len(self.source)
            try:
                image = self.source.load(position)
            except UnreadableImageError as error:
                skipped.append(Skipped(self.source.file_name(position), error.reason))
                continue
            except MachineError as error:
                return error
            return torch.from_numpy(image).permute(2, 0, 1), skipped
        raise UnreadableImageError(self.source.name, "no image is readable any more")


def _start_method(rank: Rank, device: torch.device, source: object) -> str | None:
    """How decoding processes start: not as copies of one in which NCCL runs, whose threads may hold locks then.

    None, PyTorch's own way, where no NCCL runs or the source cannot be handed to another process.
    """
    if rank.count == 1 or device.type != "cuda":
        return None
    try:
        ForkingPickler.dumps(source)
    except (TypeError, AttributeError, ValueError):
        return None
    return "forkserver"


def _collate(items: list[_Item]) -> _Batch:
    whole = [item for item in items if not isinstance(item, MachineError)]
    if failed := [item for item in items if isinstance(item, MachineError)]:
        return failed[0]
    return torch.stack([image for image, _ in whole]), [item for _, skipped in whole for item in skipped]


def _images(batch: _Batch) -> tuple[torch.Tensor, list[Skipped]]:
    if isinstance(batch, MachineError):
        raise batch
    return batch


class StepNoise:
    """Flips, timesteps and noise of a step, drawn for the global batch and cut to this process's part."""

    def __init__(self, *, seed: int, stage: str, timesteps: int, batch_size: int, flip: bool, rank: Rank) -> None:
        self.seed, self.stage, self.timesteps = seed, stage, timesteps
        self.batch_size, self.flip, self.rank = batch_size, flip, rank

    def draw(self, step: int, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x_0 float32 in [-1, 1], t [B] uniform in 0..T-1, Gaussian noise) on the device of `images_BCHW` (uint8).

        Also seeds torch's global generators, from which dropout draws.
        """
        device = images_BCHW.device
        mine = self.rank.local_slice(self.batch_size)
        seed = fold_seed(self.seed, self.stage, step)
        torch.manual_seed(seed + self.rank.index)
        generator = torch.Generator(device).manual_seed(seed)
        t = torch.randint(self.timesteps, (self.batch_size,), device=device, generator=generator)[mine]
        coins = torch.rand(self.batch_size, device=device, generator=generator)[mine] < 0.5
        shape = (self.batch_size, *images_BCHW.shape[1:])
        noise = torch.randn(shape, device=device, generator=generator)[mine]
        x0 = normalise(images_BCHW)
        if self.flip:
            x0 = torch.where(coins[:, None, None, None], x0.flip(-1), x0)
        return x0, t, noise

    def draw_features(self, step: int, dims: int, device: torch.device) -> torch.Tensor:
        """Gaussian noise [B, dims] for the features of a step."""
        generator = torch.Generator(device).manual_seed(fold_seed(self.seed, self.stage, step, "features"))
        noise_BD = torch.randn(self.batch_size, dims, device=device, generator=generator)
        return noise_BD[self.rank.local_slice(self.batch_size)]


def fold_seed(seed: int, *parts: str | int) -> int:
    """A 48-bit seed from a run's seed and any names or numbers; the same everywhere."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:6], "little")
