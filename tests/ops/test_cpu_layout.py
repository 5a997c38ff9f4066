"""The measurement of layouts on a CPU: made once for a machine, kept, and never in the way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diti_kernels import cpu_layout, native
from diti_kernels.cpu_layout import Measured, measure, measured


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DITI_TUNE", raising=False)
    measured.cache_clear()
    yield
    measured.cache_clear()


def afresh(threads: int = 1) -> Measured:
    """As another process would ask."""
    measured.cache_clear()
    return measured(threads)


def test_both_layouts_are_timed_in_turn_and_the_least_reading_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layout, "BATCH", 1)
    lengths = itertools.cycle([3.0, 2.0, 5.0, 7.0])
    now = 0.0
    asked = 0

    def clock() -> float:
        nonlocal now, asked
        asked += 1
        if asked % 2 == 0:
            now += next(lengths)
        return now

    with torch.inference_mode():
        assert measure(clock) == (3000.0, 2000.0)


def test_it_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Measured] = []
    monkeypatch.setattr(cpu_layout, "measure", lambda clock: made.append(Measured(2.0, 1.0)) or made[-1])
    assert [afresh(), afresh(), afresh()] == [(2.0, 1.0)] * 3
    assert len(made) == 1
    assert afresh(threads=2) == (2.0, 1.0)
    monkeypatch.setattr(native, "processor", lambda: "another one")
    afresh()
    assert len(made) == 3
    (folder,) = tmp_path.glob("diti/native")
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b'{"contiguous": -1, "channels_last": 1}', b'{"contiguous": 1}', b"\xff" * 9]
)
def test_a_damaged_file_is_measured_again(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layout, "measure", lambda clock: Measured(2.0, 1.0))
    afresh()
    (path,) = tmp_path.glob("diti/native/layout-*.json")
    good = path.read_bytes()
    path.write_bytes(content)
    assert afresh() == (2.0, 1.0)
    assert path.read_bytes() == good


def test_without_a_folder_it_is_measured_in_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(cpu_layout, "measure", lambda clock: Measured(2.0, 1.0))
    assert afresh() == (2.0, 1.0)


def test_nothing_is_measured_where_tuning_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_layout, "measure", lambda clock: pytest.fail("measured"))
    monkeypatch.setenv("DITI_TUNE", "0")
    assert afresh() == (None, None)
    assert afresh().wins


def test_several_threads_are_timed_by_the_walls_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor's counts what they spend on waiting for each other."""
    clocks: list[object] = []
    monkeypatch.setattr(cpu_layout, "measure", lambda clock: clocks.append(clock) or Measured(2.0, 1.0))
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            afresh(threads=threads)
    finally:
        torch.set_num_threads(before)
    assert clocks == [time.process_time, time.perf_counter]
