"""Tell a damaged image from a failing machine (memory, open files, disk) when a read fails.

A picture that cannot be decoded is skipped and named. Memory, descriptors or a network disk that fail say nothing of
the picture: the read is tried again, and then the command stops with the reason.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

from diticli.errors import MachineError

PAUSES = (0.1, 0.5, 2.0)
"""Seconds between one attempt and the next; after the last attempt the command stops."""

# What the system answers of the one file that was asked for.
_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
        *(errno.EINVAL, errno.ENXIO, errno.ENODEV, errno.EOVERFLOW, errno.EFBIG),
    }
)
_REMEDIES = {
    errno.EMFILE: "Raise the limit of open files (ulimit -n) or use fewer --workers, then run the same command again.",
    errno.ENFILE: "Close other programs or use fewer --workers, then run the same command again.",
    errno.ENOMEM: "Free some memory or use fewer --workers, then run the same command again.",
}
_DISK = "Check the disk or the network share that holds the images, then run the same command again."

T = TypeVar("T")


def is_of_machine(error: BaseException) -> bool:
    """Whether an error says nothing of the file: memory, descriptors, a disk or a network that failed."""
    if isinstance(error, OSError):  # decoders raise OSErrors without a number
        return error.errno is not None and error.errno not in _OF_THE_FILE
    return isinstance(error, MemoryError)


def patiently(read: Callable[[], T], name: str) -> T:
    """The result of `read`, tried again after `PAUSES` while the machine fails it.

    Args:
        read: may be called several times.
        name: of what is read, for the message.

    Raises:
        MachineError: when the last attempt failed like the others. Other errors pass through at once.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except (MemoryError, OSError) as error:
            if not is_of_machine(error):
                raise
            if pause is None:
                raise stopped(error, name) from error
            time.sleep(pause)
    raise AssertionError("the last pause is None")


def stopped(error: MemoryError | OSError, name: str) -> MachineError:
    """The error that ends a command: what could not be read, why, and what to do."""
    number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno or 0
    return MachineError(
        f"Cannot read {name}: {os.strerror(number).lower()}. That says nothing of the images, so none is skipped.",
        remedy=_REMEDIES.get(number, _DISK),
    )
