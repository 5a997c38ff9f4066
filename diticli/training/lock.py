"""One run at a time in a run directory."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

from diticli.errors import ConfigError, DataError

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class RunLock:
    """Exclusive use of a folder for the length of the context; the folder is made when it is missing.

    A record lock of the operating system: it ends with this process, however that ends, so a killed run leaves none
    behind, and decoding processes that outlive it do not hold it. The file says who has it, for people. File systems
    without locks get none.

    Args:
        folder: the run directory.

    Raises:
        ConfigError: on entering, when another run has it.
        DataError: on entering, when it cannot be written.
    """

    _held: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.absolute() / NAME
        self._descriptor = -1
        self._made_folder = False

    def __enter__(self) -> Self:
        # The system does not keep a process from itself, and closing the file would end the first lock.
        if self.path in self._held:
            raise self._taken(f"process {os.getpid()} on {socket.gethostname()}")
        try:
            self._made_folder = not self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take()
        except OSError as error:
            raise DataError(
                f"Cannot write in {self.folder}: {error.strerror}.", remedy="Choose another --out."
            ) from error
        self._held.add(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.discard(self.path)
        with suppress(OSError):
            self.path.unlink()
        os.close(self._descriptor)
        if self._made_folder:
            with suppress(OSError):
                self.folder.rmdir()  # only when nothing came of it

    def _take(self) -> None:
        while True:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if self._lock() and self._still_there():
                break
            os.close(self._descriptor)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _lock(self) -> bool:
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return True
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace")
            os.close(self._descriptor)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise self._taken(holder or "another process") from error
            raise
        return True

    def _still_there(self) -> bool:
        """Whether the file was not removed by its last holder between opening and locking it."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _taken(self, holder: str) -> ConfigError:
        return ConfigError(
            f"Another run is writing into {self.folder} ({holder}).",
            remedy="Wait until it ends, stop it, or choose another --out.",
        )
