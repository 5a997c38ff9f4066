"""Write features row by row, so that a process killed at any moment goes on where it stopped.

Rows stream into `NAME.partial`, a `.npy` whose header gets its row count last. A progress file,
`NAME.partial.json`, says how many of them count: rows are synced before the progress file that counts them, and
whatever lies behind is cut off on resuming. A finished file appears by one rename.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

from diticli._version import __version__
from diticli.chunks import MAX_DIMS
from diticli.data.images import Skipped
from diticli.errors import FeatureFileError
from diticli.features.formats import CONVERTERS, check_suffix, sidecar_path
from diticli.features.manifest import FeatureMeta
from diticli.files import move_into_place, open_in_place, remove_leftovers, replacing_by_name, sync, write_bytes
from diticli.reading import parse_json, read_regular


class FeatureWriter:
    """Streams float32 rows into a feature file; use it as a context manager.

    Leaving the context without `finish()` keeps the partial file for the next writer of the same identity.
    An existing output stays as it is until `finish()`.

    Args:
        path: the output; its suffix chooses the format. Missing folders are made.
        identity: hash of everything the rows depend on (inputs, weights, preprocessing).
        resume: go on with a partial file of this identity; otherwise start again.

    Attributes:
        resumed: how many inputs the partial file already held.
        discarded: a partial file was there, but of another identity or damaged.
        dim: d, 0 before the first row.

    Raises:
        FeatureFileError: unknown suffix, no permission, a full disk, or another process writing this file.
            Every method may raise it.
    """

    def __init__(self, path: Path, *, identity: str, resume: bool = True) -> None:
        self.path = Path(path)
        self._suffix = check_suffix(self.path)
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._progress_path = self.path.with_name(self.path.name + ".partial.json")
        self._identity = identity
        self.dim = 0
        self._log: list[tuple[Sequence[str], Sequence[Skipped]]] = []
        with self._file_errors():
            self._file = self._open()
            had_rows = os.fstat(self._file.fileno()).st_size > 0 and self._progress_path.exists()
            self.resumed = self._restore() if resume else 0
            self.discarded = resume and had_rows and self.resumed == 0
            if not self.resumed:
                self._restart()

    @property
    def files(self) -> list[str]:
        """Names of the rows written so far, in order."""
        return [name for names, _ in self._log for name in names]

    @property
    def skipped(self) -> list[Skipped]:
        """Inputs that have no row."""
        return [item for _, skipped in self._log for item in skipped]

    @property
    def consumed(self) -> int:
        """Inputs dealt with: rows plus skipped ones."""
        return sum(len(names) + len(skipped) for names, skipped in self._log)

    def append(self, values: npt.NDArray[np.float32], files: Sequence[str], skipped: Sequence[Skipped] = ()) -> None:
        """Add `values` [B, d] with their B names, and the inputs between them that gave no row."""
        values = np.ascontiguousarray(values, dtype="<f4")
        if len(files) != len(values) or (len(values) and values.shape[1:] != (self.dim or values.shape[1],)):
            raise ValueError(f"{list(values.shape)} values for {len(files)} names and width {self.dim}")
        with self._file_errors():
            if len(values) and not self.dim:
                self.dim = values.shape[1]
                self._write_header(rows=0)
            self._file.write(values.data)
        self._log.append((tuple(files), tuple(skipped)))  # one step, so an interrupt leaves no half batch

    def checkpoint(self) -> None:
        """Make everything appended so far survive a kill or a power cut."""
        files, skipped = self.files, self.skipped
        state = {
            "identity": self._identity,
            "dim": self.dim,
            "consumed": len(files) + len(skipped),
            "rows": len(files),
            "files": files,
            "skipped": [asdict(item) for item in skipped],
        }
        with self._file_errors():
            sync(self._file)
            write_bytes(self._progress_path, json.dumps(state).encode())

    def finish(self, meta: FeatureMeta) -> FeatureMeta:
        """Put the file in place; returns `meta` with files, skipped, date and version filled in.

        The old sidecar goes before the new rows come and the new one follows them, so that no moment shows
        rows beside names that belong to others.
        """
        files = tuple(self.files)
        if not files:
            raise FeatureFileError(f"There are no rows to write to {self.path}.", remedy="Give readable images.")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        meta = replace(meta, files=files, skipped=tuple(self.skipped), created=now, version=__version__)
        self.checkpoint()
        with self._file_errors():
            self._file.seek(0)
            self._write_header(rows=len(files))
            sync(self._file)
            self._install(meta)
        self.close()
        return meta

    def discard(self) -> None:
        """Remove the partial file and its progress file."""
        with self._file_errors():
            self._progress_path.unlink(missing_ok=True)
            self._partial.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the file; what was not checkpointed is lost."""
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._file.closed:
                self.checkpoint()
        except FeatureFileError:
            if error is None:
                raise
        finally:
            self.close()

    def _open(self) -> IO[bytes]:
        if self.path.is_dir():
            raise FeatureFileError(f"{self.path} is a folder.", remedy="Name a file in it.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open_in_place(self._partial)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise FeatureFileError(
                    f"Another process is writing {self.path}.", remedy="Wait for it, or choose another name."
                ) from error
            # Between opening and locking another process may have finished: then this is its output, or nothing.
            if _is_at(file, self._partial):
                break
            file.close()
        remove_leftovers(self.path.parent, [self._progress_path.name, self.path.name, sidecar_path(self.path).name])
        return file

    def _restore(self) -> int:
        """Take up the partial file where its progress file ends. 0 when there is none of this identity."""
        try:
            state = parse_json(read_regular(self._progress_path))
            files = [str(name) for name in state["files"]]
            skipped = [Skipped(file=s["file"], reason=s["reason"]) for s in state["skipped"]]
            dim, rows, consumed = (operator.index(state[key]) for key in ("dim", "rows", "consumed"))
            same = state["identity"] == self._identity
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return 0
        if not 1 <= dim <= MAX_DIMS and rows:
            return 0
        size = len(_npy_header(0, dim)) + 4 * dim * rows if rows else 0
        agrees = rows == len(files) and consumed == rows + len(skipped)
        if not (same and agrees and os.fstat(self._file.fileno()).st_size >= size):
            return 0
        self.dim, self._log = dim, [(tuple(files), tuple(skipped))]
        self._file.truncate(size)
        self._file.seek(size)
        return consumed

    def _restart(self) -> None:
        self._progress_path.unlink(missing_ok=True)
        self._file.truncate(0)
        self._file.seek(0)

    def _write_header(self, rows: int) -> None:
        self._file.write(_npy_header(rows, self.dim))

    def _install(self, meta: FeatureMeta) -> None:
        """Put the file in its final format, and the sidecar, in place."""
        sidecar = sidecar_path(self.path)
        if self._suffix == ".npy":
            sidecar.unlink(missing_ok=True)
            move_into_place(self._partial, self.path)
            write_bytes(sidecar, meta.to_json().encode())
        else:
            # A .npy of the same stem owns the sidecar: the other formats carry theirs inside.
            owned = self.path.with_suffix(".npy").exists()
            with replacing_by_name(self.path) as ready:
                values = np.load(self._partial, mmap_mode="r", allow_pickle=False)
                CONVERTERS[self._suffix](ready, values, meta.files, meta.to_json())
                if not owned:
                    sidecar.unlink(missing_ok=True)
            if not owned:
                write_bytes(sidecar, meta.to_json().encode())
            self._partial.unlink(missing_ok=True)
        # A partial file that is there now belongs to another process.
        self._progress_path.unlink(missing_ok=True)

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            raise FeatureFileError(
                f"Cannot write {self.path} ({error.strerror or error}).",
                remedy="Free some space and run the same command again: it goes on from here."
                if full
                else "Choose a place that can be written.",
            ) from error


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    except FileNotFoundError:
        return False


def _npy_header(rows: int, dim: int) -> bytes:
    """A `.npy` header for little-endian float32 [rows, dim], always 128 bytes.

    NumPy reserves room for the first axis to grow, so the count can be written when it is known.
    """
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)})
    return buffer.getvalue()
