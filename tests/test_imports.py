"""Imports of diticli: no module imports itself through others, and none changes anything outside itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import diticli

ROOT = Path(diticli.__file__).parent


def modules(root: Path) -> dict[str, Path]:
    """Name of each module below the package `root` -> its file."""
    names = {path: path.relative_to(root.parent).with_suffix("").parts for path in root.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules among `known` that a file names in an import, at its top, in a function or for its types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else node.module for name in inner.values()}
    return found & known.keys()


def circle(root: Path) -> list[str]:
    """One circle of imports, or nothing."""
    known = modules(root)
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_module_imports_itself_through_others() -> None:
    assert circle(ROOT) == []


@pytest.mark.parametrize("how", ["from own import b", "def f():\n    from own.b import x", "import own.b"])
def test_a_circle_is_found_wherever_the_import_is(tmp_path: Path, how: str) -> None:
    root = tmp_path / "own"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "a.py").write_text(how)
    (root / "b.py").write_text("")
    assert circle(root) == []
    (root / "b.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from own.a import y")
    assert {"own.a", "own.b"} <= set(circle(root))


ALLOWED = {"diticli.commands.app", "diticli.commands.edit"}
"""They add commands to a `typer.Typer` of their own."""


def test_importing_a_module_calls_nothing_for_its_effect() -> None:
    """Log levels, fork hooks, filters and patches are set by the function that needs them."""
    called = {
        f"{name}:{node.lineno}"
        for name, path in modules(ROOT).items()
        if name not in ALLOWED
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    }
    assert called == set()


NEW_PROCESS = """
import diticli
print(dir(diticli))
from diticli import *
print(sorted({*dir()} - {"diticli"}))
import logging
import diticli.models.pipeline
print(logging.getLogger("xformers").level)
import diticli.training.run, diticli.demo
"""


@pytest.fixture(scope="module")
def new_process() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-c", NEW_PROCESS], capture_output=True, text=True, check=True)


def test_public_names_are_listed_before_they_are_loaded(new_process: subprocess.CompletedProcess[str]) -> None:
    listed, taken = map(ast.literal_eval, new_process.stdout.splitlines()[:2])
    assert listed == sorted(diticli.__all__)
    assert [name for name in taken if name == "__version__" or not name.startswith("__")] == listed


def test_imports_are_silent_and_xformers_keeps_its_log_level(new_process: subprocess.CompletedProcess[str]) -> None:
    """It warns at import where it finds no CUDA, and diffusers imports it whenever it is installed."""
    assert new_process.stdout.splitlines()[2:] == ["0"]
    assert new_process.stderr == ""
