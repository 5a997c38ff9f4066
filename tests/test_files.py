"""Everything is written whole, synced, with the umask's permissions, and never through a link.

Links are planted at the names that are written, or were by earlier versions: what they point to stays as it is.
"""

import errno
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diticli import files
from diticli.config import RunConfig
from diticli.data.faces import write_faces
from diticli.data.images import Skipped, write_skipped_list
from diticli.errors import CheckpointError, ConfigError, DataError, FeatureFileError
from diticli.features.manifest import FeatureMeta
from diticli.features.shard_writer import ShardFolder
from diticli.features.writer import FeatureWriter
from diticli.files import (
    FolderLock,
    publish_folder,
    write_atomically,
    write_bytes,
    write_json,
    write_tensors,
)
from diticli.pictures.animation import save_animation
from diticli.pictures.grids import save_png
from diticli.pictures.metadata import KEY, metadata_left_out
from diticli.pictures.report import write_report
from diticli.probing.files import write_statistics
from diticli.probing.linear_probe import LinearProbe, save_probe
from diticli.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from diticli.training.failures import os_errors_as_typed
from diticli.training.metrics_log import MetricsLogger
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

PICTURE = Image.new("RGB", (8, 8), "red")
STATE = {"stage": "base", "step": 1}


@pytest.fixture
def umask():
    """Set the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.fixture
def plant(tmp_path):
    """Make links to a file, a folder and nothing, elsewhere; in the end both are as they were."""
    victim, folder, missing = tmp_path / "victim.txt", tmp_path / "victims", tmp_path / "missing"
    victim.write_text("precious")
    folder.mkdir()
    (folder / "kept.txt").write_text("precious")

    def link(path, kind="file"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to({"file": victim, "folder": folder, "nothing": missing}[kind])
        return path

    yield link
    assert victim.read_text() == "precious"
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]
    assert not missing.exists()


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def leftovers(folder):
    return [path.name for path in folder.iterdir() if files.is_leftover(path.name)]


def checkpoint():
    return Checkpoint({"weights": {"a": torch.ones(3)}}, STATE)


def a_probe():
    values = {"weights": np.ones((1, 2)), "bias": np.ones(1), "mean": np.ones(2), "std": np.ones(2)}
    values = {name: value.astype(np.float32) for name, value in values.items()}
    return LinearProbe(**values, names=("x",), kinds=("binary",), classes=("",))


def write_features(path):
    with FeatureWriter(path, identity="i") as writer:
        writer.append(np.ones((2, 3), np.float32), ["a", "b"])
        writer.checkpoint()
        writer.finish(FeatureMeta(files=()))


class Facts:
    def to_dict(self):
        return {}


def log(run):
    metrics = MetricsLogger(run)
    metrics.truncate_after("base", 0)
    metrics.log(stage="base", step=1, loss=0.5)
    metrics.close()


WRITERS = {
    "picture": lambda at: save_png(PICTURE, at / "a.png"),
    "animation": lambda at: save_animation([PICTURE, PICTURE.rotate(90)], at / "a.gif"),
    "report": lambda at: write_report(at / "report.html", title="t", sections=[]),
    "probe report": lambda at: write_statistics(Facts(), None, at, {}),
    "probe": lambda at: save_probe(a_probe(), at / "probe.safetensors"),
    "checkpoint": lambda at: save_checkpoint(at / "checkpoints", checkpoint()),
    "model": lambda at: RunDirectory(at).publish(at / "model", lambda folder: write_json(folder / "a.json", 1)),
    "faces": lambda at: write_faces(at, 1, 16, overwrite=True),
    "skipped images": lambda at: write_skipped_list(at / "skipped.txt", [Skipped("a.png", "broken")]),
    "npy": lambda at: write_features(at / "feats.npy"),
    "npz": lambda at: write_features(at / "feats.npz"),
    "safetensors": lambda at: write_features(at / "feats.safetensors"),
    "parquet": lambda at: write_features(at / "feats.parquet"),
    "metrics": log,
}
PLANTED = {
    "picture": ["a.png", ".a.png.PID.part"],
    "animation": ["a.gif", ".a.gif.PID.part"],
    "report": ["report.html", ".report.html.PID.part"],
    "probe report": ["report.json", "report.json.tmp"],
    "probe": ["probe.safetensors", "probe.safetensors.tmp"],
    "checkpoint": ["checkpoints/.step-00000001.partial", "checkpoints/step-00000001"],
    "model": [".model.partial", "model"],
    "faces": ["000000.png", "labels.csv.part", "labels.csv"],
    "skipped images": ["skipped.txt"],
    "npy": ["feats.npy", "feats.json", "feats.json.tmp", "feats.npy.partial.json.tmp", "feats.npy.partial.json"],
    "npz": ["feats.npz", "feats.json", "feats.npz.tmp"],
    "safetensors": ["feats.safetensors", "feats.safetensors.tmp"],
    "parquet": ["feats.parquet", "feats.parquet.tmp"],
    "metrics": [".metrics.jsonl.partial"],
}


@pytest.mark.parametrize(("what", "name"), [(what, name) for what, names in PLANTED.items() for name in names])
def test_planted_links_lead_nowhere(tmp_path, plant, what, name):
    out = tmp_path / "out"
    out.mkdir()
    link = plant(out / name.replace("PID", str(os.getpid())), "folder" if what in ("checkpoint", "model") else "file")
    WRITERS[what](out)
    stray = {path for path in out.rglob("*") if path.is_symlink()}
    assert stray <= {link}, "nothing that was written is a link"
    assert not leftovers(out)


@pytest.mark.parametrize("kind", ["file", "nothing"])
@pytest.mark.parametrize(
    ("name", "write", "error"),
    [
        ("feats.npy.partial", lambda at: write_features(at / "feats.npy"), FeatureFileError),
        ("metrics.jsonl", lambda at: MetricsLogger(at).log(stage="base", step=1), OSError),
        (".lock", lambda at: FolderLock(at).__enter__(), DataError),
    ],
)
def test_files_that_grow_are_no_links(tmp_path, plant, name, kind, write, error):
    link = plant(tmp_path / "out" / name, kind)
    with pytest.raises(error, match="link"):
        write(link.parent)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="no regular file"):
        MetricsLogger(tmp_path).log(stage="base", step=1)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "gap.json", "quality.json", "metrics.jsonl", "skipped.txt", ".lock", ".model.partial"),
        ".base.partial",
        *("base", "model", "checkpoints", "samples", "tensorboard", "probe", "tensorboard/base", "samples/a.png"),
    ],
)
def test_a_run_with_links_inside_is_refused_by_name(tmp_path, plant, name, kind):
    run = tmp_path / "run"
    plant(run / name, kind)
    with pytest.raises(DataError, match=f"run/{name} is a link") as caught:
        train(RunConfig(), run)
    assert "Replace it by what it points to" in caught.value.remedy
    assert {path.name for path in run.iterdir()} == {Path(name).parts[0]}


def test_the_run_itself_may_be_a_link(tmp_path, plant):
    (tmp_path / "real").mkdir()
    (tmp_path / "run").symlink_to("real")
    plant(tmp_path / "real" / "notes", "folder")  # none of the run's names
    RunDirectory(tmp_path / "run").refuse_links()
    RunDirectory(tmp_path / "missing").refuse_links()


def test_records_of_shards_are_no_link(tmp_path, plant):
    link = plant(tmp_path / "shards" / "units", "folder")
    with pytest.raises(DataError, match="units is a link"):
        ShardFolder(link.parent, identity="i", images=2, shard_size=1).claim(0, 1)


def test_a_folder_of_that_name_is_nobody_s_leftover(tmp_path):
    """Converting once removed whatever had its partial name."""
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "thesis.tex").write_text("")
    publish_folder(tmp_path / "model", lambda folder: write_bytes(folder / "a", b""))
    assert (tmp_path / ".model.partial" / "thesis.tex").exists()


def test_a_run_says_which_link_it_met(tmp_path, plant):
    plant(tmp_path / "run" / "metrics.jsonl")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl") as caught, os_errors_as_typed(tmp_path / "run"):
        MetricsLogger(tmp_path / "run").log(stage="base", step=1)
    assert caught.value.remedy.startswith("Replace the link")


# whole or not at all


def test_a_file_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def fail(file):
        file.write(b"new")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(DataError, match="full"):
        write_atomically(path, "text", fail)
    assert path.read_bytes() == b"old"
    with pytest.raises(DataError, match="Cannot write the page"):
        write_atomically(tmp_path / "a.txt" / "b", "page", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path):
    path = tmp_path / "model"
    publish_folder(path, lambda folder: write_bytes(folder / "a", b"old"))

    def fail(folder):
        write_bytes(folder / "a", b"new")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        publish_folder(path, fail, replace=True)
    with pytest.raises(OSError, match="not empty"):
        publish_folder(path, lambda folder: write_bytes(folder / "a", b"new"))
    assert (path / "a").read_bytes() == b"old"
    publish_folder(path, lambda folder: write_bytes(folder / "b", b"new"), replace=True)
    assert [p.name for p in path.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127, os.fsdecode(b"\xff" * 250)])
def test_long_names(tmp_path, name):
    write_bytes(tmp_path / name, b"x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_leftovers_of_killed_processes_go(tmp_path):
    for name in (".a.npy.0123456789abcdef.part", ".b.npy.0123456789abcdef.part", ".a.npy.part", "a.npy"):
        (tmp_path / name).write_text("")
    (tmp_path / ".c.0123456789abcdef.part" / "inner").mkdir(parents=True)
    files.remove_leftovers(tmp_path, ["a.npy"])
    assert not (tmp_path / ".a.npy.0123456789abcdef.part").exists()
    assert (tmp_path / ".b.npy.0123456789abcdef.part").exists()
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.npy.part", "a.npy"]


def test_a_run_killed_before_its_first_file_is_taken_up(tmp_path):
    (tmp_path / ".config.json.0123456789abcdef.part").write_text("")
    RunDirectory(tmp_path).refuse_other_files()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match="is not a run"):
        RunDirectory(tmp_path).refuse_other_files()


# permissions and syncing


@pytest.mark.parametrize(("mask", "expected"), [(0o002, 0o664), (0o077, 0o600), (0o022, 0o644)])
def test_one_rule_for_permissions(tmp_path, umask, mask, expected):
    umask(mask)
    save_checkpoint(tmp_path, checkpoint())
    publish_folder(tmp_path / "model", lambda folder: write_tensors(folder / "a.safetensors", {"a": torch.ones(1)}))
    # as diffusers does, whose safetensors are for the owner alone
    publish_folder(tmp_path / "theirs", lambda folder: os.close(os.open(folder / "a", os.O_CREAT, 0o600)))
    save_probe(a_probe(), tmp_path / "probe.safetensors")
    write_features(tmp_path / "feats.npy")
    write_features(tmp_path / "feats2.safetensors")
    save_png(PICTURE, tmp_path / "a.png")
    log(tmp_path)
    found = {path for path in tmp_path.rglob("*") if path.is_file() and "tensorboard" not in path.parts}
    assert len(found) > 8
    assert {mode(path) for path in found} == {expected}
    assert mode(tmp_path / "model") == 0o777 & ~mask


def test_checkpoints_survive_a_power_cut(tmp_path, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), real(fd))[1]
    )
    path = save_checkpoint(tmp_path / "checkpoints", checkpoint())
    assert any(name.startswith(".step-00000001.") for name in synced), "the new folder"
    assert {"weights.safetensors", "state.json"} <= set(synced)
    assert synced[-1] == "checkpoints", "the rename"
    assert torch.equal(load_checkpoint(path).tensors["weights"]["a"], torch.ones(3))


# locks

HOLD = """
import sys
from pathlib import Path
from diticli.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_other_processes_out(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"process {holder.pid} on "), FolderLock(tmp_path):
                pass
        holder.kill()
    with FolderLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_decoding_processes_do_not_hold_the_lock(tmp_path):
    """Forked while it is held, and alive when its holder has gone."""
    with FolderLock(tmp_path):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
    try:
        with FolderLock(tmp_path):
            pass
    finally:
        os.close(write)
        os.waitpid(child, 0)


def test_what_a_lock_file_says_is_no_terminal_code(tmp_path):
    with FolderLock(tmp_path):
        (tmp_path / ".lock").write_text("\x1b[2J")
        with pytest.raises(ConfigError, match="another process"), FolderLock(tmp_path):
            pass


# what pictures say


def test_pictures_say_how_they_were_made_unless_told_otherwise(tmp_path):
    facts = {"diti:command": "diti edit /home/anna/private.jpg", KEY: "0123"}
    for suffix, save in ((".png", save_png), (".gif", lambda p, *rest: save_animation([p], *rest))):
        save(PICTURE, tmp_path / f"with{suffix}", facts)
        with metadata_left_out():
            save(PICTURE, tmp_path / f"without{suffix}", facts)
        assert b"anna" in (tmp_path / f"with{suffix}").read_bytes()
        bare = (tmp_path / f"without{suffix}").read_bytes()
        assert b"anna" not in bare
        assert b"0123" in bare
        assert b"diti " in bare, "still known as no data"
    assert Image.open(io.BytesIO((tmp_path / "without.png").read_bytes())).info.keys() == {"Software", KEY}


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"), allow_nan=False)
    write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
