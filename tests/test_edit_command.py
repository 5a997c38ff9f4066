import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from readable_pipeline import SIZE, A, B, ReadablePipeline

from diticli.errors import ChunkError, ConfigError, DataError, FeatureFileError, LabelError, ModelError
from diticli.pictures.strips import ALERT
from diticli.probing.directions import Directions, save_directions
from diticli.probing.linear_probe import LinearProbe


@pytest.fixture
def command(monkeypatch):
    """The edit command as the command line runs it, on the readable pipeline."""
    typer_testing = pytest.importorskip("typer.testing")
    from diticli.commands.edit import app

    loaded = []
    locate = ModuleType("diticli.models.load")
    locate.load_model = lambda model, device: loaded.append((model, device)) or ReadablePipeline()
    monkeypatch.setitem(sys.modules, "diticli.models.load", locate)

    def call(*arguments):
        result = typer_testing.CliRunner().invoke(app, [str(argument) for argument in arguments])
        result.loaded = list(loaded)
        return result

    return call


@pytest.fixture
def photos(tmp_path):
    A.save(tmp_path / "a.png")
    B.save(tmp_path / "b.png")
    return tmp_path / "a.png", tmp_path / "b.png"


def test_a_command_that_fails_leaves_no_folder(command, photos, tmp_path, monkeypatch):
    """The model is looked for before anything is made: an unknown one once left empty folders."""

    def missing(model, device):
        raise ModelError("There is no model 'nowhere'.")

    monkeypatch.setattr(sys.modules["diticli.models.load"], "load_model", missing)
    places = ("-o", tmp_path / "new" / "deep" / "out.png", "--separate", tmp_path / "singles")
    result = command(*photos, *places, "--animate", tmp_path / "moving" / "a.webp", "--model", "nowhere")
    assert isinstance(result.exception, ModelError)
    (tmp_path / "pairs.csv").write_text("a,b\na.png,b.png\n")
    result = command(tmp_path / "pairs.csv", "-o", tmp_path / "edits", "--model", "nowhere")
    assert isinstance(result.exception, ModelError)
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "b.png", "pairs.csv"}


def test_command_writes_strip_and_singles(command, photos, tmp_path):
    out, singles = tmp_path / "new" / "out.png", tmp_path / "singles"
    options = ("--chunks", "1-2", "-o", out, "--alphas", "1", "--steps", "2", "--separate", singles, "--json")
    result = command(*photos, *options, "--model", "m", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.loaded == [("m", "cpu")]
    with Image.open(out) as image:
        assert image.info["diti:images"] == "a.png | b.png"
        assert image.info["diti:steps"] == "invert 2, decode 2"
    bare = tmp_path / "bare.png"
    assert command(*photos, *options, "-o", bare, "--no-metadata").exit_code == 0
    with Image.open(bare) as image:
        assert image.info.keys() == {"Software"}
    summary = json.loads(result.stdout)
    assert summary["chunks"] == [[1, 2]]
    assert summary["psnr_db"] == [None, None]
    assert (singles / "a_chunks1-2_alpha1.00.png").is_file()
    assert len(summary["separate"]) == len(list(singles.iterdir())) == 6


@pytest.mark.parametrize(("asked", "ran"), [(334, 500), (30, 31), (600, 1000), (100, 100)])
def test_command_says_how_many_steps_ran(command, photos, tmp_path, asked, ran):
    options = ("--solver", "ddim", "--invert-steps", asked, "--decode-steps", 10, "--chunks", "0", "--alphas", "1")
    result = command(*photos, "-o", tmp_path / "out.png", "--json", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    keys = ("invert_steps", "invert_steps_run", "decode_steps", "decode_steps_run")
    assert [summary[key] for key in keys] == [asked, ran, 10, 10]
    said = f"{asked} ({ran} run)" if ran != asked else str(asked)
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["diti:steps"] == f"invert {said}, decode 10"
    assert (said in result.stderr) == (ran != asked)


def test_command_defaults_show_quarters_and_take_faces(command, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(ReadablePipeline, "resolution", 16)  # preprocess makes it 8
    result = command(photos[0], "faces:3", "-o", tmp_path / "out.png", "--steps", "1", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["chunks"] == [[0], [1], [2], [3]]
    assert summary["alphas"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert summary["images"] == ["a.png", "faces:3"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("keep", 20, 20, False)),
        (("--solver", "ddim"), ("keep", 100, 100, False)),
        (("--official",), ("slerp", 1000, 100, True)),
        (("--official", "--steps", "7", "--noise", "keep"), ("keep", 7, 7, True)),
        (("--official", "--invert-steps", "9"), ("slerp", 9, 100, True)),
        (("--steps", "4", "--decode-steps", "5"), ("keep", 4, 5, False)),
    ],
)
def test_command_official_and_steps(command, photos, tmp_path, options, expected):
    result = command(*photos, "-o", tmp_path / "out.png", "--json", "--chunks", "0", "--alphas", "1", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert tuple(summary[key] for key in ("noise", "invert_steps", "decode_steps", "official")) == expected
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["diti:sampler"] == ("official" if expected[3] else "own")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (("missing.png", "b.png"), DataError, "missing.png does not exist"),
        ((".", "b.png"), DataError, "is a folder"),
        (("faces:x", "b.png"), ConfigError, "faces:x"),
        (("a.png", "b.png", "--alphas", "0:1"), ConfigError, "0:1"),
        (("a.png", "b.png", "--noise", "loud"), ConfigError, "loud"),
        (("a.png", "b.png", "-o", "out.tiff"), ConfigError, "out.tiff"),
        (("a.png", "b.png", "-o", "x.webp", "--animate", "x.webp"), ConfigError, "are both x.webp"),
        (("a.png", "b.png", "-o", "a.png"), ConfigError, "one of the images"),
        (("a.png", "b.png", "-o", "b.png/out.png"), DataError, "b.png"),
        (("a.png", "b.png", "--separate", "a.png"), DataError, "a.png"),
        (("a.png", "b.png", "-o", "/proc/out.png"), DataError, "/proc"),
        (("a.png", "b.png", "-o", "."), DataError, "-o names a folder"),
        (("a.png",), ConfigError, "1 image is no pair"),
        (("a.png", "b.png", "a.png"), ConfigError, "3 images are no pair"),
        (("a.png", "b.png", "--animate", "out.mp4"), ConfigError, "out.mp4"),
        (("a.png", "b.png", "--animate", "a.png"), ConfigError, "a.png"),
        (("a.png", "b.png", "--grid", "--chunks", "1"), ConfigError, "--grid"),
        (("a.png", "b.png", "--official", "--solver", "dpm"), ConfigError, "ddim"),
        (("a.png", "b.png", "--dims", "4"), ConfigError, "--dims is for `diti edit attribute`"),
        (("pair", "a.png", "pairs.csv"), ConfigError, "pairs.csv is a table"),
        (("pair", "a.png"), ConfigError, "1 image is no pair"),
        (("attribute", "a.png"), ConfigError, "No attribute"),
        (("table", "pairs.csv", "a.csv"), ConfigError, "comes alone"),
        (("a.png", "b.png", "--dry-run"), ConfigError, "--dry-run"),
        (("a.png", "--reconstruct", "--attribute", "hat"), ConfigError, "--reconstruct"),
        (("a.png", "--reconstruct", "--noise", "swap"), ConfigError, "swap"),
        (("a.png", "--reconstruct", "--alphas", "1"), ConfigError, "--alphas"),
        (("a.png", "--attribute", "hat", "--amount", "99"), ConfigError, "99"),
        (("a.png", "--attribute", "hat", "--probe", "nowhere"), FeatureFileError, "nowhere"),
        (("pairs.csv",), DataError, "pairs.csv does not exist"),
        (("pairs.csv", "a.png"), ConfigError, "comes alone"),
        (("pairs.csv", "--reconstruct"), ConfigError, "pairs.csv is a table"),
    ],
)
def test_mistakes_are_named_before_a_model_is_loaded(command, photos, monkeypatch, arguments, error, says):
    monkeypatch.chdir(photos[0].parent)
    result = command(*arguments)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert result.exception.remedy
    assert result.loaded == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a.png", "b.png", "--solver", "euler"), "euler"),
        (("a.png", "b.png", "--precision", "fp8"), "fp8"),
        (("a.png", "--attribute", "hat", "--along", "line"), "line"),
        (("pair", "a.png", "b.png", "--dims", "4"), "--dims"),
        (("pair", "a.png", "b.png", "--dry-run"), "--dry-run"),
        (("attribute", "a.png", "--alphas", "1"), "--alphas"),
        (("reconstruct", "a.png", "--chunks", "1"), "--chunks"),
        (("table", "pairs.csv", "--probe", "x"), "--probe"),
    ],
)
def test_a_sub_command_has_only_its_own_options(command, arguments, says):
    result = command(*arguments)
    assert result.exit_code == 2
    assert says in result.output


def recorded(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes(), dict(image.info)


def in_red(path):
    with Image.open(path) as image:
        return bool((np.asarray(image.convert("RGB")) == ImageColor.getrgb(ALERT)).all(axis=2).any())


def call(line):
    return shlex.split(line)[2:]


@pytest.mark.parametrize(
    ("short", "kind"),
    [
        (("--chunks", "1-2", "--noise", "random", "--seed", "3", "--alphas", "-1,0.5"), "pair"),
        (("--grid", "--difference"), "pair"),
        (("--attribute", "hat", "--probe", "probe", "--amount", "-0.5:0.5:3"), "attribute"),
        (("--reconstruct", "--noise", "keep"), "reconstruct"),
    ],
)
def test_recorded_commands_repeat_the_picture_whatever_the_environment(
    command, photos, probe, monkeypatch, short, kind
):
    """The model is named although $DITI_MODEL chose it, and the sub-command is that of the short spelling."""
    monkeypatch.chdir(photos[0].parent)
    result = command("a.png", "b.png", *short, "--steps", "2", "-o", "out.png")
    assert result.exit_code == 0, result.output
    pixels, facts = recorded("out.png")
    line = facts["diti:command"]
    assert line.startswith(f"diti edit {kind} a.png b.png ")
    assert "--model readable" in line
    assert (facts["diti:model"], facts["diti:model_name"]) == ("0123456789abcdef", "readable (--model)")
    Path("out.png").unlink()
    assert command(*call(line)).exit_code == 0
    assert recorded("out.png") == (pixels, facts)


def test_pictures_of_a_table_record_the_command_of_their_own_pair(command, photos, tmp_path):
    table, out = tmp_path / "pairs.csv", tmp_path / "edits"
    table.write_text('a,b,chunks,alphas,name\na.png,b.png,0-1;2,"0,1",x\nb.png,a.png,,,y\n')
    result = command(table, "-o", out, "--steps", "2", "--noise", "slerp", "--grid", "--difference")
    assert result.exit_code == 0, result.output
    for name in ("x", "y"):
        pixels, facts = recorded(out / f"{name}.png")
        (out / f"{name}.png").unlink()
        assert command(*call(facts["diti:command"])).exit_code == 0
        again, same = recorded(out / f"{name}.png")
        assert pixels == again
        assert same.items() <= facts.items()  # a table's pictures also hold the key by which they are skipped


def test_names_that_look_like_options_are_repeated_as_names(command, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A.save(tmp_path / "-a.png")
    assert command("pair", "--steps", "1", "--no-compile", "--", "-a.png", "b.png").exit_code == 0
    line = recorded("edit.png")[1]["diti:command"]
    assert line.endswith("-- -a.png b.png")
    assert "--no-compile" in line
    assert command(*call(line)).exit_code == 0


def test_what_spoils_a_picture_is_said_first_in_json_and_in_the_picture(command, photos, tmp_path, monkeypatch):
    out = tmp_path / "out.png"
    assert json.loads(command(*photos, "-o", out, "--json").stdout)["warnings"] == []
    assert not in_red(out)
    decode = ReadablePipeline.decode
    monkeypatch.setattr(ReadablePipeline, "decode", lambda self, x, z, **others: -decode(self, x, z, **others))
    result = command(*photos, "-o", out, "--json", "--steps", "5")
    assert result.exit_code == 0, result.output
    (warning,) = json.loads(result.stdout)["warnings"]
    assert "5 steps of dpm are too few: use --steps 20" in warning
    assert warning in result.stderr
    assert recorded(out)[1]["diti:warnings"] == warning
    assert in_red(out), "it stands in the picture"
    said = command(*photos, "-o", out, "--steps", "5").stderr
    assert said.index("too few") < said.index("Wrote")
    (tmp_path / "pairs.csv").write_text("a,b\na.png,b.png\n")
    (warning,) = json.loads(command(tmp_path / "pairs.csv", "-o", tmp_path / "edits", "--json").stdout)["warnings"]
    assert "the worst of 2 such images" in warning
    (strip,) = (tmp_path / "edits").glob("*.png")
    assert in_red(strip), "and in each picture of a table"
    assert recorded(strip)[1]["diti:warnings"] == warning.replace(str(photos[0]), "a.png")


def test_it_is_said_how_a_photo_becomes_what_the_model_sees(command, tmp_path):
    for name, size in (("wide.png", (20, 12)), ("square.png", (16, 16))):
        A.resize(size).save(tmp_path / name)
    result = command("reconstruct", tmp_path / "wide.png", tmp_path / "square.png", "-o", tmp_path / "out.png")
    assert "wide.png: 20x12 -> centre square -> 8 px." in result.stderr
    assert "square.png: 16x16 -> 8 px." in result.stderr
    (tmp_path / "pairs.csv").write_text("a,b\nwide.png,square.png\n")
    result = command(tmp_path / "pairs.csv", "-o", tmp_path / "edits", "--steps", "1")
    assert "wide.png: 20x12 -> centre square -> 8 px." in result.stderr


def test_chunks_outside_the_model_and_unreadable_images(command, photos, tmp_path):
    result = command(*photos, "--chunks", "2-4", "-o", tmp_path / "out.png")
    assert isinstance(result.exception, ChunkError)
    assert "0-3" in str(result.exception)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(photos[0]).read_bytes()[:45])
    result = command(photos[0], broken, "-o", tmp_path / "out.png")
    assert isinstance(result.exception, DataError)
    assert "broken.png" in str(result.exception)
    assert not (tmp_path / "out.png").exists()


@pytest.fixture
def probe(tmp_path):
    """Directions of "hat" and "smile"; masks of 2 dims."""

    def parts(weights):
        return LinearProbe(
            weights=np.array(weights, np.float32),
            bias=np.zeros(2, np.float32),
            mean=np.zeros(SIZE, np.float32),
            std=np.full(SIZE, 0.1, np.float32),
            names=("hat", "smile"),
            kinds=("binary", "number"),
            classes=("", ""),
            model_hash=ReadablePipeline.model_hash,
        )

    full, masked = parts(np.ones((2, SIZE))), parts([[1, 0, 1] + [0] * 5, [0] * 6 + [1, 1]])
    directions = Directions(full=full, masked=masked, chosen={"hat": (0, 2), "smile": (6, 7)}, patterns=full.weights)
    save_directions(directions, tmp_path / "probe")
    return tmp_path / "probe"


def test_attributes_of_several_images(command, photos, probe, tmp_path):
    out, singles = tmp_path / "out.png", tmp_path / "singles"
    options = ("--attribute", "hat", "--attribute", "smile", "--amount", "-0.5:0.5:3", "--probe", probe, "--steps", "1")
    result = command(*photos, *options, "-o", out, "--separate", singles, "--animate", tmp_path / "x.gif", "--json")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["attributes"] == ["hat", "smile"]
    assert summary["amounts"] == [-0.5, 0.0, 0.5]
    assert summary["chunks"] == [None]
    names = {path.name for path in singles.iterdir()}
    assert len(names) == 2 * (2 + 2 * 3)
    assert {"a_hat_-0.5.png", "b_smile_0.png", "a_original.png"} <= names
    with Image.open(out) as image:
        assert image.info["diti:attributes"] == "hat | smile"


def test_an_attribute_that_no_picture_shows_is_named(command, photos, probe, tmp_path, monkeypatch):
    out = tmp_path / "out.png"
    options = ("--attribute", "hat", "--amount", "0.4", "--probe", probe, "--steps", "1", "-o", out, "--json")
    shown = json.loads(command(photos[0], *options).stdout)
    assert shown["warnings"] == []
    ((moved,),) = [shown["read_again"]]
    assert (moved["image"], moved["attribute"], moved["amount"]) == ("a.png", "hat", 0.4)
    assert moved["found_sd"] == pytest.approx(moved["asked_sd"], rel=0.05)
    assert moved["asked_sd"] == pytest.approx(0.4 * np.sqrt(SIZE), rel=1e-3), "in sd of what the probe reads"
    monkeypatch.setattr(ReadablePipeline, "encode", lambda self, images: torch.zeros(len(images), SIZE))
    monkeypatch.setattr(ReadablePipeline, "transfer_rates", {"hat": 0.05})
    monkeypatch.setattr(ReadablePipeline, "trained_on", "built-in faces")
    result = command(photos[0], *options)
    assert result.exit_code == 0, result.output
    warning = json.loads(result.stdout)["warnings"][-1]
    assert "hat is read but hardly moves in a.png: +0.4 asked for +1.1 sd" in warning
    assert "encoded again has +0.0 sd" in warning
    assert "an exchange of all chunks moves it by 5% only" in warning
    assert warning in result.stderr
    assert in_red(out)


def test_learned_dims_must_be_as_many(command, photos, probe, tmp_path):
    options = ("--attribute", "hat", "--probe", probe, "-o", tmp_path / "x.png", "--steps", "1")
    result = command(photos[0], *options, "--dims", "2", "--chunks", "0-1")
    assert result.exit_code == 0, result.output
    result = command(photos[0], *options, "--dims", "3")
    assert isinstance(result.exception, ConfigError)
    assert "--mask-dims 3" in result.exception.remedy
    result = command(photos[0], "--attribute", "hats", *options[2:])
    assert isinstance(result.exception, LabelError)


def test_directions_of_another_model_are_refused(command, photos, probe, tmp_path, monkeypatch):
    monkeypatch.setattr(ReadablePipeline, "model_hash", "fedcba9876543210")
    result = command(photos[0], "--attribute", "hat", "--probe", probe, "-o", tmp_path / "x.png")
    assert isinstance(result.exception, ModelError)


def test_reconstructions(command, photos, tmp_path):
    out = tmp_path / "out.png"
    result = command(*photos, "--reconstruct", "-o", out, "--json", "--difference", "--steps", "1")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["noise"] == ["keep", "random", "mean"]
    assert summary["psnr_db"]["keep"] == [None, None]
    assert summary["psnr_db"]["random"][0] < 30
    result = command(photos[0], "--reconstruct", "--noise", "mean", "-o", out, "--json", "--steps", "1")
    assert json.loads(result.stdout)["noise"] == ["mean"]


def test_grid_and_animation(command, photos, tmp_path):
    options = ("--grid", "--difference", "--animate", tmp_path / "new" / "x.webp", "--steps", "1", "--json")
    result = command(*photos, "-o", tmp_path / "out.png", *options)
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["chunks"] == [[0], [1], [2], [3], [0, 1, 2, 3]]
    assert len(summary["alphas"]) == 9
    with Image.open(tmp_path / "new" / "x.webp") as image:
        assert image.n_frames == 16


def test_table(command, photos, tmp_path):
    table, out = tmp_path / "pairs.csv", tmp_path / "edits"
    table.write_text("a,b,chunks,name\na.png,b.png,0-1;2,x\nmissing.png,b.png,,\n")
    options = ("-o", out, "--steps", "1", "--alphas", "1", "--json")
    result = command(table, *options, "--dry-run")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["todo"], plan["invert"], plan["decode"]) == (1, 2, 6)
    assert list(plan["failed"]) == ["2_missing_b"]
    assert not out.exists()
    result = command(table, *options, "--animate", "webp")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["written"] == ["x"]
    assert (report["invert_steps_run"], report["decode_steps_run"]) == (1, 1)
    assert sorted(path.name for path in out.iterdir()) == ["failed.csv", "x.png", "x.webp"]
    (tmp_path / "missing.png").write_bytes((tmp_path / "a.png").read_bytes())
    result = command(table, *options, "--animate", "webp")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["skipped"] == ["x"]
    assert not (out / "failed.csv").exists()
