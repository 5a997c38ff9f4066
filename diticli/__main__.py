"""`diti` and `python -m diticli`."""

from __future__ import annotations

from diticli.commands.app import app


def main() -> None:
    """Run the command line and exit with its status."""
    app(prog_name="diti")


if __name__ == "__main__":
    main()
