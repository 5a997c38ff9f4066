"""The commands as a user types them: the whole path on a tiny model, and every error in one line."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from diticli import __version__
from diticli.commands import reporting, train
from diticli.commands.app import app
from diticli.training import plan

TINY = [
    *("--resolution", "16", "--chunks", "4", "--partition", "uniform", "--latent-dim", "16"),
    *("--base-images", "64", "--images", "64"),
    *("--batch-size", "16", "--device", "cpu", "--precision", "fp32", "--seed", "3"),
    *("--set", "unet.channels=8,16", "--set", "unet.norm_groups=4", "--set", "encoder.widths=32,32"),
    *("--set", "log_every=1", "--set", "sample_every=4", "--set", "data.faces_count=64"),
]
UNSAMPLED = ("--set", "sample_every=0")


def diti(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "runs" / "tiny"
    result = diti("train", "--data", "faces", "--out", out, *TINY)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photos") / "faces of spring"
    result = diti("faces", out, "-n", "120", "--size", "24", "--seed", "5")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def feats(run: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("feats") / "feats.npy"
    result = diti("encode", photos, "-o", path, "--model", run, "--batch-size", "32")
    assert result.exit_code == 0, result.output
    return path


@pytest.mark.parametrize("command", [[], ["train"], ["encode"], ["probe"], ["edit"], ["convert"], ["faces"], ["demo"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\n"
        "from diticli.__main__ import main\n"
        f"sys.argv = ['diti', *{command!r}, '--help']\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'diffusers', 'sklearn', 'matplotlib', 'accelerate'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: diti" in done.stdout


COMMANDS = ["train", "encode", "probe", "compare", "evaluate", "convert", "faces", "studio", "demo", "doctor"]
EDITS = [("edit", kind) for kind in ("pair", "attribute", "reconstruct", "table")]


@functools.cache
def help_page(command: tuple[str, ...], width: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        return diti(*command, "--help").stdout


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("edit",), *EDITS])
def test_help_texts_fill_their_lines(command: tuple[str, ...], width: int) -> None:
    """A line ends where the next word does not fit, not where the source's line ended; none is wider, no word cut."""
    lines = help_page(command, width).splitlines()
    assert max(map(len, lines)) <= width
    words, whole = (set(re.split(r"[\s│╭╮╰╯─]+", page)) for page in ("\n".join(lines), help_page(command, 600)))
    assert words <= whole, "words are cut at the end of a line"
    prose = [line.strip() for line in lines if line.startswith(" ") and not line.startswith(" Usage")]
    assert any(prose)
    for line, after in pairwise(prose):
        if line and after and not after.startswith("Example"):
            assert len(line) + len(after.split()[0]) + 2 > width - 2, line


def test_the_help_of_edit_shows_the_options_of_its_sub_commands() -> None:
    said = diti("edit", "--help").stdout
    assert all(
        f"{option} " in said for option in ("--chunks", "--alphas", "--attribute", "--steps", "--model", "--out")
    )
    assert said.index("--chunks ") < said.index("attribute  ")


def test_python_dash_m_starts() -> None:
    done = subprocess.run([sys.executable, "-m", "diticli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"diticli {__version__}\n")
    assert "torch" in done.stdout


def test_train_leaves_a_finished_run(run: Path) -> None:
    assert (run / "model" / "model_index.json").is_file()
    assert (run / "samples" / "base-00000004.png").is_file()


def test_encode_writes_rows_and_sidecar(feats: Path, photos: Path) -> None:
    values = np.load(feats, mmap_mode="r")
    assert values.shape == (120, 16)
    assert values.dtype == np.float32
    side = json.loads(feats.with_suffix(".json").read_text())
    assert side["files"][:2] == ["000000.png", "000001.png"]
    assert side["chunk_ends"] == [4, 8, 12, 16]


def test_encode_finds_the_newest_run(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.delenv("DITI_MODEL", raising=False)
    result = diti("encode", photos / "000000.png", "-o", tmp_path / "one.npz", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["model"] == "runs/tiny"


def test_probe_reports_every_factor(feats: Path, photos: Path, tmp_path: Path) -> None:
    result = diti("probe", feats, "--labels", photos / "labels.csv", "-o", tmp_path / "probe", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert len(report["attributes"]) + len(report["skipped"]) == 13
    assert json.loads((tmp_path / "probe" / "report.json").read_text()) == report
    assert (tmp_path / "probe" / "probe.safetensors").is_file()


def test_edit_writes_a_strip_and_singles(run: Path, photos: Path, tmp_path: Path) -> None:
    a, b = photos / "000000.png", photos / "000001.png"
    strip, singles = tmp_path / "new" / "edit.png", tmp_path / "singles"
    arguments = ["edit", a, b, "--chunks", "0-1,3", "-o", strip, "--model", run, "--steps", "3", "--alphas", "0:1:3"]
    result = diti(*arguments, "--separate", singles)
    assert result.exit_code == 0, result.output
    with Image.open(strip) as picture:
        assert picture.width > 5 * 16
    names = {p.name for p in singles.iterdir()}
    assert {"a_original.png", "a_reconstruction.png", "b_original.png"} <= names
    with Image.open(singles / "a_original.png") as original:
        assert original.size == (16, 16)


@pytest.mark.parametrize("partition", ["uniform", "staged"])
def test_one_chunk_is_pdae(run: Path, photos: Path, tmp_path: Path, partition: str) -> None:
    model, feats, picture = tmp_path / "pdae", tmp_path / "feats.npy", tmp_path / "edit.png"
    given = ["--base", run, "--chunks", "1", "--partition", partition, *UNSAMPLED]
    pair = (photos / "000000.png", photos / "000001.png")
    for command in (
        ["train", "--data", "faces", "--out", model, *TINY, *given],
        ["encode", photos, "-o", feats, "--model", model],
        ["edit", *pair, "--chunks", "0", "-o", picture, "--model", model, "--steps", "3"],
    ):
        result = diti(*command)
        assert result.exit_code == 0, result.output
    assert json.loads(feats.with_suffix(".json").read_text())["chunk_ends"] == [16]
    assert picture.is_file()


@pytest.mark.parametrize("method", ["simclr", "simsiam"])
def test_self_supervised_features_are_probed_but_not_edited(photos: Path, tmp_path: Path, method: str) -> None:
    model, feats, picture = tmp_path / method, tmp_path / "feats.npy", tmp_path / "edit.png"
    for command in (
        ["train", "--data", "faces", "--out", model, *TINY, "--ssl", method, "--ssl-only"],
        ["encode", photos, "-o", feats, "--model", model],
        ["probe", feats, "--labels", photos / "labels.csv", "-o", tmp_path / "probe"],
    ):
        result = diti(*command)
        assert result.exit_code == 0, result.output
    assert json.loads((model / "metrics.jsonl").read_text().splitlines()[0])["ssl_loss"]
    result = diti("edit", photos / "000000.png", photos / "000001.png", "-o", picture, "--model", model)
    assert result.exit_code == 66
    assert "This model is an encoder alone" in result.stderr
    assert not picture.exists()


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest batch that fits is sought up to this size."""
    monkeypatch.setattr(plan, "MOST_IMAGES", 32)


@pytest.mark.usefixtures("small_batches")
def test_dry_run_shows_the_self_supervised_loss(tmp_path: Path) -> None:
    given = ["--dry-run", "--ssl", "simsiam", "--ssl-weight", "0.1", "--ssl-start-step", "2"]
    result = diti("train", "--data", "faces", "--out", tmp_path / "run", *TINY, *given)
    assert result.exit_code == 0, result.output
    assert "16 dims in 4 chunks, self-supervised loss simsiam" in result.stdout


@pytest.mark.usefixtures("small_batches")
def test_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = diti("train", "--data", "faces", "--out", out, *TINY, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert [stage["name"] for stage in shown["stages"]] == ["base", "features"]
    assert shown["seconds"] > 0
    assert shown["stages"][0]["trained_parameters"] == shown["stages"][1]["frozen_parameters"]
    assert not out.exists()


def test_modular_fills_in_what_is_not_given(tmp_path: Path) -> None:
    given = ["--modular", "--bottleneck", "1e-4", *UNSAMPLED]
    result = diti("train", "--data", "faces", "--out", tmp_path, *TINY, *given)
    assert result.exit_code == 0, result.output
    saved = json.loads((tmp_path / "config.json").read_text())["config"]
    assert (saved["chunks"]["visible"], saved["gradient"]) == ("all", "detached")
    assert (saved["modularity"]["weighting"], saved["modularity"]["bottleneck"]) == ("gap", 1e-4)
    model = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert model["chunk_layout"]["visible"] == "all"


def test_config_file_names_preset_and_data(run: Path, tmp_path: Path) -> None:
    """A run's own config.json repeats it: nothing on the command line overrides it unasked."""
    again = tmp_path / "again"
    result = diti("train", "--config", run / "config.json", "--out", again)
    assert result.exit_code == 0, result.output
    saved = [json.loads((folder / "config.json").read_text())["config"] for folder in (run, again)]
    assert saved[0] == saved[1]
    journals = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, again)]
    assert [json.loads(a)["loss"] for a in journals[0]] == [json.loads(b)["loss"] for b in journals[1]]


def test_the_readmes_commands_work_in_sequence(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`diti train --data ./ffhq`, `diti encode images/ -o feats.npy`, `diti edit a.png b.png --chunks 10-20`, with the
    preset's own chunks on networks of a few channels."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DITI_MODEL", raising=False)
    small = [*TINY[: TINY.index("--chunks")], *TINY[TINY.index("--base-images") :], *UNSAMPLED]
    shutil.copytree(photos, "ffhq")
    trained = diti("train", "--data", "./ffhq", *small)
    assert trained.exit_code == 0, trained.output
    encoded = diti("encode", "ffhq/", "-o", "feats.npy")
    assert encoded.exit_code == 0, encoded.output
    assert "Model: runs/ffhq-faces32 (newest run under ./runs), trained on" in encoded.stderr
    assert np.load("feats.npy").shape == (120, 256)
    edited = diti("edit", "ffhq/000000.png", "ffhq/000001.png", "--chunks", "10-20", "--steps", "2")
    assert edited.exit_code == 0, edited.output
    assert Path("edit.png").is_file()


def test_minutes_and_images_exclude_each_other() -> None:
    for command in (
        ["train", "--minutes", "5", "--images", "10"],
        ["demo", "--full", "--minutes", "5", "--images", "10"],
    ):
        result = diti(*command)
        assert result.exit_code == 2
        assert "Give" in result.stderr
        assert "--minutes" in result.stderr


@pytest.mark.usefixtures("small_batches")
def test_a_plan_of_minutes_is_shown(tmp_path: Path) -> None:
    sizes = [*TINY[: TINY.index("--base-images")], *TINY[TINY.index("--images") + 2 :]]
    result = diti(
        "train", "--data", "faces", "--out", tmp_path / "run", *sizes, "--minutes", "1", "--dry-run", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["seconds"] < 600, "timed anew, beside whatever else runs"
    assert "Planned for 1 min" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_quick_demo_refuses_what_only_the_long_one_takes() -> None:
    result = diti("demo", "--images", "10")
    assert result.exit_code == 2
    assert "--images is for --full" in result.stderr


def test_a_run_on_a_cpu_says_beforehand_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "WORTH_TIMING", 128)  # images of both stages, of which the command below has as many
    monkeypatch.setattr(reporting, "LINE_SECONDS", 0.0)
    result = diti("train", "--data", "faces", "--out", tmp_path / "run", *TINY, *UNSAMPLED)
    assert result.exit_code == 0, result.output
    said = result.stderr.index("On this CPU that takes about")
    assert said < result.stderr.index("Stage base")
    assert "--minutes" in result.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    """A real process, a real signal; the same command then finishes."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "diticli", "train", "--data", "faces", "--out", str(out), *TINY]
    command += ["--base-images", "200000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = out / "metrics.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            continue
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130, error
    assert "everything is saved" in error
    assert "Run the same command again to go on" in error
    assert "Traceback" not in error
    assert list((out / "checkpoints").glob("step-*/state.json"))


ERRORS = [
    (["train", "--data", "/nowhere"], 65, "does not exist"),
    (["train", "--preset", "huge"], 2, "There is no preset 'huge'"),
    (["train", "--set", "features.bach=1"], 2, "Did you mean 'features.batch_size'"),
    (["train", "--set", "gradient=up"], 2, "cumulative, detached, dual"),
    (["faces", "dir", "5"], 2, "Write diti faces dir -n 5."),
    (["train", "--chunks", "1", "--set", "chunks.count=16"], 2, "An option says chunks.count=1"),
    (["train", "--chunks", "999"], 2, "999 chunks do not fit"),
    (["train", "--resolution", "50"], 2, "not divisible"),
    (["train", "--stage-ends", "a,b"], 2, "--stage-ends 'a,b' is not a list"),
    (["train", "--config", "/nowhere.toml"], 2, "Cannot read the settings"),
    (["train", "--partition", "middle"], 2, "middle"),
    (["train", "--ssl", "moco"], 2, "moco"),
    (["train", "--ssl-only", "--device", "cpu"], 2, "there is none: method none"),
    (["train", "--ssl", "simclr", "--ssl-weight", "-1"], 2, "ssl.weight must be zero or more, got -1"),
    (["train", "--ssl", "simclr", "--ssl-only", "--base", "b"], 2, "without a base, but one is given: 'b'"),
    (["train", "--device", "tpu"], 69, "There is no device 'tpu'"),
    (["train", "--base", "/nowhere/base", "--device", "cpu"], 66, "base"),
    (["encode", "faces", "--model", "/nowhere"], 66, "no folder '/nowhere'"),
    (["encode", "faces", "-o", "feats.txt"], 65, ".npy, .npz, .safetensors"),
    (["probe", "/nowhere.npy", "--labels", "/nowhere.csv"], 65, "/nowhere.npy"),
    (["edit", "/nowhere.png", "/nowhere.png"], 65, "/nowhere.png"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), ERRORS, ids=[" ".join(a) for a, _, _ in ERRORS])
def test_bad_input_gets_one_line_and_a_remedy(
    arguments: list[str], status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = diti(*arguments)
    assert result.exit_code == status, result.output
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir()), "a failed command leaves nothing behind"


def test_edit_out_of_range_chunks(run: Path, photos: Path, tmp_path: Path) -> None:
    a, b = photos / "000000.png", photos / "000001.png"
    result = diti("edit", a, b, "--chunks", "2-9", "--model", run, "-o", tmp_path / "x.png")
    assert result.exit_code == 2
    assert "Chunk 9 does not exist: this model has 4 chunks, 0-3." in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_probe_without_a_match_shows_both_sides(feats: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("filename,smile\nsomebody.png,1\nelse.png,0\n")
    result = diti("probe", feats, "--labels", labels, "-o", tmp_path / "probe")
    assert result.exit_code == 65
    assert "somebody.png" in result.stderr
    assert "000000.png" in result.stderr


def test_verbose_shows_where_an_error_comes_from(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "diticli", "edit", "gone\x1b[31m.png", "faces:1"]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60)
    shown = subprocess.run([*command[:4], "-v", *command[4:]], capture_output=True, text=True, timeout=60)
    assert plain.returncode == shown.returncode == 65
    assert "Traceback" not in plain.stderr
    assert "Traceback" in shown.stderr
    assert "in check_source" in shown.stderr
    assert shown.stderr.endswith(plain.stderr)
    assert "\x1b" not in shown.stderr
