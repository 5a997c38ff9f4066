"""All benchmarks in one command: which, within which limits, and what becomes of one that fails."""

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import kernels
from benchmarks.__main__ import main as command_line
from benchmarks.everything import CPU, GPU, Part, chosen, command_of, run_part
from diticli.errors import ConfigError


def test_the_limits_of_all_parts_keep_the_promise():
    assert sum(part.limit for part in GPU) < 23 * 60
    assert sum(part.limit for part in CPU) < 24 * 60
    options = argparse.Namespace(official=Path("there"), model="runs/demo")
    commands = {part.name: command_of(part, options, torch.device("cpu"), Path("x.json")) for part in CPU}
    assert commands["encode"][-2:] == ["--official", str(Path("there").resolve())]
    assert "--official" not in commands["kernels"]
    assert commands["edit"][-2:] == ["--model", "runs/demo"], "a folder that is not there may be an id on the Hub"


@pytest.mark.parametrize(
    ("code", "problem"),
    [("print('fine')", ""), ("raise SystemExit(3)", "ended with status 3"), ("import time; time.sleep(9)", "ran out")],
)
def test_a_part_that_fails_or_hangs_is_named(tmp_path, code, problem):
    part = Part(name="part", arguments=(), limit=1.0)
    outcome = run_part(part, [sys.executable, "-c", code], tmp_path / "log.md")
    assert outcome.problem.startswith(problem)
    assert bool(outcome.problem) == bool(problem)
    assert (problem or "fine") in (tmp_path / "log.md").read_text()


def test_parts_are_chosen_by_name():
    assert chosen(CPU, None) == list(CPU)
    assert [part.name for part in chosen(CPU, ["kernels", "edit"])] == ["edit", "kernels"]
    with pytest.raises(ConfigError, match="There is no part 'train' here") as error:
        chosen(CPU, ["edit", "train"])
    assert "train-small64, train-celeba64, train-compiled, forward, encode, edit, kernels" in error.value.remedy


@pytest.mark.parametrize("part", [*GPU, *CPU], ids=lambda part: part.name)
def test_every_part_is_a_command_that_exists(part, monkeypatch):
    """Its options are taken, and what it may spend on compiling and timing ends before its process is ended."""
    command = command_of(
        part, argparse.Namespace(official=Path("there"), model=None), torch.device("cpu"), Path("x.json")
    )
    seen = []
    if command[3] == "kernels":
        parsed = kernels._parse(command[4:])
        assert parsed.budget < part.limit
        return
    module = importlib.import_module(f"benchmarks.{command[3]}")
    monkeypatch.setattr(module, "main", seen.append)
    monkeypatch.setattr(sys, "argv", ["python -m benchmarks", *command[3:]])
    assert command_line() == 0
    options = vars(seen[0])
    spent = options["budget"] * (2 if options["part"] == "forward" else 1)
    if options["part"] == "train":
        compiles = options["compile"] == "on" or (part in GPU and options["compile"] == "auto")
        spent += options["build"] + options["compile_limit"] if compiles else 0
    assert spent < part.limit


def test_help_names_every_part():
    command = [sys.executable, "-m", "benchmarks"]
    root = Path(__file__).parent.parent
    shown = subprocess.run([*command, "--help"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert all(part in shown for part in ("train", "forward", "encode", "edit", "kernels", "resources", "all"))
