"""Environment variables of diti: odd values are refused in words, unknown names are said to be ignored."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.distributed import Rank, _join_seconds
from diticli.errors import ConfigError, DeviceError, ModelError
from diticli.models.load import load_model, locate
from diticli.models.variables import check_variables
from diticli.variables import KNOWN, unknown_variables, word_of

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
WORDS = ("DITI_ATTENTION", "DITI_CUDA_GRAPH", "DITI_KERNELS", "DITI_LAYOUT")
ODD = ["-1", "0x1", "true", "99999999999999999999", "auto,sdpa", "\u202eauto", "x" * 100_000, "\udcff"]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ODD)
def test_odd_words_are_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"{name}='.*' is unknown\.") as caught:
        check_variables(CPU)
    assert caught.value.remedy
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    check_variables(CPU)


def test_a_word_in_any_case_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_KERNELS", " Reference ")
    monkeypatch.setenv("DITI_CUDA_GRAPH", "0")
    check_variables(CPU)
    assert word_of("DITI_CUDA_GRAPH", ("1", "0")) == "0"


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diti_kernels.dispatch.triton_is_interpreted", lambda: False)
    monkeypatch.setenv("DITI_KERNELS", "triton")
    with pytest.raises(DeviceError, match="DITI_KERNELS=triton") as caught:
        check_variables(CPU)
    assert caught.value.remedy


@pytest.mark.parametrize("value", ["0", "-3", "1e3", "9" * 5000, "1000000", "ten", "\u0663", " 5"])
def test_odd_seconds_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DITI_JOIN_SECONDS", value)
    with pytest.raises(ConfigError, match="is no number of seconds") as caught:
        _join_seconds()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["9" * 5000, "-1", "\u0663", "two"])
def test_odd_numbers_of_processes_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="no process numbers") as caught:
        Rank.from_environment({"WORLD_SIZE": value, "RANK": "0"})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("value", [" ", "x" * 100_000, "/dev/null", "\udcff", "a\nb"])
def test_a_model_that_is_none_is_named_in_short(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DITI_MODEL", value)
    with pytest.raises(ModelError) as caught:
        load_model(device="cpu")
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


def test_an_empty_model_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DITI_MODEL", "")
    found = locate(None, runs=tmp_path)
    assert "$DITI_MODEL" not in found.reason


def test_every_variable_of_the_code_is_known() -> None:
    files = [path for part in ("diticli", "kernels") for path in (ROOT / part).rglob("*.py")]
    named = {name for path in files for name in re.findall(r"DITI_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))}
    assert named == set(KNOWN)


def test_a_misspelled_variable_is_said_to_be_ignored() -> None:
    assert unknown_variables({"DITI_LAYOUT": "auto", "PATH": "x"}) == []
    (text,) = unknown_variables({"DITI_LAYUOT": "contiguous"})
    assert text == "DITI_LAYUOT is ignored: diti knows no such variable; DITI_LAYOUT is meant?"
    (text,) = unknown_variables({"DITI_\x1b[31m" + "X" * 10_000: ""})
    assert "\x1b" not in text
    assert len(text) < 300
    done = CliRunner().invoke(app, ["faces", "--help"], env={"DITI_ATENTION": "sdpa"})
    assert done.exit_code == 0
    assert "DITI_ATENTION is ignored" in done.stderr
