"""One LMDB file, read-only, from any number of threads and worker processes.

LMDB forbids a second environment of a file in one process, and an environment that was opened before a fork
in the child. So each process has one `LmdbReader` per file, which opens at first use and again after a fork.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.data.machine import stopped
from diticli.errors import DataError, MachineError

if TYPE_CHECKING:
    import lmdb

_BROKEN = "Copy or download it again."


class LmdbReader:
    """The values of one LMDB. Make it with `lmdb_reader`; pickles as its path.

    Args:
        path: absolute path of the data file (`data.mdb`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._environment: lmdb.Environment | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return lmdb_reader, (self.path,)

    def get(self, key: bytes) -> bytes | None:
        """The value of a key; None when it is absent.

        Raises:
            DataError: when the file cannot be read or is damaged at this key, or `lmdb` is not installed.
        """
        with self._transaction() as transaction:
            value = transaction.get(key)
            return None if value is None else bytes(value)

    def first_key(self, start: bytes = b"") -> bytes | None:
        """The smallest key that is not below `start`; None when there is none.

        Raises:
            DataError: as `get`.
        """
        with self._transaction() as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(start) if start else cursor.first()
            return bytes(cursor.key()) if found else None

    @property
    def entries(self) -> int:
        """Number of keys."""
        return int(self._open().stat()["entries"])

    def after_fork(self) -> None:
        """Let go of what was inherited; only a child process calls this."""
        self._lock = threading.Lock()
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    @contextmanager
    def _transaction(self) -> Iterator[lmdb.Transaction]:
        environment = self._open()
        import lmdb

        try:
            with environment.begin() as transaction:
                yield transaction
        except lmdb.Error as error:
            raise _damaged(self.path, error) from error

    def _open(self) -> lmdb.Environment:
        with self._lock:
            if self._environment is None:
                self._environment = _open_environment(self.path)
            return self._environment


_readers: weakref.WeakValueDictionary[tuple[Path, int], LmdbReader] = weakref.WeakValueDictionary()
_readers_lock = threading.Lock()


def lmdb_reader(path: Path) -> LmdbReader:
    """The reader that everybody in this process shares for a data file, as long as somebody holds it.

    Raises:
        DataError: when there is no such file.
    """
    try:
        real = path.resolve(strict=True)
        key = real, real.stat().st_ino
    except OSError as error:
        raise DataError(f"Cannot open the LMDB {path}: {error.strerror}.", remedy="Check the path.") from error
    if not real.is_file():
        raise DataError(f"{path} is not a regular file.", remedy="Name the data.mdb, or the folder that holds it.")
    _reopen_after_fork()
    with _readers_lock:
        reader = _readers.get(key)
        if reader is None:
            reader = _readers[key] = LmdbReader(real)
        return reader


@cache
def _reopen_after_fork() -> None:
    """In a child that is forked from now on, readers open their files again."""
    os.register_at_fork(after_in_child=_after_fork)


def _after_fork() -> None:
    global _readers_lock
    _readers_lock = threading.Lock()
    for reader in list(_readers.values()):
        reader.after_fork()


def _open_environment(path: Path) -> lmdb.Environment:
    try:
        import lmdb
    except ImportError as error:
        raise DataError(
            f"Reading {path} needs the package lmdb, which is not installed.",
            remedy='Install it: pip install "diticli[lmdb]".',
        ) from error
    try:
        environment = lmdb.open(
            str(path), subdir=False, readonly=True, create=False, lock=False, readahead=False, meminit=False
        )
    except (lmdb.Error, OSError) as error:
        raise _damaged(path, error) from error
    # LMDB trusts the size that the file states, which is not safe: it is compared here first.
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    size = path.stat().st_size
    if size < needed:
        environment.close()
        raise DataError(f"The LMDB {path} is cut off: {size:,} of {needed:,} bytes are there.", remedy=_BROKEN)
    return environment


def _damaged(path: Path, error: Exception) -> DataError | MachineError:
    # lmdb has no error number, only the system's words behind the path.
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE):
        if str(error).endswith(os.strerror(number)):
            return stopped(OSError(number, os.strerror(number)), f"the LMDB {path}")
    reason = str(error).removeprefix(f"{path}: ") or type(error).__name__
    return DataError(f"Cannot read the LMDB {path}: {reason}.", remedy=_BROKEN)
