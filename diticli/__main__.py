"""`diti` and `python -m diticli`."""

from __future__ import annotations

import os
import sys

from diticli.commands.app import app
from diticli.commands.failure import INTERRUPTED_STATUSES, leave_at_once, leave_modules


def main() -> None:
    """Run the command line and exit with its status."""
    # For every Python that this one starts, also those of libraries (PyTorch's decoding processes, compilers): the
    # working folder, perhaps somebody else's data, must lend no modules.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        app(prog_name="diti")
    except SystemExit as end:
        if end.code in INTERRUPTED_STATUSES:
            leave_at_once(end.code)
        if "torch" in sys.modules and isinstance(end.code, int):
            leave_modules(end.code)
        raise


if __name__ == "__main__":
    main()
