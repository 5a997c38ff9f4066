"""All faults, and how often each is put in."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from . import encoding, training
from .settings import Bench


@dataclass(frozen=True)
class Fault:
    """A fault that nothing may be lost by.

    Attributes:
        name: for tables.
        put: puts it into a command of its own, and raises AssertionError or TimeoutError where something is lost.
        tries: in the benchmark.
        tries_in_test: in the test.
    """

    name: str
    put: Callable[[Bench, random.Random], None]
    tries: int = 3
    tries_in_test: int = 1


FAULTS = (
    Fault("SIGKILL of training, at a random moment", training.kill, 20, 3),
    Fault("SIGKILL of encoding, at a random moment", encoding.kill, 20, 3),
    Fault("Ctrl-C in training", partial(training.ask, number=signal.SIGINT), 5),
    Fault("SIGTERM in training", partial(training.ask, number=signal.SIGTERM), 5),
    Fault("Ctrl-C in encoding", partial(encoding.ask, number=signal.SIGINT), 5),
    Fault("SIGTERM in encoding", partial(encoding.ask, number=signal.SIGTERM), 5),
    Fault("disk full at a checkpoint", partial(training.fill_disk, size=20_000), 5),
    Fault("disk full at metrics.jsonl", partial(training.fill_disk, size=1000), 5),
    Fault("disk full at the finished model", training.fill_disk_at_the_end, 5),
    Fault("disk full at the features", encoding.fill_disk, 5),
    Fault("checkpoint truncated", partial(training.damage, how="truncated"), 20),
    Fault("checkpoint with a bit turned over", partial(training.damage, how="bit"), 20),
    Fault("an image changes before resuming", partial(training.change_images, how="changes")),
    Fault("an image comes before resuming", partial(training.change_images, how="comes")),
    Fault("an image goes before resuming", partial(training.change_images, how="goes")),
    Fault("an image vanishes during training", training.lose_image),
    Fault("SIGKILL of a decoding process", training.kill_decoder, 5),
    Fault("an image changes before encoding goes on", encoding.change_image),
    Fault("an image vanishes before it is encoded", encoding.lose_image),
    Fault("the clock jumps back", partial(training.turn_clock, way=-1)),
    Fault("the clock jumps ahead", partial(training.turn_clock, way=1)),
    Fault("a second run in the same folder", training.start_twice, 5),
    Fault("two runs at once in a new folder", training.start_two_at_once, 10),
    Fault("two encodings at once into one file", encoding.start_two_at_once, 10),
    Fault("training into a read-only folder", training.refuse_folder),
    Fault("encoding into a read-only folder", encoding.refuse_folder),
    Fault("blanks, quotes and other scripts in paths", encoding.hard_names),
)
