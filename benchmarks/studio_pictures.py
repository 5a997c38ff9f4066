"""The two pictures of docs/studio.md, from a running studio, once everything in them is finished.

    diti studio --no-browser --probe probe --evaluation evaluation &
    python -m benchmarks.studio_pictures http://127.0.0.1:7860 --chunks 0-15 --moves hat=-0.8 long_hair=-0.6

Needs playwright and chromium. Look at both before they are committed.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FINISHED = """([status, command, words]) =>
    words.every((word) => document.querySelector(command)?.value.includes(word))
    && !document.querySelector(status)?.innerText.includes('Preview')
    && ![...document.querySelectorAll('.progress-text, .meta-text')].some((e) => e.offsetParent && e.innerText)"""
PHONE = {"width": 390, "height": 1000}
WIDE = {"width": 1200, "height": 900}


def finished(page: Any, status: str, command: str, words: Sequence[str]) -> None:
    """Wait until the command holds all words, the status tells of no preview, and nothing is computed."""
    page.wait_for_function(FINISHED, arg=[status, f"{command} textarea", list(words)])
    page.wait_for_timeout(1000)


def fill(page: Any, field: str, text: str) -> None:
    """Type into a field and leave it."""
    page.locator(field).fill(text)
    page.keyboard.press("Enter")
    page.locator(field).blur()


def main() -> None:
    """Take both."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", help="of the studio")
    parser.add_argument("--chunks", default="0-15", help="to exchange")
    parser.add_argument("--moves", nargs="+", default=["hat=-0.8", "long_hair=-0.6"], metavar="ATTRIBUTE=AMOUNT")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seconds", type=float, default=600, help="to wait for anything, at most")
    options = parser.parse_args()
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, size, scheme in (("studio", WIDE, "light"), ("studio-attributes", PHONE, "dark")):
            page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
            page.set_default_timeout(1000 * options.seconds)
            page.goto(options.address)
            if name == "studio":
                finished(page, "#status", "#command", ["--chunks"])
                fill(page, "#chunks textarea, #chunks input", options.chunks)
                finished(page, "#status", "#command", [f"--chunks {options.chunks} "])
            else:
                page.get_by_role("tab", name="Attributes").click()
                finished(page, "#also-changed", "#attribute-command", ["--reconstruct"])
                for move in options.moves:
                    attribute, _, amount = move.rpartition("=")
                    fill(page, f"[aria-label^='number input for {attribute}']", amount)
                words = [part for move in options.moves for part in move.split("=")]
                finished(page, "#also-changed", "#attribute-command", words)
            page.mouse.move(0, 0)
            page.screenshot(path=options.out / f"{name}.png", full_page=name == "studio")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
