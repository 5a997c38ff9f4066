"""Two real processes train the run of one: same losses and weights, any data size, and they end together."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from faults.injections import fail_at, hang_at, signal_at
from faults.processes import LIMIT, Command, Ended, Injection, run, run_world, start_world
from faults.settings import Bench, checkpoints, draw_photos, losses, train_command, weights

LOSS = {"rtol": 1e-5, "atol": 1e-6}
WEIGHTS = {"rtol": 0.0, "atol": 1e-5}
"""Float32, one process against two: sums over a batch are taken in another order."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def check_same_run(got: Path, wanted: Path) -> None:
    ours, theirs = losses(got), losses(wanted)
    assert ours.keys() == theirs.keys()
    for step, loss in theirs.items():
        torch.testing.assert_close(ours[step], loss, **LOSS, msg=lambda text, step=step: f"{step}: {text}")
    mine, other = weights(got), weights(wanted)
    assert mine.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, **WEIGHTS, msg=lambda text, name=name: f"{name}: {text}")


def files(run: Path) -> set[str]:
    """Names of all files; TensorBoard's differ by time, their number counts."""
    found = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    plain = {name for name in found if not name.startswith("tensorboard")}
    return plain | {f"{len(found) - len(plain)} for TensorBoard"}


def all_ended(commands: list[Command]) -> list[Ended]:
    return [command.wait() for command in commands]


def test_two_processes_train_as_one(bench: Bench, tmp_path: Path) -> None:
    """37 images in batches of 8 on 2 processes, gradients clipped: nothing divides anything."""
    first, second = run_world([*train_command(tmp_path / "run"), "--json"], 2, tmp_path)
    assert (first.status, second.status) == (0, 0), first.text + second.text
    check_same_run(tmp_path / "run", bench.run)
    assert files(tmp_path / "run") == files(bench.run), "only the main process writes"
    assert str(tmp_path / "run" / "model") in first.text
    assert "run" not in second.text, "only the main process speaks"


def test_another_number_of_processes_goes_on(bench: Bench, tmp_path: Path) -> None:
    """One, two, one; stopped between two log lines, so that the sums of all processes are carried over."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert run(train_command(whole, "log_every=4"), tmp_path / "whole.log").status == 0
    command = train_command(out, "log_every=4")
    stopped = run(command, tmp_path / "one.log", inject=partial(signal_at, 3, signal.SIGINT))
    assert stopped.status == 128 + signal.SIGINT, stopped.text
    one_asked = start_world(command, 2, tmp_path, inject={1: partial(signal_at, 4, signal.SIGTERM)})
    assert [ended.status for ended in all_ended(one_asked)] == [128 + signal.SIGTERM] * 2
    assert {name.split("/")[1] for name in checkpoints(out)} == {"step-00000004", "step-00000005"}
    assert run(command, tmp_path / "one.log").status == 0
    check_same_run(out, whole)


HEAD = ("ssl.weight=0.5", "ssl.hidden_dim=24", "ssl.out_dim=12")


@pytest.mark.parametrize(
    "more",
    [
        ("ssl.method=simclr", *HEAD),
        ("ssl.method=simsiam", *HEAD),
        ("chunks.partition=auto", "modularity.weighting=gap", "modularity.bottleneck=0.01"),
    ],
    ids=["simclr", "simsiam", "modularity"],
)
def test_other_losses_see_the_global_batch(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Negatives and batch norm of all processes, and one measurement of the base for all."""
    # Adam's steps have the learning rate's size even where gradients are rounding alone: such weights drift by it.
    more = (*more, "base.images=8", "features.learning_rate=1e-5")
    assert run(train_command(tmp_path / "one", *more), tmp_path / "one.log").status == 0
    ended = run_world(train_command(tmp_path / "two", *more), 2, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended[0].text
    check_same_run(tmp_path / "two", tmp_path / "one")
    journals = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = ([json.loads(line).get("ssl_loss") or 0.0 for line in lines] for lines in journals)
    torch.testing.assert_close(two, one, **LOSS)
    assert any(one) == more[0].startswith("ssl")


def test_streamed_pictures_with_a_bad_one(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos")
    (photos / "011.png").write_bytes(b"no picture")
    more = ("data.memory_limit_mb=0", "data.workers=1")
    for name, world in (("one", 1), ("two", 2)):
        ended = run_world(train_command(tmp_path / name, *more, data=photos), world, tmp_path)
        assert {e.status for e in ended} == {0}, ended[-1].text
    check_same_run(tmp_path / "two", tmp_path / "one")
    for name in ("one", "two"):
        lists = {path.name: path.read_text() for path in (tmp_path / name).glob("skipped*")}
        assert list(lists) == ["skipped.txt"], "only the first process writes"
        assert lists["skipped.txt"].startswith("011.png\t")
        assert lists["skipped.txt"].count("\n") == 1


def test_a_streamed_picture_that_one_process_cannot_read(tmp_path: Path) -> None:
    """As where one machine has another copy of the images: refused, as it is in memory."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
        draw_photos(tmp_path / str(rank) / "photos")
    for picture in sorted((tmp_path / "1" / "photos").iterdir())[10:12]:
        picture.write_bytes(b"no picture")
    command = train_command(tmp_path / "run", "data.memory_limit_mb=0", "data.workers=1", data="photos")
    command = [part if part != "photos" else "./photos" for part in command]
    inject = {rank: partial(os.chdir, tmp_path / str(rank)) for rank in range(2)}
    ended = all_ended(start_world(command, 2, tmp_path, inject=inject))
    assert all(e.status for e in ended), ended[0].text + ended[1].text
    text = " ".join((ended[0].text + ended[1].text).split())
    assert "Process 0 can read 01" in text, text


REASON = "the fifth image bites"


@pytest.mark.parametrize(
    ("inject", "words"),
    [
        ({1: partial(fail_at, 3, REASON)}, {0: f"Process 1 of 2 failed: ValueError: {REASON}", 1: REASON}),
        ({0: partial(fail_at, 3, REASON)}, {0: REASON, 1: f"Process 0 of 2 failed: ValueError: {REASON}"}),
        ({1: partial(signal_at, 3, signal.SIGKILL)}, {0: "Another process of this run ended without an error message"}),
        ({0: partial(signal_at, 3, signal.SIGKILL)}, {1: "Another process of this run ended without an error message"}),
        ({1: partial(fail_at, 3, REASON), 0: partial(hang_at, 3)}, {0: f"{REASON} This process waits in vain"}),
    ],
    ids=["second fails", "first fails", "second killed", "first killed", "first hangs"],
)
def test_a_failure_ends_all_processes(tmp_path: Path, inject: Mapping[int, Injection], words: dict[int, str]) -> None:
    ended = all_ended(start_world(train_command(tmp_path / "run", "base.images=8"), 2, tmp_path, inject=inject))
    assert all(e.status for e in ended), [e.status for e in ended]
    for rank, text in words.items():
        assert text in " ".join(ended[rank].text.split()), ended[rank].text
    assert {name.split("/")[1] for name in checkpoints(tmp_path / "run")} <= {"step-00000001", "step-00000002"}
    assert run(train_command(tmp_path / "run", "base.images=8"), tmp_path / "again.log").status == 0


def test_every_process_hears_who_failed(tmp_path: Path) -> None:
    """The one that keeps their common store may hear it first, and must not take it away from the third."""
    command = train_command(tmp_path / "run", "base.batch_size=9", "base.images=9", "features.batch_size=9")
    ended = all_ended(start_world(command, 3, tmp_path, inject={1: partial(fail_at, 3, REASON)}))
    assert all(e.status for e in ended), [e.status for e in ended]
    words = f"Process 1 of 3 failed: ValueError: {REASON}"
    assert all(words in " ".join(ended[rank].text.split()) for rank in (0, 2)), ended[0].text + ended[2].text


def of_other_settings(bench: Bench, out: Path) -> list[str]:
    shutil.copytree(bench.run, out, ignore=shutil.ignore_patterns("model"))
    return train_command(out, "seed=1")


def unshareable(bench: Bench, out: Path) -> list[str]:
    return train_command(out, "features.batch_size=9")


def without_images(bench: Bench, out: Path) -> list[str]:
    return train_command(out, data="photos")


@pytest.mark.parametrize(
    ("command", "seen_by", "statuses", "words"),
    [
        (of_other_settings, (), [2, 69], "was started with other settings: seed was 0, now 1"),
        (unshareable, (), [2, 2], "features.batch_size 9 cannot be shared by 2 processes"),
        (without_images, (), [65, 65], "photos does not exist"),
        (without_images, (1,), [65, 69], "photos does not exist"),
        (without_images, (0,), [69, 65], "photos does not exist"),
    ],
    ids=["other settings", "batch", "no images", "no images at the first", "no images at the second"],
)
def test_a_refusal_ends_all_processes(
    bench: Bench,
    tmp_path: Path,
    command: Callable[[Bench, Path], list[str]],
    seen_by: tuple[int, ...],
    statuses: list[int],
    words: str,
) -> None:
    """With the reason, and long before a collective gives up (30 minutes); `seen_by`: ranks that see the images."""
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    for rank in seen_by:
        draw_photos(tmp_path / str(rank) / "photos")
    inject = {rank: partial(os.chdir, tmp_path / str(rank)) for rank in range(2)}
    ended = all_ended(start_world(command(bench, tmp_path / "run"), 2, tmp_path, inject=inject))
    assert [e.status for e in ended] == statuses, ended[0].text + ended[1].text
    assert all(words in " ".join(e.text.split()) for e in ended), ended[0].text + ended[1].text
    assert "Traceback" not in ended[0].text + ended[1].text
    assert command is of_other_settings or not checkpoints(tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_at_torchrun(bench: Bench, tmp_path: Path) -> None:
    """A terminal signals every process, and torchrun signals its own once more."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "diticli", *train_command(out, "features.images=200000")]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stderr=log, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
        )
        end = time.monotonic() + LIMIT
        while process.poll() is None and "features" not in (_text(out / "metrics.jsonl")) and time.monotonic() < end:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(LIMIT) != 0
    text = (tmp_path / "log").read_text()
    assert text.count("everything is saved") == 2, text
    last = max(int(name.split("-")[1].split("/")[0]) for name in checkpoints(out))
    assert f"at step {last:,} of" in text


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
