"""Faults of training: each function puts one into a run, and checks that nothing is lost."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

from PIL import Image

from . import injections
from .processes import Ended, run, start
from .settings import Bench, checkpoints, draw_photos, losses, same, train_command, weights

STEPS = 8
"""Of stage 2."""


def kill(bench: Bench, rng: random.Random) -> None:
    """SIGKILL at a random moment between the first instruction and the last, then the same command again."""
    assert bench.run
    status = 0
    while status == 0:  # it may have been faster
        folder = bench.folder()
        command = start(train_command(folder / "run"), folder / "log")
        time.sleep(rng.uniform(0, bench.seconds["train"]))
        command.signal(signal.SIGKILL)
        status = command.wait().status
    assert status == -signal.SIGKILL
    finish(bench, folder)


def ask(bench: Bench, rng: random.Random, *, number: int) -> None:
    """Ctrl-C or SIGTERM at a random step."""
    folder, step = bench.folder(), rng.randrange(1, STEPS)
    ended = train(folder, inject=partial(injections.signal_at, step, number))
    check(ended, 128 + number, f"at step {step} of {STEPS}", "everything is saved", "Run the same command again")
    assert f"step-{step:08d}" in newest(folder).name
    finish(bench, folder)


def fill_disk(bench: Bench, rng: random.Random, *, size: int) -> None:
    """From a random step on no file grows beyond `size` bytes: a checkpoint, or metrics.jsonl, stops in its middle."""
    folder, step = bench.folder(), rng.randrange(2, STEPS)
    ended = train(folder, inject=partial(injections.fill_disk_at, step, size))
    check(ended, 74, "Cannot write", "Free some disk space, then run the same command again")
    assert newest(folder).name == f"step-{step - 1:08d}", "earlier checkpoints stay"
    assert not list((folder / "run" / "checkpoints").glob(".*")), "no half of a checkpoint"
    finish(bench, folder)


def fill_disk_at_the_end(bench: Bench, rng: random.Random) -> None:
    """The disk is full when the finished model is written."""
    folder = bench.folder()
    ended = train(folder, inject=partial(injections.fill_disk_when_publishing, rng.randrange(1000, 20_000)))
    check(ended, 74, "Cannot write", "model", "Free some disk space")
    assert not (folder / "run" / "model").exists()
    finish(bench, folder)


def damage(bench: Bench, rng: random.Random, *, how: str) -> None:
    """A random file of the newest checkpoint loses its end, or a random bit of it turns over."""
    folder = bench.folder()
    assert train(folder, inject=partial(injections.signal_at, 4, signal.SIGINT)).status
    damaged = newest(folder)
    file = rng.choice(sorted(damaged.iterdir()))
    content = bytearray(file.read_bytes())
    if how == "truncated":
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    ended = train(folder)
    check(ended, 74, damaged.name, f"Delete {damaged} to go on from the checkpoint before it")
    if file.suffix == ".safetensors":
        assert f"{file} is damaged: its checksum differs" in one_line(ended)
    shutil.rmtree(damaged)
    finish(bench, folder)


def change_images(bench: Bench, rng: random.Random, *, how: str) -> None:
    """A picture changes, comes or goes between start and resume: refused with what differs, and as before restored."""
    folder = bench.folder()
    photos = draw_photos(folder / "photos")
    command = partial(train_command, folder / "run", data=photos)
    assert run(command(), folder / "log", inject=partial(injections.signal_at, 2, signal.SIGINT)).status
    before = checkpoints(folder / "run")
    chosen = rng.choice(sorted(photos.iterdir()))
    aside = folder / "aside.png"
    shutil.move(chosen, aside)
    added, words = photos / "new.png", f"count was {len(list(photos.iterdir())) + 1}, now"
    if how == "changes":
        Image.new("RGB", (20, 20), "red").save(chosen)
        words = "names, sizes or content of files differ"
    elif how == "comes":
        shutil.copy(aside, added)
        shutil.copy(aside, chosen)
    check(run(command(), folder / "log"), 65, "The images changed since", words, "Restore the images to go on")
    assert checkpoints(folder / "run") == before
    added.unlink(missing_ok=True)
    shutil.move(aside, chosen)
    ended = run(command(), folder / "log")
    assert ended.status == 0, ended.text


def lose_image(bench: Bench, rng: random.Random) -> None:
    """A picture vanishes while it is still needed: skipped, listed, and the run goes on."""
    folder = bench.folder()
    photos = draw_photos(folder / "photos")
    chosen = rng.choice(sorted(photos.iterdir()))
    command = train_command(folder / "run", "data.memory_limit_mb=0", "data.workers=1", data=photos)
    ended = run(command, folder / "log", inject=partial(injections.delete_at, 1, chosen))
    assert ended.status == 0, ended.text
    assert (folder / "run" / "skipped.txt").read_text().startswith(f"{chosen.name}\t")


def kill_decoder(bench: Bench, rng: random.Random) -> None:
    """A process that decodes images is killed."""
    folder, step = bench.folder(), rng.randrange(2, 5)
    more = ("data.memory_limit_mb=0", "data.workers=1")
    ended = train(folder, *more, inject=partial(injections.kill_decoder_at, step))
    check(ended, 65, "A process that decodes images died", "try fewer --workers")
    assert newest(folder).name in (f"step-{step - 1:08d}", f"step-{step:08d}")
    finish(bench, folder, *more)


def turn_clock(bench: Bench, rng: random.Random, *, way: int) -> None:
    """The wall clock jumps by up to a day at every look, 1 ahead or -1 back, with a stop between."""
    folder, turn = bench.folder(), partial(injections.turn_clock, way * rng.uniform(1, 86_400))
    ended = train(folder, inject=partial(injections.both, turn, partial(injections.signal_at, 4, signal.SIGINT)))
    assert ended.status == 130, ended.text
    assert newest(folder).name == "step-00000004"
    ended = train(folder, inject=turn)
    assert ended.status == 0, ended.text
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["images_per_second"] > 0 for line in lines)
    check_run(bench, folder / "run")


def start_twice(bench: Bench, rng: random.Random) -> None:
    """A second run is refused while the first lives; killed, the first leaves no lock that holds."""
    folder = bench.folder()
    first = start(train_command(folder / "run"), folder / "first", inject=partial(injections.hang_at, 3))
    first.wait_until(lambda: "reached" in first.text)
    before = checkpoints(folder / "run")
    holder = f"process {first.process.pid} on "
    check(train(folder), 2, "Another run is writing into", holder, "Wait until it ends, stop it, or choose another")
    assert first.process.is_alive()
    assert checkpoints(folder / "run") == before
    first.signal(signal.SIGKILL)
    first.wait()
    finish(bench, folder)


def start_two_at_once(bench: Bench, rng: random.Random) -> None:
    """Two commands race for a new directory: one runs, the other is told."""
    folder = bench.folder()
    both = [start(train_command(folder / "run"), folder / f"log-{i}") for i in range(2)]
    first, second = sorted((command.wait() for command in both), key=lambda ended: ended.status)
    assert first.status == 0, first.text
    if second.status:
        check(second, 2, "Another run is writing")
    else:
        assert "Already finished: the run in" in one_line(first) + one_line(second)
    check_run(bench, folder / "run")


def refuse_folder(bench: Bench, rng: random.Random) -> None:
    """The output lies where nothing can be written."""
    folder = bench.folder()
    with injections.read_only(folder / "read-only") as inject:
        out = folder / "read-only" / "run"
        ended = run(train_command(out), folder / "log", inject=inject)
    check(ended, 65, f"Cannot write in {out}", "Choose another --out")
    assert not out.exists()


def train(folder: Path, *more: str, inject: injections.Injection | None = None) -> Ended:
    """The run of a try, begun or taken up again."""
    return run(train_command(folder / "run", *more), folder / "log", inject=inject)


def finish(bench: Bench, folder: Path, *more: str, inject: injections.Injection | None = None) -> None:
    """Run to the end, and check that the result is that of the undisturbed run."""
    ended = train(folder, *more, inject=inject)
    assert ended.status == 0, ended.text  # also where the model was already there
    assert len({name.split("/")[1] for name in checkpoints(folder / "run")}) == 1, "of a finished run the last one"
    check_run(bench, folder / "run")


def check_run(bench: Bench, out: Path) -> None:
    """Metrics and weights, bit for bit."""
    assert losses(out) == losses(bench.run)
    assert same(weights(out), weights(bench.run))


def newest(folder: Path) -> Path:
    """The newest checkpoint."""
    return max((folder / "run" / "checkpoints").glob("step-*"))


def check(ended: Ended, status: int, *words: str) -> None:
    """Exit status, words of the message, and no traceback."""
    assert ended.status == status, ended.text
    for text in words:
        assert text in one_line(ended), ended.text
    assert "Traceback" not in ended.text


def one_line(ended: Ended) -> str:
    """What was printed, however it was folded."""
    return " ".join(ended.text.split())
