"""Results that `compare` and `evaluate` keep: what is damaged, foreign or no file is made again, never believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diticli.comparison.pictures import ComparedPair, PictureStore
from diticli.comparison.probes import ProbeStore
from diticli.comparison.swaps import SwapStore
from diticli.errors import DataError
from diticli.evaluation.kept import KeptArrays
from diticli.progress import SilentReporter
from diticli.sealed import keep_result, kept_result, sealed

DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a number": lambda path: path.write_bytes(b"3"),
    "NaN": lambda path: path.write_bytes(b'{"swaps": NaN}'),
    "another JSON": lambda path: path.write_text(json.dumps({"captions": [], "probe": {}, "outputs": [], "swaps": 1})),
    "a sealed JSON of another place": lambda path: path.write_text(json.dumps(sealed({"entry": "x", "swaps": []}))),
    "deep": lambda path: path.write_bytes(b"[" * 100_000 + b"]" * 100_000),
    "a named pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a large header": lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{" * 64),
}
QUIET = SilentReporter()


def arrays() -> dict[str, np.ndarray]:
    return {"pixels": np.arange(12, dtype=np.uint8).reshape(3, 4), "readings": np.ones((3, 2))}


@pytest.fixture
def kept(tmp_path: Path) -> tuple[KeptArrays, Path]:
    """An entry, and its file."""
    store = KeptArrays(tmp_path / "kept")
    store.get("edits", [1], arrays)
    return store, next((tmp_path / "kept").iterdir())


def seen(store: KeptArrays) -> list[str]:
    """Whether the entry is made again, and that it is the right one either way."""
    calls: list[str] = []
    found = store.get("edits", [1], lambda: (calls.append("made"), arrays())[1])
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        name: (value.dtype, value.tolist()) for name, value in arrays().items()
    }
    return calls


def test_kept_arrays_are_found_again(kept: tuple[KeptArrays, Path]) -> None:
    assert seen(kept[0]) == []


@pytest.mark.parametrize("what", DAMAGES)
def test_kept_arrays_that_are_damaged_are_made_again(kept: tuple[KeptArrays, Path], what: str) -> None:
    store, path = kept
    DAMAGES[what](path)
    assert seen(store) == ["made"]
    assert seen(store) == []


@pytest.mark.parametrize(
    "foreign",
    [
        {"pixels": np.zeros((3, 4), np.uint8)},
        {"pixels": np.zeros((9, 9), np.uint8), "readings": np.full((3, 2), np.nan)},
        {"pixels": np.zeros((3, 4), np.uint8), "readings": np.zeros((3, 2))},
        {"other" * 999: np.zeros(1)},
    ],
)
def test_arrays_that_others_wrote_are_made_again(kept: tuple[KeptArrays, Path], foreign: dict[str, np.ndarray]) -> None:
    store, path = kept
    for metadata in (None, {"diti:seal": "0" * 16}, {"diti:seal": "x" * 10_000}):
        save_file(foreign, path, metadata)
        assert seen(store) == ["made"]


def test_the_arrays_of_one_entry_are_not_those_of_another(kept: tuple[KeptArrays, Path]) -> None:
    store, path = kept
    store.get("edits", [2], lambda: {"pixels": np.zeros((1, 1), np.uint8), "readings": np.zeros((1, 1))})
    other = next(each for each in path.parent.iterdir() if each != path)
    shutil.copy(other, path)
    assert seen(store) == ["made"]
    assert load_file(path).keys() == arrays().keys()


# results of a comparison


class Fixed:
    """What the stores below have instead of a model."""

    def key(self, entry: Any) -> str:
        return "key"


class Swaps(Fixed, SwapStore):
    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0

    def make(self, entry: Any, reporter: Any) -> None:
        self.made += 1
        keep_result(self._path(entry), "scores", {"swaps": [1.5]})


class Pictures(Fixed, PictureStore):
    def __init__(self, folder: Path) -> None:
        self.folder, self.pairs, self.made = folder, [(0, 1)], 0

    def make(self, entry: Any, reporter: Any) -> None:
        """As the real one: pictures first."""
        self.made += 1
        row = ComparedPair(pictures=(np.full((2, 2, 3), 7, np.uint8), None), captions=("a", ""))
        self._write(entry, [row], 2)


class Probes(Fixed, ProbeStore):
    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0
        self.features = SimpleNamespace(reporter=QUIET)  # type: ignore[assignment]

    def make(self, entry: Any, reporter: Any) -> None:
        self.made += 1
        probe = SimpleNamespace(names=("hat",), classes=("",))
        report = SimpleNamespace(probe=probe, to_dict=lambda: {"latent_dim": 4})
        self._write(SimpleNamespace(name="x"), report, np.ones((3, 1), np.float32), "")


STORES: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "swaps": (Swaps, ("key.json",)),
    "pictures": (Pictures, ("key.json", "key.npy")),
    "probes": (Probes, ("key.json", "key.safetensors")),
}


def found(store: Any) -> str:
    if isinstance(store, Probes):
        read = store.read(SimpleNamespace(name="x"))
        return f"{read.report} {read.outputs['hat'].tolist()}"
    read = store.read(SimpleNamespace(name="x"), QUIET)
    return str(read) if isinstance(store, Swaps) else f"{read[0].captions} {read[0].pictures}"


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in STORES.items() for name in names])
def test_results_that_are_damaged_are_made_again(tmp_path: Path, kind: str, name: str, what: str) -> None:
    store = STORES[kind][0](tmp_path)
    store.make(SimpleNamespace(name="x"), QUIET)
    whole = found(store)
    assert store.made == 1
    DAMAGES[what](tmp_path / name)
    assert found(store) == whole
    assert store.made == 2
    assert found(store) == whole
    assert store.made == 2


def test_a_result_is_found_under_its_own_name_alone(tmp_path: Path) -> None:
    keep_result(tmp_path / "a.json", "scores", {"x": (1, 2.5), 3: None})
    assert kept_result(tmp_path / "a.json") == {"x": [1, 2.5], "3": None}
    shutil.copy(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(ValueError, match=r"is the result 'a\.json'"):
        kept_result(tmp_path / "b.json")
    with pytest.raises(ValueError, match="JSON compliant"):
        keep_result(tmp_path / "c.json", "scores", {"x": float("nan")})
    (tmp_path / "d.json").mkdir()
    with pytest.raises(DataError, match="Cannot write the scores"):
        keep_result(tmp_path / "d.json", "scores", {})
