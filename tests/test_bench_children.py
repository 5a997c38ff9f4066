"""Child processes of the benchmarks: what they import, where they run, and what becomes of their output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.children import PACKAGES, run_python, started_python

SHOW = "import json, os, sys; print(json.dumps([os.getcwd(), sys.path, os.environ.get('PYTHONPATH')]))"


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of a name that every Python imports, which says that it was imported."""
    mark = tmp_path / "imported"
    (tmp_path / "json.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise ImportError('planted')\n")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return mark


def test_a_child_takes_nothing_from_the_working_folder(planted: Path) -> None:
    done = run_python(["-c", SHOW], check=True)
    folder, path, variable = json.loads(done.stdout)
    assert str(planted.parent) not in [folder, *path]
    assert "" not in path
    assert variable == os.pathsep.join(map(str, PACKAGES))
    assert not Path(folder).exists(), "the folder of its own goes with it"
    with started_python(["-c", SHOW]) as (process, output):
        text = output.read()
    assert process.returncode == 0
    assert str(planted.parent) not in text
    assert not planted.exists()


def test_a_child_imports_the_packages_that_are_measured(planted: Path) -> None:
    code = "import benchmarks, diticli, diti_kernels; print(benchmarks.__file__, diticli.__file__)"
    names = run_python(["-c", code], check=True).stdout.split()
    assert all(Path(name).is_relative_to(PACKAGES[0]) for name in names)
    assert not planted.exists()


def test_the_folder_and_the_end_of_a_child(tmp_path: Path) -> None:
    done = run_python(["-c", SHOW], packages=(), folder=tmp_path)
    assert json.loads(done.stdout)[::2] == [str(tmp_path), None]
    assert run_python(["-c", "raise SystemExit(3)"]).returncode == 3
    with pytest.raises(subprocess.CalledProcessError):
        run_python(["-c", "raise SystemExit(3)"], check=True)
    assert Path(run_python(["-c", "import sys; print(sys.executable)"]).stdout.strip()) == Path(sys.executable)
