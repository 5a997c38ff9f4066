"""The fuzz of the command line: it knows every option, repeats itself, and calls a fault what is one."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import fuzz
from benchmarks.fuzz import arguments_of, attempt, command_of, prepare, summary
from benchmarks.fuzz_options import LEFT_OUT, OPTIONS, WRONG
from diticli.commands.app import app


@pytest.mark.parametrize("command", OPTIONS)
def test_every_option_of_a_command_is_drawn(command: str) -> None:
    options = reduce(lambda group, name: group.commands[name], command.split(), typer.main.get_command(app)).params
    names = [{*one.opts, *one.secondary_opts} for one in options if one.param_type_name == "option"]
    assert [own for own in names if not own & (OPTIONS[command].keys() | LEFT_OUT)] == []
    assert OPTIONS[command].keys() <= set().union(*names)
    assert set(WRONG) <= set().union(*OPTIONS.values())


def test_every_subcommand_of_edit_is_drawn() -> None:
    edit = typer.main.get_command(app).commands["edit"].commands  # type: ignore[attr-defined]
    assert {f"edit {name}" for name in edit} == {name for name in OPTIONS if name.startswith("edit ")}


def test_both_spellings_of_edit_are_drawn() -> None:
    drawn = [arguments_of(0, number) for number in range(200)]
    spelled = [arguments[1] for arguments in drawn if arguments[0] == "edit"]
    named = [word for word in spelled if f"edit {word}" in OPTIONS]
    assert set(named) == {"pair", "attribute", "reconstruct", "table"}
    assert len(spelled) - len(named) > 20


def test_the_same_seed_and_number_give_the_same_arguments() -> None:
    drawn = [arguments_of(0, number) for number in range(50)]
    assert drawn == [arguments_of(0, number) for number in range(50)]
    assert len(set(drawn)) > 40
    assert {arguments[0] for arguments in drawn} == {"train", "encode", "probe", "edit"}


def test_some_combinations_work_and_none_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.chdir(tmp_path):
        prepare()  # a run, features and a probe: each command works once
        drawn = {command_of(arguments): arguments for number in range(99) if (arguments := arguments_of(0, number))}
        drawn["train"] = (*drawn["train"], "--dry-run")  # a run was trained by prepare()
        drawn |= {name: (*drawn[name], "--steps", "4") for name in drawn if name.startswith("edit")}
        assert drawn.keys() == OPTIONS.keys()
        runs = [attempt(-1, arguments) for arguments in drawn.values()]
        runs.append(attempt(-1, ("encode", "photos", "--device", "tpu")))
        assert (runs[-1].outcome, runs[-1].status) == ("refused", 69)
        assert "->" in runs[-1].says
        monkeypatch.setattr("diticli.features.read.read_features", _broken)
        broken = attempt(-1, ("probe", "feats.npy"))
        assert broken.outcome == "fault"
        assert "RuntimeError: broken" in broken.says
    assert [run for run in runs if run.outcome == "fault"] == []
    assert sum(row[1] for row in summary(runs)) > 0


def test_a_stop_ends_the_fuzz_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, tried, stop_at = tmp_path / "fuzz.json", [], 2

    def fake(number: int, arguments: Sequence[str]) -> fuzz.Run:
        tried.append(number)
        status = 143 if number == stop_at else 1 if number == 0 else 0
        outcome: fuzz.Outcome = "works" if status == 0 else "fault"
        return fuzz.Run(number=number, arguments=tuple(arguments), outcome=outcome, status=status, says="", seconds=0.1)

    monkeypatch.setattr(fuzz, "prepare", lambda: None)
    monkeypatch.setattr(fuzz, "attempt", fake)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--runs", "4", "--seed", "0", "--out", str(out)])
    assert fuzz.main() == 143  # not 1: the stop is no word on the arguments
    assert [run["number"] for run in json.loads(out.read_text())["runs"]] == [0, 1]
    stop_at = -1
    assert fuzz.main() == 1  # run 0 is still a fault
    assert tried == [0, 1, 2, 2, 3]
    assert [run["number"] for run in json.loads(out.read_text())["runs"]] == [0, 1, 2, 3]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--only", "1"])
    fuzz.main()
    assert tried[-1] == 1
    assert len(json.loads(out.read_text())["runs"]) == 4
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seed", "1", "--out", str(out)])
    with pytest.raises(SystemExit, match="seed 0"):
        fuzz.main()


def _broken(*_: Any) -> None:
    raise RuntimeError("broken")
