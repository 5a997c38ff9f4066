"""Modules and settings planted in the working folder: no command, no child and no documented launcher takes them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MARK = "import os\nos.mkdir({mark!r})\nraise ImportError('planted')\n"
PLANTED = (
    # of the standard library, those that a new Python or its children import before anything else of theirs
    *("multiprocessing", "socket", "signal", "selectors", "threading", "struct", "json", "random", "tempfile", "queue"),
    *("sitecustomize", "usercustomize", "logging", "argparse", "subprocess", "ctypes", "pickle", "runpy"),
    # ours and those of our dependencies
    *("diticli", "diti_kernels", "typer", "rich", "torch", "numpy", "PIL", "accelerate", "diffusers", "filelock"),
)
SCRIPT = "import sys\nfrom {module} import {name}\nsys.exit({name}())\n"
"""What pip writes for a command: Python then puts the script's folder in front, not the working folder."""
SCRIPTS = {
    "diti": ("diticli.__main__", "main"),
    "torchrun": ("torch.distributed.run", "main"),
    "accelerate": ("accelerate.commands.accelerate_cli", "main"),
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A working folder whose modules leave a mark."""
    folder = tmp_path / "data of others"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(MARK.format(mark=str(tmp_path / "planted")))
    return folder


def commands(folder: Path) -> dict[str, str]:
    """Variables under which `diti`, `torchrun` and `accelerate` are found, as an installation has them."""
    for name, (module, function) in SCRIPTS.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable}\n" + SCRIPT.format(module=module, name=function))
        path.chmod(0o755)
    others = {key: value for key, value in os.environ.items() if not key.startswith(("DITI_", "PYTHONSAFEPATH"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return others | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{others['PATH']}",
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
    }


def run(line: str, folder: Path) -> str:
    done = subprocess.run(shlex.split(line), cwd=folder, env=commands(folder.parent), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (folder.parent / "planted").exists()
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "line",
    [
        "diti --help",
        "diti faces drawn -n 2",
        "torchrun --nproc-per-node 1 --no-python diti --version",
        "accelerate launch --cpu --num_processes 1 --no_python diti --version",
    ],
)
def test_commands_and_launchers_take_no_module_of_the_working_folder(planted: Path, line: str) -> None:
    run(line, planted)


CHILDREN = """
import multiprocessing, subprocess, sys
from diticli import __main__

def work(numbers):
    numbers.put(sys.path)

if __name__ == "__main__":
    __main__.app = lambda prog_name: None
    __main__.main()
    subprocess.run([sys.executable, "-c", "import json; print(json.__file__)"], check=True)
    for kind in ("forkserver", "spawn"):
        context = multiprocessing.get_context(kind)
        answers = context.Queue()
        process = context.Process(target=work, args=(answers,))
        process.start()
        print(answers.get(timeout=100))
        process.join()
"""


def test_children_of_libraries_take_none_either(planted: Path) -> None:
    """PyTorch's decoding processes come from a fork server, which Python starts by -c: with the working folder."""
    (planted.parent / "children.py").write_text(CHILDREN)
    said = run(f"{shlex.quote(sys.executable)} {shlex.quote(str(planted.parent / 'children.py'))}", planted)
    assert said.count(str(planted)) == 0
    assert len(said.splitlines()) >= 3


CHART = """
import sys
from pathlib import Path
from diticli.errors import DataError
from diticli.pictures.charts import loss_by_timestep_chart
try:
    loss_by_timestep_chart(Path(sys.argv[1]), [1.0, 2.0, 3.0], title="$a_1$ and 5 $")
except DataError as error:
    print(error)
"""
SETTINGS = "axes.facecolor: red\nfont.size: 30\nlines.linewidth: 9\nimage.lut: 2\ntext.usetex: True\nsavefig.dpi: 10\n"


def test_charts_obey_no_matplotlibrc_of_the_working_folder(tmp_path: Path) -> None:
    """Nor wait for one that is a named pipe."""
    for name in ("plain", "settings", "pipe"):
        (tmp_path / name).mkdir()
    (tmp_path / "settings" / "matplotlibrc").write_text(SETTINGS)
    os.mkfifo(tmp_path / "pipe" / "matplotlibrc")
    (tmp_path / "chart.py").write_text(CHART)
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'chart.py'))}"
    charts = [tmp_path / f"{name}.png" for name in ("plain", "settings")]
    said = [run(f"{line} {shlex.quote(str(chart))}", tmp_path / chart.stem) for chart in charts]
    assert charts[0].read_bytes() == charts[1].read_bytes()
    assert "matplotlibrc is not a regular file" in run(f"{line} pipe.png", tmp_path / "pipe")
    assert said == ["", ""]


def documented() -> list[str]:
    """Lines of the docs and of help texts that start `diti` by something else."""
    sources = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "diticli").rglob("*.py")]
    lines = [line for path in sources for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.search(r"\b(torchrun|accelerate launch) --?\w", line)]


def test_documented_launchers_start_the_installed_command() -> None:
    lines = [line for line in documented() if re.search(r"\bditi(cli)? [a-z]", line)]
    assert len(lines) >= 5
    for line in lines:
        assert re.search(r"--no[-_]python diti ", line), line


def test_a_module_of_the_working_folder_is_what_dash_m_takes(planted: Path) -> None:
    """What SECURITY.md says of `python -m diticli`, and of the variable that ends it."""
    line = [sys.executable, "-m", "diticli", "--help"]
    given = commands(planted.parent)
    subprocess.run(line, cwd=planted, env=given | {"PYTHONSAFEPATH": "1"}, capture_output=True, check=True)
    assert not (planted.parent / "planted").exists()
    subprocess.run(line, cwd=planted, env=given, capture_output=True, check=False)
    assert (planted.parent / "planted").exists()
