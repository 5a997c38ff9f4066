"""One rule for what is at -o already: what diti made is replaced and said, the rest is refused unless --overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from diticli.commands import completion
from diticli.commands.app import app
from diticli.commands.outputs import check_features, check_folder, check_pictures
from diticli.data.listing import list_images
from diticli.data.own_files import FEW_JPEGS, is_own_picture
from diticli.editing.contact_sheet import Sheet, SheetCell, SheetRow, edit_strip
from diticli.errors import ConfigError, DataError
from diticli.features.formats import READERS, is_own
from diticli.features.manifest import FeatureMeta
from diticli.features.writer import FeatureWriter
from diticli.pictures.differences import BAR_HEIGHT, difference_map
from diticli.pictures.grids import save_picture
from diticli.pictures.metadata import FORMATS
from diticli.probing.directions import FACTS_NAME

PICTURE = Image.effect_noise((40, 40), 60).convert("RGB")
FOREIGN = "diti did not make it"


def diti(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def one_line(result: Result) -> str:
    return " ".join(result.output.split())


def write_features(path: Path) -> None:
    with FeatureWriter(path, identity="x") as writer:
        writer.append(np.ones((2, 3), np.float32), ["a.png", "b.png"])
        writer.finish(FeatureMeta(files=()))


@pytest.mark.parametrize("suffix", READERS)
def test_feature_files_are_known_by_their_metadata(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / f"feats{suffix}"
    check_features(path, overwrite=False)
    assert capsys.readouterr().err == ""
    write_features(path)
    assert is_own(path)
    check_features(path, overwrite=False)
    assert "will be replaced" in capsys.readouterr().err
    path.write_bytes(b"anything")
    path.with_suffix(".json").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=FOREIGN) as error:
        check_features(path, overwrite=False)
    assert "--overwrite" in error.value.remedy
    check_features(path, overwrite=True)
    path.with_name(f"{path.name}.partial.json").write_text("{}")  # stopped while it was put in place: goes on
    check_features(path, overwrite=False)


def test_features_of_others_and_their_json_are_kept(tmp_path: Path) -> None:
    np.save(tmp_path / "own.npy", np.ones((2, 3), np.float32))
    (tmp_path / "own.json").write_text(json.dumps({"files": ["a.png", "b.png"]}))
    (tmp_path / "settings.json").write_text(json.dumps({"files": 3}))
    for name in ("own.npy", "settings.npy"):
        result = diti("encode", "faces:2", "-o", tmp_path / name)
        assert result.exit_code == 2
        assert FOREIGN in one_line(result)


def test_folders_of_results_are_known_by_their_record(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def check(**options: bool) -> str:
        check_folder(tmp_path, "report.json", ("attributes",), ("probe.safetensors",), overwrite=False, **options)
        return capsys.readouterr().err

    (tmp_path / "notes.txt").write_text("mine")
    assert check() == ""  # writes nothing of that name
    (tmp_path / "report.json").write_text(json.dumps({"attributes": []}))
    (tmp_path / "probe.safetensors").write_bytes(b"")
    assert "will be replaced" in check()
    for mine in ('{"lines": 3}', "[1, 2]", "no JSON"):
        (tmp_path / "report.json").write_text(mine)
        with pytest.raises(ConfigError, match=FOREIGN):
            check()
    (tmp_path / "report.json").unlink()
    with pytest.raises(ConfigError, match=r"probe\.safetensors is there already"):
        check()


@pytest.mark.parametrize(
    "arguments",
    [
        ("probe", "feats.npy", "--labels", "labels.csv"),
        ("evaluate", "nowhere/at/all"),
        ("compare", "nowhere/at/all"),
        ("edit", "faces:1", "faces:2"),
        ("edit", "faces:1", "--reconstruct"),
        ("encode", "faces:2"),
        ("convert", "official"),
        ("faces",),
    ],
)
def test_no_command_writes_over_what_diti_did_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    kind = arguments[0]
    names = {"probe": "report.json", "evaluate": "evaluation.json", "compare": "compare.json", "faces": "labels.csv"}
    out = Path("out.png" if kind == "edit" else "out.npy" if kind == "encode" else "out")
    mine = out / names.get(kind, "mine.txt") if kind not in ("edit", "encode") else out
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    result = diti(*arguments, *([out] if kind == "faces" else ["-o", out]))
    assert result.exit_code in (2, 65, 66)
    assert FOREIGN in one_line(result) or (kind == "faces" and "is not empty" in one_line(result))
    assert mine.read_text() == "mine"


def test_the_same_pictures_again_are_replaced_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for suffix in FORMATS:
        path = save_picture(PICTURE, tmp_path / f"a{suffix}", {"diti:command": "diti edit"})
        check_pictures([path], overwrite=False)
        assert "will be replaced" in capsys.readouterr().err
        PICTURE.save(path)
        with pytest.raises(ConfigError, match=FOREIGN):
            check_pictures([path], overwrite=False)
        check_pictures([path], overwrite=True)


def test_faces_say_that_they_replace(tmp_path: Path) -> None:
    assert "replaced" not in diti("faces", tmp_path / "f", "-n", "2", "--size", "16").stderr
    assert "will be replaced" in one_line(diti("faces", tmp_path / "f", "-n", "2", "--size", "16"))


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_strips_of_other_formats_carry_their_command_and_are_no_data(tmp_path: Path, suffix: str) -> None:
    command = "diti edit pair 'é.png' b.png " + "--chunks 1-2 " * 400
    path = save_picture(PICTURE, tmp_path / f"strip{suffix}", {"diti:command": command})
    with Image.open(path) as image:
        found = json.loads(image.getexif()[0x010E])
        assert image.size == PICTURE.size
    assert found["diti:command"] == command
    assert found["Software"].startswith("diti ")
    if suffix == ".webp":
        assert np.array_equal(np.asarray(Image.open(path).convert("RGB")), np.asarray(PICTURE))
    assert is_own_picture(str(path))
    PICTURE.save(tmp_path / "photo.jpg")
    assert [path.name for path in list_images(tmp_path).images] == ["photo.jpg"]


def test_of_very_many_jpegs_none_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_picture(PICTURE, tmp_path / "strip.jpg", {})
    for i in range(FEW_JPEGS):
        (tmp_path / f"{i}.jpg").touch()
    monkeypatch.setattr("diticli.data.listing.is_own_picture", lambda path: pytest.fail("opened"))
    assert len(list_images(tmp_path).images) == FEW_JPEGS + 1


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.webp, \.jpg, \.jpeg") as unknown:
        save_picture(PICTURE, tmp_path / "a.tiff")
    assert unknown.value.remedy == "Write a.png."
    with pytest.raises(DataError, match="WEBP file holds no picture of 16384x1"):
        save_picture(Image.new("RGB", (16_384, 1)), tmp_path / "a.webp")
    with pytest.raises(DataError, match="JPEG file holds no command so long"):
        save_picture(PICTURE, tmp_path / "a.jpg", {"diti:command": "x" * 70_000})
    assert not list(tmp_path.iterdir())


def test_difference_maps_have_one_scale_and_a_bar_that_says_it() -> None:
    tiles = [np.full((8, 8, 3), value, np.uint8) for value in (100, 103, 150)]
    cells = tuple(SheetCell(picture=tile, stem=f"{i}", against=tiles[0]) for i, tile in enumerate(tiles))
    row = SheetRow(caption="row", cells=cells)
    sheet = Sheet(title="t", columns=("a", "b", "c"), rows=(row, row), moving=range(0), metadata={})
    strip, plain = edit_strip(sheet, difference=True), edit_strip(sheet)
    assert strip.height > plain.height + 2 * 96
    colour = difference_map(tiles[2], tiles[0], 4)[0, 0]  # 50 grey levels of 63, on both rows and in the bar
    assert (np.asarray(strip) == colour).all(-1).sum() >= 2 * 96 * 96 + BAR_HEIGHT - 2


# completion


def complete(line: str) -> list[str]:
    words = line.split(" ")
    variables = {"_DITI_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner().invoke(app, [], env=variables, prog_name="diti")
    return result.stdout.split()


def test_attributes_and_presets_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completion.DIRECTIONS == FACTS_NAME
    assert "smile" in complete("diti edit a.png b.png --attribute s")
    (tmp_path / "probe").mkdir()
    rows = [
        {"attribute": "Smiling", "class": ""},
        {"attribute": "Size", "class": "big"},
        {"attribute": "x", "class": ""},
    ]
    (tmp_path / "probe" / FACTS_NAME).write_text(json.dumps({"rows": rows}))
    assert complete("diti edit attribute a.png --attribute s") == ["smiling", "size=big"]
    (tmp_path / "probe").rename(tmp_path / "other")
    assert complete("diti edit a.png --probe other --attribute S") == ["Smiling", "Size=big"]
    assert complete("diti train --preset faces3") == complete("diti demo --preset faces3") == ["faces32"]
