"""Two real processes compare as one, share the work, and fail together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from faults.processes import run, run_world

FACES = "faces:600:1"


@pytest.fixture(scope="module")
def model(make_pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline().save_pretrained(str(folder))
    return folder


def command(model: Path, out: Path, *more: str) -> list[str]:
    """600 images are two units of work; the entries three."""
    given = ["compare", str(model), "--data", FACES, "--baselines", "pca,untrained", "--json"]
    given += ["--device", "cpu", "--precision", "fp32", "--shown", "1", "--steps", "2", "--workers", "0"]
    return [*given, "--no-metrics", "-o", str(out), *more]


def test_two_processes_compare_as_one(model: Path, tmp_path: Path) -> None:
    first, second = run_world(command(model, tmp_path / "two"), 2, tmp_path)
    assert (first.status, second.status) == (0, 0), first.text + second.text
    assert run(command(model, tmp_path / "one"), tmp_path / "one.log").status == 0
    told = [json.loads((tmp_path / name / "compare.json").read_text()) for name in ("one", "two")]
    assert [c["means"] for c in told[0]["entries"]] == [c["means"] for c in told[1]["entries"]]
    assert [c["differences"] for c in told[0]["entries"]] == [c["differences"] for c in told[1]["entries"]]
    names = [{str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")} for name in ("one", "two")]
    assert names[0] == names[1], "nothing but the files of one process"
    assert second.text == "", "only the first process speaks"
    again = run(command(model, tmp_path / "two"), tmp_path / "again.log")
    assert again.status == 0, again.text
    assert not {"Encoding", "Probing"} & set(again.text.split()), "another number of processes takes up what is done"


def test_a_process_that_fails_ends_the_other(model: Path, tmp_path: Path) -> None:
    """Only the first process writes, so only it sees that it cannot."""
    (tmp_path / "file").write_text("kept")
    ended = run_world(command(model, tmp_path / "file" / "out"), 2, tmp_path)
    assert all(e.status for e in ended), ended[0].text + ended[1].text
    assert "Process 0 of 2 failed: Cannot write" in " ".join(ended[1].text.split()), ended[1].text
    assert "Traceback" not in ended[0].text + ended[1].text
