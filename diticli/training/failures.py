"""Failures of the system during a run as typed errors: a full disk, a folder that turned read-only, a dead worker."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from diticli.errors import CheckpointError, DataError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP)


@contextlib.contextmanager
def os_errors_as_typed(out: Path) -> Iterator[None]:
    """Turn what the system says within the block into typed errors with a remedy.

    Args:
        out: the run directory.

    Raises:
        CheckpointError: when something could not be written below `out`.
        DataError: when a process that decodes images died.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (*_FULL, *_CLOSED):
            raise
        raise write_error(out, error) from error
    except RuntimeError as error:
        # PyTorch has no type for it, and raises it from a signal handler, wherever the run is.
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"A process that decodes images died: {str(error).splitlines()[0]}",
            remedy="Often memory ran out: try fewer --workers. The same command goes on from the last checkpoint.",
        ) from error


def write_error(path: Path, error: Exception) -> CheckpointError:
    """The error for a file or folder that could not be written."""
    name = getattr(error, "filename", None) or path
    reason = getattr(error, "strerror", None) or error
    closed = isinstance(error, OSError) and error.errno in _CLOSED
    begin = "Make it writable" if closed else "Free some disk space"
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        begin = "Replace the link by what it points to"
    return CheckpointError(
        f"Cannot write {name}: {reason}.",
        remedy=f"{begin}, then run the same command again: it goes on from the last checkpoint.",
    )
