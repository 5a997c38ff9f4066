"""Processes that do not find each other all end with the reason, and stray launcher variables change nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from faults.processes import Ended, run_world, start
from faults.settings import train_command

from diticli.distributed import Rank, join
from diticli.errors import ConfigError, OtherProcessError
from diticli.training.launcher import ignored_variables, launcher_hidden

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def train_with(env: dict[str, str], out: Path, *more: str) -> Ended:
    log = out.with_name(f"{out.name}-{env.get('RANK', '')}.log")
    return start(train_command(out, "base.images=8", "features.images=8", *more), log, env=env).wait(120)


def started(env: list[dict[str, str]], out: Path) -> list[Ended]:
    command = train_command(out, "base.images=8", "features.images=8")
    commands = [
        start(command, out.with_name(f"{i}.log"), env={"DITI_JOIN_SECONDS": "3"} | e) for i, e in enumerate(env)
    ]
    return [command.wait(120) for command in commands]


def words(ended: Ended) -> str:
    assert "Traceback" not in ended.text, ended.text
    return " ".join(ended.text.split())


def test_a_port_that_is_taken_ends_all_processes(tmp_path: Path) -> None:
    """By something that answers nothing; the second process would wait for it without an end."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(other.getsockname()[1]), "WORLD_SIZE": "2"}
        ended = started([common | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(2)], tmp_path / "run")
    assert [e.status for e in ended] == [69, 69]
    assert "the port is in use" in words(ended[0])
    assert "Process 1 of 2 did not meet all others at 127.0.0.1" in words(ended[1])


def test_a_process_that_does_not_come_ends_the_others(tmp_path: Path) -> None:
    """Its number is wrong: it says so, and the first one does not wait for it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    ended = started([common | {"RANK": rank, "LOCAL_RANK": "0"} for rank in ("0", "5")], tmp_path / "run")
    assert [e.status for e in ended] == [69, 2]
    assert "Process 0 of 2 did not meet all others" in words(ended[0])
    assert "Process 5 (0 on its machine) of 2 cannot be" in words(ended[1])


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 says that there are 2 processes, and nothing says which one this is"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR and MASTER_PORT does not say where they meet"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "MASTER_ADDR and MASTER_PORT does not say"),
        ({"WORLD_SIZE": "abc"}, "These are no process numbers: WORLD_SIZE=abc"),
        ({"WORLD_SIZE": "2", "RANK": "0", **ADDRESS, "MASTER_PORT": "x"}, "MASTER_PORT=x is no port"),
    ],
)
def test_variables_of_half_a_launcher_are_refused(monkeypatch: pytest.MonkeyPatch, env: dict, text: str) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=text) as caught:
        join(torch.device("cpu"))
    assert "torchrun" in caught.value.remedy


@pytest.mark.parametrize(
    "env", [{"LOCAL_RANK": "0"}, {"RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"MASTER_PORT": "1"}]
)
def test_left_over_numbers_of_one_process_train_as_one(tmp_path: Path, env: dict[str, str]) -> None:
    ended = train_with(env, tmp_path / "run")
    assert ended.status == 0, ended.text


def test_an_encoding_does_not_do_half(tmp_path: Path) -> None:
    """WORLD_SIZE alone is refused, not taken for the first of two processes."""
    arguments = ["encode", "faces:8", "-o", tmp_path / "feats", "--shard-size", "4", "--model", tmp_path]
    ended = start(arguments, tmp_path / "log", env={"WORLD_SIZE": "2"}).wait(120)
    assert ended.status == 2
    assert "nothing says which one this is" in words(ended)
    assert not (tmp_path / "feats").exists()


def test_variables_of_accelerate_change_no_training(tmp_path: Path) -> None:
    env = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"}
    plain, other = train_with({}, tmp_path / "plain"), train_with(env, tmp_path / "other")
    assert plain.status == other.status == 0, other.text
    assert "Ignored: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4, ACCELERATE_MIXED_PRECISION=bf16." in words(other)
    files = [(tmp_path / name / "model/encoder/diffusion_pytorch_model.safetensors") for name in ("plain", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_only_variables_that_ask_for_something_else_are_named() -> None:
    launched = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "no",
        "ACCELERATE_USE_CPU": "True",
        "ACCELERATE_USE_FSDP": "false",
        "ACCELERATE_CPU_AFFINITY": "1",
    }
    assert ignored_variables("cpu", "no", launched) == []
    assert ignored_variables("cuda", "bf16", launched) == ["ACCELERATE_USE_CPU=True"]
    assert ignored_variables("cpu", "no", {"ACCELERATE_USE_FSDP": "true"}) == ["ACCELERATE_USE_FSDP=true"]


def test_the_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "ACCELERATE_USE_CPU", "ACCELERATE_CPU_AFFINITY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = dict(os.environ)
    with launcher_hidden(Rank(index=1, count=2)):
        assert "OMPI_COMM_WORLD_SIZE" not in os.environ
        assert "ACCELERATE_USE_CPU" not in os.environ
        assert os.environ["ACCELERATE_CPU_AFFINITY"] == "1"
        assert (os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("1", "2", "0")
    assert dict(os.environ) == before


def test_a_wait_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", **ADDRESS, "DITI_JOIN_SECONDS": "soon"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="DITI_JOIN_SECONDS='soon'"):
        join(torch.device("cpu"))
    monkeypatch.setenv("DITI_JOIN_SECONDS", "1")
    with pytest.raises(OtherProcessError, match=r"Process 1 of 2 did not meet all others at 127\.0\.0\.1:1"):
        join(torch.device("cpu"))


def test_two_processes_meet(tmp_path: Path) -> None:
    ended = run_world(train_command(tmp_path / "run", "base.images=8", "features.images=8"), 2, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended[0].text + ended[1].text
