"""Write files and folders: whole or not at all, never through a link, readable by whom the umask allows.

A file or a folder is made beside its place under a random name and renamed into it, so that a reader never sees half of
it and a link at its place is replaced, never followed. Files that grow are opened in place, and refused when they are
links. Nothing else in the package opens a file for writing; a test (`tests/code_scan.py`) sees to it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from diticli.errors import ConfigError, DataError
from diticli.reading import check_regular

LOCK_NAME = ".lock"

_NEW = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.part", re.DOTALL)
_LONGEST_NAME = 200  # bytes; file systems allow 255
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


# Files that appear whole


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[IO[bytes]]:
    """An open file that takes the place of `path` when the block ends without an error.

    Args:
        path: where the file shall be; a link there is replaced. Its folder must exist.
        durable: whether it must survive a power cut: for the thousandth picture of a folder that takes too long.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
    """
    with _beside(path, durable=durable) as (_, descriptor), os.fdopen(os.dup(descriptor), "w+b") as file:
        yield file


@contextmanager
def replacing_by_name(path: Path) -> Iterator[Path]:
    """As `replacing`, for libraries that write to a path: that of an empty file beside `path`.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
    """
    with _beside(path, durable=True) as (temporary, _):
        yield temporary


@contextmanager
def _beside(path: Path, *, durable: bool) -> Iterator[tuple[Path, int]]:
    temporary = _temporary_name(path)
    descriptor = os.open(temporary, os.O_RDWR | _NEW, 0o666)
    try:
        yield temporary, descriptor
        # A library may have put another file there, readable by its owner alone (safetensors does).
        _settle(temporary, stat.S_IMODE(os.fstat(descriptor).st_mode), durable=durable)
        os.replace(temporary, path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Put a whole file in place.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
    """
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, data: Any, *, indent: int = 2, allow_nan: bool = True) -> None:
    """Put a JSON file in place.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
        ValueError: for NaN or infinity, unless they are allowed.
    """
    write_bytes(path, (json.dumps(data, indent=indent, allow_nan=allow_nan) + "\n").encode())


def write_tensors(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> None:
    """Put a safetensors file of PyTorch tensors or NumPy arrays in place.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
        SafetensorError: likewise.
    """
    import numpy as np

    if all(isinstance(value, np.ndarray) for value in tensors.values()):
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file
    with replacing_by_name(path) as temporary:
        save_file(dict(tensors), temporary, metadata=metadata)


def write_torch(path: Path, state: Mapping[str, Any]) -> None:
    """Put a file of PyTorch's own format in place, for libraries that read nothing else.

    Raises:
        OSError: when it cannot be written; what was at `path` stays.
    """
    import torch

    with replacing(path) as file:
        torch.save(dict(state), file)


def write_atomically(path: Path, what: str, content: bytes | str | Callable[[IO[bytes]], object]) -> Path:
    """Put a result in place, in missing folders too.

    Args:
        path: where it shall be; a link there is replaced.
        what: its name in an error, e.g. "picture".
        content: the bytes, a text (UTF-8), or what fills the open file.

    Raises:
        DataError: when it cannot be written; what was at `path` stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    except OSError as error:
        raise DataError(
            f"Cannot write the {what} {path}: {error.strerror or error}.", remedy="Choose another place."
        ) from error
    return path


def move_into_place(source: Path, path: Path) -> None:
    """Rename a file that is complete and synced, in the folder of `path`.

    Raises:
        OSError: when it cannot be renamed.
    """
    os.replace(source, path)
    _sync_folder(path.parent)


# Folders that appear whole


def publish_folder(path: Path, fill: Callable[[Path], object], *, replace: bool = False) -> None:
    """Let `fill` write files into a folder beside `path`, sync them, and rename the folder into place.

    Args:
        path: where the folder shall be; missing parents are made.
        fill: writes into the empty folder that it is given.
        replace: whether a folder at `path` goes; else it must be empty.

    Raises:
        OSError: when it cannot be written; what was at `path` stays. So does whatever `fill` raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        fill(temporary)
        for folder, _, names in os.walk(temporary, topdown=False):
            mode = _mode_of_new_files(Path(folder))
            for name in names:
                _settle(Path(folder, name), mode, durable=True)
            _sync_folder(Path(folder))
        if replace and os.path.lexists(path):
            old = _temporary_name(path)
            os.rename(path, old)
            os.rename(temporary, path)
            _remove(old)
        else:
            os.rename(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_leftovers(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove what processes that were killed left beside these files or folders; None: in the whole folder.

    For whoever alone writes them: what another process is about to rename would go too.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            found = _LEFTOVER.fullmatch(entry.name)
            if found and (names is None or found["name"] in map(_shortened, names)):
                with suppress(OSError):
                    _remove(Path(entry.path))


def is_leftover(name: str) -> bool:
    """Whether a name is that of a file or folder which was never renamed into place."""
    return _LEFTOVER.fullmatch(name) is not None


# Files that grow


def open_in_place(path: Path, *, append: bool = False) -> IO[bytes]:
    """Open a regular file to read and write, made when missing; the descriptor is the caller's to close.

    Raises:
        OSError: when it cannot be written, is a link (ELOOP), or is no regular file.
    """
    # Without O_NONBLOCK a named pipe would wait for its other end; regular files know no difference.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_APPEND if append else 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(
                errno.ELOOP, f"{path.name} is a link, and nothing is written through links", str(path)
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file", str(path))
    return os.fdopen(descriptor, "a+b" if append else "r+b")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, made when missing.

    Raises:
        OSError: as `open_in_place`.
    """
    with open_in_place(path, append=True) as file:
        file.write(line.encode() + b"\n")


def sync(file: IO[bytes]) -> None:
    """Make what was written survive a power cut.

    Raises:
        OSError: when it cannot be written.
    """
    file.flush()
    os.fsync(file.fileno())


# Links and checksums


def refuse_links(folder: Path, names: Collection[str] = (), *, below: Collection[str] = ()) -> None:
    """Make sure that a folder holds no links where results will be written: they would land elsewhere.

    Args:
        folder: may be a link itself, or missing.
        names: entries of it that are checked; those that begin with a dot always are.
        below: folders in it whose whole content is checked as well.

    Raises:
        DataError: naming the first link.
    """
    _refuse_links([folder / name for name in _entries(folder) if name in (*names, *below) or name.startswith(".")])
    for name in below:
        for inner, folders, files in os.walk(folder / name):  # follows no links
            _refuse_links([Path(inner, found) for found in (*folders, *files)])


def _refuse_links(paths: Collection[Path]) -> None:
    for path in paths:
        if path.is_symlink():
            raise DataError(
                f"{path} is a link, and nothing is written through links.",
                remedy="Replace it by what it points to, or remove it; or choose another folder, which may be a link.",
            )


def sha256_of(path: Path) -> str:
    """Checksum of a file.

    Raises:
        OSError: when it cannot be read.
    """
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# One process at a time


def check_writable(folder: Path) -> None:
    """See that files can be written to a folder, or to the nearest one above it that is there.

    Raises:
        DataError: when they cannot.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise DataError(f"Cannot write to {folder}: {error.strerror}.", remedy="Choose another place.") from error


class FolderLock(AbstractContextManager["FolderLock"]):
    """Exclusive use of a folder for the length of the context; the folder is made when it is missing.

    The lock ends with this process, however that ends, and is not inherited by decoding processes that outlive it. Its
    file names the holder, for people, and is removed in the end.
    File systems without locks get none.

    Args:
        folder: what is written into; may be a link.

    Raises:
        ConfigError: on entering, when another process has it.
        DataError: on entering, when it cannot be written, or the lock file is a link.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock

        self.folder = folder
        self.path = folder.absolute() / LOCK_NAME
        self._made_folder = False
        # With `on_acquired` the library leaves out its fallback, a lock file that would outlive a killed process.
        self._lock = FileLock(self.path, blocking=False, thread_local=False, on_acquired=self._write_holder)

    def __enter__(self) -> Self:
        from filelock import Timeout

        try:
            self._made_folder = not self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(
                f"Another run is writing into {self.folder} ({self._holder()}).",
                remedy="Wait until it ends, stop it, or choose another --out.",
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                reason = f"{self.path} is a link" if error.errno == errno.ELOOP else error.strerror
                raise DataError(f"Cannot write in {self.folder}: {reason}.", remedy="Choose another --out.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self.path.unlink()  # while it is locked: who opened it meanwhile sees that it is gone
        self._lock.release()
        if self._made_folder:
            with suppress(OSError):
                self.folder.rmdir()  # only when nothing came of it

    @staticmethod
    def _write_holder(descriptor: int) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _holder(self) -> str:
        text = ""
        with suppress(OSError), contextlib.ExitStack() as held:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            held.callback(os.close, descriptor)
            text = os.read(descriptor, 200).decode(errors="replace")
        return text if text.isprintable() and text else "another process"


# Inside


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def _temporary_name(path: Path) -> Path:
    return path.with_name(f".{_shortened(path.name)}.{secrets.token_hex(8)}.part")


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []  # missing; or whoever writes there says what is wrong


def _mode_of_new_files(folder: Path) -> int:
    """What the umask, or the folder's access list, leaves of rw-rw-rw-."""
    probe = _temporary_name(folder / "mode")
    descriptor = os.open(probe, os.O_RDWR | _NEW, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def _settle(path: Path, mode: int, *, durable: bool) -> None:
    """Give a file its permissions, and sync it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != mode:
            with suppress(PermissionError):  # file systems without permissions
                os.fchmod(descriptor, mode)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError), contextlib.ExitStack() as held:  # not every file system can
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        held.callback(os.close, descriptor)
        os.fsync(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
