"""The committed result of the sanitizer: every kernel was looked at, at odd shapes, and mistakes are found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import diti_kernels
import torch

from benchmarks.experiments.sanitizer import cases, outcome

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def test_the_committed_result_is_of_all_kernels_and_finds_only_the_mistakes() -> None:
    rows = json.loads(max(RESULTS.glob("*-sanitizer.json")).read_text())["rows"]
    assert [row["case"] for row in rows] == [name for name, _ in cases()]
    for row in rows:
        wanted = "OUT OF BOUNDS: " + ", ".join(row["kernels"]) if row["mistake"] else "in bounds"
        assert row["outcome"] == wanted
    sources = Path(diti_kernels.__path__[0]).glob("*/triton_kernels.py")
    kernels = {name for file in sources for name in re.findall(r"def (\w+)_kernel\(", file.read_text())}
    assert kernels == {name for row in rows if not row["mistake"] for name in row["kernels"]}
    assert sum(row["mistake"] for row in rows) == 2


def test_what_the_sanitizer_cannot_follow_is_no_success() -> None:
    def fail() -> None:
        raise torch.OutOfMemoryError("no\nmore")

    assert outcome(fail, [])["outcome"].startswith("not followed: OutOfMemoryError: no (")
