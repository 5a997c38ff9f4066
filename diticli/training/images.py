"""The images of a run, from its settings: decoded into memory where they fit, else streamed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch

from diticli.config import RunConfig
from diticli.data.images import ImageSource, UnreadableImageError, load_images, open_images
from diticli.distributed import PeerMonitor
from diticli.errors import ConfigError
from diticli.progress import Reporter
from diticli.training import samples
from diticli.training.batches import ImageFeed, MemoryFeed, StreamFeed
from diticli.training.rundir import RunDirectory


@dataclass(frozen=True)
class RunImages:
    """The run's images: a feed for training and a few to look at."""

    feed: ImageFeed
    count: int
    preview: torch.Tensor
    """uint8 [B, C, R, R]."""


def open_source(config: RunConfig, reporter: Reporter | None = None) -> ImageSource:
    """The images named by the settings; what is left out of them is reported.

    Raises:
        DataError: when there are none.
    """
    data = config.data
    crop = None if data.crop == "auto" else data.crop
    return open_images(
        data.source,
        data.resolution,
        crop=crop,
        faces_count=data.faces_count,
        value_range=data.value_range,
        channels=data.channels,
        reporter=reporter,
    )


def prepare_images(
    config: RunConfig, source: ImageSource, run: RunDirectory, reporter: Reporter, *, rank: int = 0
) -> RunImages:
    """Decode into memory what fits, stream the rest.

    What cannot be read is listed in `skipped.txt`, by the first process. Streaming processes meet different images;
    see `compare_skipped`.

    Raises:
        DataError: when too many images are unreadable.
    """
    if not fits_in_memory(config, source):
        feed = StreamFeed(source, reading_workers(config), None if rank else run.root / "skipped.txt")
        return RunImages(feed, len(source), feed.first(samples.COUNT))
    skipped_list = None if rank else run.root / "skipped.txt"
    loaded = load_images(source, reporter=reporter, workers=config.data.workers or None, skipped_list=skipped_list)
    memory = MemoryFeed(loaded.images)
    return RunImages(memory, len(loaded.images), memory.images_NCHW[: samples.COUNT])


def compare_skipped(images: RunImages, peers: PeerMonitor) -> None:
    """Make sure that streamed images which one process could not read are unreadable for all. All must ask.

    Raises:
        ConfigError: when this process can read one of them.
        DataError: when too many images are unreadable.
    """
    if peers.rank.count == 1 or not isinstance(images.feed, StreamFeed):
        return
    for rank, others in enumerate(peers.gather("skipped", images.feed.skipped)):
        if name := images.feed.readable_of(others):
            raise ConfigError(
                f"Process {peers.rank.index} can read {name}, and process {rank} cannot ({others[name]}).",
                remedy="All of them need the same images, on a file system they share.",
            )


def looks_grey(source: ImageSource, sample: int = 16) -> bool:
    """Whether pictures spread over the source, those that can be read, have no colours."""
    seen = False
    for index in range(0, len(source), max(1, len(source) // sample)):
        with contextlib.suppress(UnreadableImageError):
            picture = source.load(index)
            if (picture != picture[..., :1]).any():
                return False
            seen = True
    return seen


def fits_in_memory(config: RunConfig, source: ImageSource) -> bool:
    """Whether the decoded images are held in memory; else they are streamed."""
    return len(source) * config.data.channels * config.data.resolution**2 <= config.data.memory_limit_mb * 2**20


def reading_workers(config: RunConfig) -> int:
    """Decoding threads or processes."""
    return config.data.workers or len(os.sched_getaffinity(0))
