"""Which square of a picture is kept: the centre, or what the CelebA literature cuts; kept from training to editing."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_lmdb_images import celeba, celeba_picture
from test_tar_images import write_tar
from typer.testing import CliRunner, Result

from diticli.commands.app import app
from diticli.data.decode import decode_bytes, decode_image
from diticli.data.images import open_images
from diticli.data.square import celeba_box, to_square
from diticli.errors import ModelError

RED = (255, 0, 0)


def diti(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_official_box_and_its_proportions() -> None:
    assert celeba_box(178, 218) == (25, 57, 153, 185)
    assert celeba_box(89, 109) == (12, 28, 76, 92)
    assert celeba_box(356, 436) == (50, 114, 306, 370)
    for other in ((128, 128), (218, 178), (178, 220), (640, 480)):
        assert celeba_box(*other) is None


@pytest.mark.parametrize("width", [89, 178, 356])
def test_nothing_outside_the_box_is_seen(width: int) -> None:
    image = celeba_picture((width, round(width * 218 / 178)))
    for side in (16, 64):
        np.testing.assert_array_equal(to_square(image, side, "celeba"), np.full((side, side, 3), RED, np.uint8))
        assert (to_square(image, side, "center")[0] != RED).any()


def test_at_its_own_size_the_crop_is_copied_to_the_pixel() -> None:
    pixels = np.random.default_rng(0).integers(256, size=(218, 178, 3), dtype=np.uint8)
    cut = to_square(Image.fromarray(pixels), 128, "celeba")
    np.testing.assert_array_equal(cut, pixels[57:185, 25:153])


def test_other_shapes_are_cut_at_their_centre_so_that_cropping_twice_changes_nothing(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((1200, 900)).save(tmp_path / "photo.jpg")
    np.testing.assert_array_equal(
        decode_image(tmp_path / "photo.jpg", 32, crop="celeba"), decode_image(tmp_path / "photo.jpg", 32)
    )
    once = to_square(celeba_picture(), 64, "celeba")
    np.testing.assert_array_equal(to_square(Image.fromarray(once), 64, "celeba"), once)


def test_a_turned_picture_is_set_upright_before_it_is_cropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    buffer = io.BytesIO()
    celeba_picture().transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    np.testing.assert_array_equal(
        decode_bytes(buffer.getvalue(), "turned", 64, crop="celeba"), np.full((64, 64, 3), RED, np.uint8)
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same three CelebA pictures as an LMDB, as a tar, and as a folder."""
    root = tmp_path_factory.mktemp("celeba")
    celeba(root / "lmdb")
    buffer = io.BytesIO()
    celeba_picture().save(buffer, "PNG")
    files = {f"{i:06d}.jpg": buffer.getvalue() for i in (1, 2, 3)}
    write_tar(root / "celeba.tar", files)
    (root / "folder").mkdir()
    for name, content in files.items():
        (root / "folder" / name).write_bytes(content)
    return root


def test_every_source_takes_the_crop(data: Path) -> None:
    for place in ("lmdb", "celeba.tar", "folder"):
        source = open_images(str(data / place), 32, crop="celeba")
        assert [source.file_name(i) for i in range(3)] == ["000001.jpg", "000002.jpg", "000003.jpg"]
        assert source.fingerprint()["crop"] == source.crop == "celeba"
        assert (source.load(2) == RED).all()
        assert open_images(str(data / place), 32).crop == ("celeba" if place == "lmdb" else "center")


def test_a_model_remembers_its_crop(make_pipeline: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    pipeline = make_pipeline(crop="celeba")
    pipeline.save_pretrained(tmp_path / "model")
    again = type(pipeline).from_pretrained(tmp_path / "model")
    assert again.crop == "celeba"
    assert (again.preprocess([celeba_picture()])[0, 0] == 1).all()
    assert (make_pipeline().preprocess([celeba_picture()])[0, 0, 0] != 1).any()
    with pytest.raises(ModelError, match="crop is one of center, celeba"):
        make_pipeline(crop="middle")


def test_encode_reads_lmdb_tar_and_folder_alike(make_pipeline: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    make_pipeline(crop="celeba").save_pretrained(tmp_path / "model")
    features = {}
    for place in ("lmdb", "celeba.tar", "folder"):
        out = tmp_path / f"{place}.npy"
        result = diti("encode", data / place, "-o", out, "--model", tmp_path / "model", "--device", "cpu")
        assert result.exit_code == 0, result.output
        side = json.loads(out.with_suffix(".json").read_text())
        assert side["files"] == ["000001.jpg", "000002.jpg", "000003.jpg"]
        assert side["preprocessing"]["crop"] == "celeba"
        assert side["inputs"] == "3 images: 178x218 -> CelebA's crop -> 16 px."
        assert side["inputs"] in result.stderr
        features[place] = np.load(out)
    np.testing.assert_array_equal(features["lmdb"], features["celeba.tar"])
    np.testing.assert_array_equal(features["lmdb"], features["folder"])
    out = tmp_path / "center.npy"
    result = diti("encode", data / "lmdb", "-o", out, "--model", tmp_path / "model", "--crop", "center")
    assert result.exit_code == 0, result.output
    assert json.loads(out.with_suffix(".json").read_text())["preprocessing"]["crop"] == "center"
    assert (np.load(out) != features["lmdb"]).any()


def test_training_on_celebas_lmdb_keeps_its_crop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [
        "--resolution",
        "16",
        "--chunks",
        "4",
        "--partition",
        "uniform",
        "--latent-dim",
        "16",
        "--base-images",
        "8",
        "--images",
        "8",
    ]
    tiny += ["--batch-size", "4", "--device", "cpu", "--precision", "fp32", "--set", "sample_every=0"]
    tiny += ["--set", "unet.channels=8,16", "--set", "unet.norm_groups=4", "--set", "encoder.widths=32,32"]
    result = diti("train", "--data", data / "lmdb", *tiny)
    assert result.exit_code == 0, result.output
    run = tmp_path / "runs" / "lmdb-faces32"
    assert json.loads((run / "config.json").read_text())["config"]["data"]["crop"] == "celeba"
    assert json.loads((run / "model" / "model_index.json").read_text())["crop"] == "celeba"
    strip = tmp_path / "edit.png"
    pictures = [data / "folder" / f"00000{i}.jpg" for i in (1, 2)]
    result = diti("edit", *pictures, "-o", strip, "--steps", "2", "--separate", tmp_path / "singles", "--device", "cpu")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "singles" / "a_original.png") as original:
        assert (np.asarray(original) == RED).all()
