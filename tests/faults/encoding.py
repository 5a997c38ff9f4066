"""Faults of `diti encode`, and names that a shell or an encoding would break."""

from __future__ import annotations

import json
import random
import signal
import time
from functools import partial
from pathlib import Path

from PIL import Image

from . import injections
from .processes import run, start
from .settings import Bench, draw_photos, encode_command, train_command
from .training import check

NAME = "Grüße  数字 é \"a\" 'b' $HOME & #1 %20 [x] {y}"
"""A folder that people make, and that breaks whatever quotes, splits or expands it."""


def kill(bench: Bench, rng: random.Random) -> None:
    """SIGKILL at a random moment, rows being saved after every batch, then the same command again."""
    assert bench.features
    status = 0
    while status == 0:
        out = bench.folder() / "features.npy"
        command = start(
            encode_command(bench.faces, out, bench.run),
            out.with_name("log"),
            inject=injections.save_every_batch,
        )
        time.sleep(rng.uniform(0, bench.seconds["encode"]))
        command.signal(signal.SIGKILL)
        status = command.wait().status
    assert status == -signal.SIGKILL
    finish(bench, out)


def ask(bench: Bench, rng: random.Random, *, number: int) -> None:
    """Ctrl-C or SIGTERM between two batches: what was encoded is kept."""
    out, batch = bench.folder() / "features.npy", rng.randrange(1, 50)
    inject = partial(injections.signal_at_batch, batch, number)
    ended = run(encode_command(bench.faces, out, bench.run), out.with_name("log"), inject=inject)
    check(ended, 128 + number, "Run the same command again to go on")
    assert not out.exists()
    kept = json.loads(out.with_name("features.npy.partial.json").read_text())["rows"]
    assert kept >= 8 * batch
    assert f"Going on after {kept} of 400 images" in finish(bench, out)


def fill_disk(bench: Bench, rng: random.Random) -> None:
    """The file may not grow beyond a random size."""
    out = bench.folder() / "features.npy"
    inject = partial(injections.limit_files, rng.randrange(1000, 20_000))
    ended = run(encode_command(bench.faces, out, bench.run), out.with_name("log"), inject=inject)
    check(ended, 65, f"Cannot write {out}", "Free some space and run the same command again")
    assert not out.exists()
    finish(bench, out)


def change_image(bench: Bench, rng: random.Random) -> None:
    """A picture changes between a stop and going on: nothing of before is mixed in."""
    folder = bench.folder()
    photos, out, fresh = draw_photos(folder / "photos"), folder / "features.npy", folder / "fresh.npy"
    command = encode_command(photos, out, bench.run)
    ended = run(command, folder / "log", inject=partial(injections.signal_at_batch, 2, signal.SIGINT))
    check(ended, 128 + signal.SIGINT, "Run the same command again to go on")
    Image.new("RGB", (20, 20), "red").save(rng.choice(sorted(photos.iterdir())))
    check(run(command, folder / "log"), 0, "The partial file of another model or other images is replaced")
    assert run(encode_command(photos, fresh, bench.run), folder / "log").status == 0
    assert out.read_bytes() == fresh.read_bytes()


def lose_image(bench: Bench, rng: random.Random) -> None:
    """A picture vanishes between listing and reading: it has no row, and is named."""
    folder = bench.folder()
    photos, out = draw_photos(folder / "photos"), folder / "features.npy"
    chosen = rng.choice(names := sorted(path.name for path in photos.iterdir()))
    inject = partial(injections.delete_once_listed, photos / chosen)
    check(
        run(encode_command(photos, out, bench.run), folder / "log", inject=inject), 0, "1 of 37 images cannot be read"
    )
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["files"] == [name for name in names if name != chosen]
    assert [item["file"] for item in facts["skipped"]] == [chosen]


def start_two_at_once(bench: Bench, rng: random.Random) -> None:
    """Two commands race for one file: it is that of one command, and whoever came too late is told."""
    assert bench.features
    out = bench.folder() / "features.npy"
    both = [start(encode_command(bench.faces, out, bench.run), out.with_name(f"log-{i}")) for i in range(2)]
    first, second = sorted((command.wait() for command in both), key=lambda ended: ended.status)
    assert first.status == 0, first.text
    if second.status:
        check(second, 65, "Another process is writing", str(out))
    assert out.read_bytes() == bench.features.read_bytes()
    assert not list(out.parent.glob("*.partial*"))


def refuse_folder(bench: Bench, rng: random.Random) -> None:
    """The output lies where nothing can be written."""
    folder = bench.folder()
    with injections.read_only(folder / "read-only") as inject:
        out = folder / "read-only" / "features" / "x.npy"
        ended = run(encode_command("faces:8", out, bench.run), folder / "log", inject=inject)
    check(ended, 65, f"Cannot write {out}", "Choose a place that can be written")


def hard_names(bench: Bench, rng: random.Random) -> None:
    """Train, encode, probe and edit where every path has blanks, quotes and letters of many scripts."""
    folder = bench.folder() / NAME
    photos, model, features = draw_photos(folder / "photos"), folder / "run", folder / "features.npy"
    names = sorted(path.name for path in photos.iterdir())
    (folder / "labels.csv").write_text(
        "filename,größe\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(names)), encoding="utf-8"
    )
    picture = folder / "edit.png"
    commands = (
        train_command(model, data=photos),
        encode_command(photos, features, model),
        ["probe", features, "--labels", folder / "labels.csv", "-o", folder / "probe"],
        ["edit", photos / names[0], photos / names[1], "--model", model, "-o", picture, "--steps", "2"],
    )
    for command in commands:
        ended = run(command, folder / "log")
        assert ended.status == 0, ended.text
    assert json.loads(features.with_suffix(".json").read_text())["files"] == names
    assert picture.is_file()
    assert any((folder / "probe").iterdir())


def finish(bench: Bench, out: Path) -> str:
    """Encode to the end, and check that the file is that of the undisturbed command."""
    ended = run(encode_command(bench.faces, out, bench.run), out.with_name("again"))
    assert ended.status == 0, ended.text
    assert out.read_bytes() == bench.features.read_bytes()
    ours, theirs = (json.loads(path.with_suffix(".json").read_text()) for path in (out, bench.features))
    assert ours | {"created": ""} == theirs | {"created": ""}
    assert not list(out.parent.glob("*.partial*"))
    return ended.text
