"""One table from the core's typed errors to an exit status; each becomes one line and a remedy."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from diticli import errors
from diticli.reading import printable

# sysexits(3): 2 usage, 65 bad data, 66 no input, 69 unavailable, 70 internal, 74 input/output.
EXIT_STATUS: dict[type[errors.DiTiError], int] = {
    errors.ConfigError: 2,
    errors.ChunkError: 2,
    errors.DataError: 65,
    errors.LabelError: 65,
    errors.FeatureFileError: 65,
    errors.ModelError: 66,
    errors.DeviceError: 69,
    errors.OtherProcessError: 69,
    errors.TrainingDivergedError: 70,
    errors.CheckpointError: 74,
    errors.MachineError: 74,
}
_LONGEST = 4000
"""Characters of a message: names of files, attributes and settings may come in any number."""
INTERRUPTED = 128
"""Plus the number of the signal, as a shell reports it: 130 after Ctrl-C, 143 after SIGTERM."""


INTERRUPTED_STATUSES = (INTERRUPTED + signal.SIGINT, INTERRUPTED + signal.SIGTERM)

_kept: list[Path] = []
"""What the command that runs now leaves behind when it is interrupted; empty where it never goes on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a command ends as after Ctrl-C, and leaves no half-written files."""

    signal = int(signal.SIGTERM)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` within the block, where nothing else handles it."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def exit_status(error: errors.DiTiError) -> int:
    """Exit status of an error: that of its nearest class in the table."""
    return next((EXIT_STATUS[c] for c in type(error).__mro__ if c in EXIT_STATUS), 1)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def be_verbose() -> None:
    """Show what otherwise only costs attention: where an error came from, and the notes of diti and its libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PrintableFormatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger("diticli").setLevel(logging.DEBUG)


def is_verbose() -> bool:
    """Whether `be_verbose` was called."""
    return logging.getLogger("diticli").level == logging.DEBUG


def explain(error: errors.DiTiError) -> int:
    """Print what went wrong and what to do, on stderr; returns the exit status."""
    if is_verbose():
        sys.stderr.write(printable("".join(traceback.format_exception(error))))
    sys.stderr.write(f"Error: {printable(_cut(error.message))}\n")
    if error.remedy:
        sys.stderr.write(f"  -> {printable(_cut(error.remedy))}\n")
    return exit_status(error)


def _cut(text: str) -> str:
    """The text, or its begin where it lists what nobody would read."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def leave_at_once(status: int) -> NoReturn:
    """End as Python does, but for waiting for threads and for taking its modules apart: with PyTorch's that takes up to
    five seconds on a busy machine, and whoever pressed Ctrl-C waits for the prompt."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def leave_modules(status: int) -> None:
    """Once Python has waited for threads, end without taking its modules apart, which with PyTorch's takes a tenth of
    the time of encoding one picture. What cannot be written any more is left for Python to say."""
    atexit.register(_leave_modules, status)


def _leave_modules(status: int) -> None:
    atexit.unregister(_leave_modules)
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def keeps(*paths: Path) -> None:
    """Files and folders from which the command goes on when it is run again; none, as at first: it does not go on."""
    _kept[:] = paths


def explain_interrupt(interrupt: KeyboardInterrupt) -> int:
    """Print what there is to go on from after Ctrl-C or SIGTERM; returns the exit status."""
    if bars := sys.modules.get("diticli.commands.bars"):
        bars.end_bars()
    begun = any(any(path.glob("[!.]*")) if os.path.isdir(path) else os.path.exists(path) for path in _kept)
    lines = [printable(str(interrupt) or "Stopped.")]
    if _kept:
        again = "Run the same command again to go on."
        lines.append(again if begun else "Nothing is kept yet: the same command begins from the start.")
    sys.stderr.write("\n" + "".join(f"{line}\n" for line in lines))
    return INTERRUPTED + int(getattr(interrupt, "signal", signal.SIGINT))
