"""What diti wrote is never data; what is left out of a folder is counted and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from diticli.data.faces import write_faces
from diticli.data.images import open_images
from diticli.data.listing import list_images
from diticli.data.own_files import is_own_picture
from diticli.errors import DataError
from diticli.pictures.animation import save_animation
from diticli.pictures.charts import save_chart
from diticli.pictures.grids import save_png
from diticli.progress import SilentReporter

PICTURE = Image.effect_noise((40, 40), 60).convert("RGB")


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


def write_run(folder: Path, config: object = None) -> None:
    """A run directory; its pictures carry no mark, like those of earlier versions."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config or {"config": {}, "data": {}, "versions": {}}))
    PICTURE.save(folder / "samples" / "base-000010.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    write_faces(folder, 3, 32)
    return folder


def names(source: Path, **options: object) -> list[str]:
    images = open_images(str(source), 16, **options)
    return [images.file_name(index) for index in range(len(images))]


FACES = ["000000.png", "000001.png", "000002.png"]


def test_runs_strips_charts_and_animations_are_no_data(photos: Path) -> None:
    before = open_images(str(photos), 16).fingerprint()
    write_run(photos / "runs" / "photos-faces32")
    save_png(PICTURE, photos / "edit.png", {"diti:images": "a | b"})
    save_png(PICTURE, photos / "samples" / "grid.png")
    save_chart(photos / "probe" / "bars.png", lambda axes: None, (2, 2))
    save_animation([PICTURE, PICTURE], photos / "sweep.gif", {"diti:model": "m"})
    save_animation([PICTURE, PICTURE], photos / "sweep.webp")
    warnings = Warnings()
    assert names(photos, reporter=warnings) == FACES
    assert open_images(str(photos), 16).fingerprint() == before
    assert len(warnings.lines) == 1
    assert "1 run directory" in warnings.lines[0]
    assert "5 pictures written by diti" in warnings.lines[0]


def test_strips_of_earlier_versions_are_known_by_their_keys(photos: Path) -> None:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text("diti:command", "diti edit")
    PICTURE.save(photos / "old.png", pnginfo=info)
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "other 1.0")
    PICTURE.save(photos / "other.png", pnginfo=info)
    assert names(photos) == [*FACES, "other.png"]


def test_a_picture_of_its_own_is_read_when_it_is_named(photos: Path) -> None:
    path = save_png(PICTURE, photos / "edit.png")
    assert is_own_picture(str(path))
    assert names(path) == ["edit.png"]


def test_a_folder_of_nothing_but_its_own_pictures_says_so(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    with pytest.raises(DataError, match="1 run directory"):
        open_images(str(run), 16)
    save_png(PICTURE, tmp_path / "strips" / "1.png")
    with pytest.raises(DataError, match="1 picture written by diti") as caught:
        open_images(str(tmp_path / "strips"), 16)
    assert "name such a picture itself" in caught.value.remedy


@pytest.mark.parametrize("config", [{"name": "a dataset with samples"}, [1], "text"])
def test_other_folders_with_a_config_and_samples_are_data(tmp_path: Path, config: object) -> None:
    write_run(tmp_path / "set", config)
    assert names(tmp_path / "set") == ["samples/base-000010.png"]


def test_pictures_of_any_suffix_are_read_and_others_are_named(tmp_path: Path) -> None:
    read = {"jfif": "JPEG", "jpe": "JPEG", "JPG": "JPEG", "gif": "GIF", "ppm": "PPM", "pgm": "PPM", "dib": "DIB"}
    for suffix, form in read.items():
        PICTURE.save(tmp_path / f"a.{suffix}", format=form)
    for name in ("b.heic", "c.HEIC", "d.dcm", "e.txt", ".f.heic"):
        (tmp_path / name).write_bytes(b"x")
    warnings = Warnings()
    source = open_images(str(tmp_path), 16, reporter=warnings)
    assert sorted(source.file_name(i) for i in range(len(source))) == sorted(f"a.{suffix}" for suffix in read)
    assert all(source.load(i).std() > 10 for i in range(len(source)))
    assert list_images(tmp_path).others == {".heic": 2, ".dcm": 1}
    assert warnings.lines == [f"Left out of {tmp_path}: 3 files of other formats (1 .dcm, 2 .heic)."]


def test_avif_is_read_where_pillow_can(tmp_path: Path) -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    PICTURE.save(tmp_path / "a.avif", quality=95)
    assert open_images(str(tmp_path), 16).load(0).std() > 10


def test_an_archive_of_images_gets_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    archive = tmp_path / "set" / "my photos.zip"
    archive.write_bytes(b"PK\3\4")
    for named in (archive, archive.parent):
        with pytest.raises(DataError, match="archive") as caught:
            open_images(str(named), 16)
        assert "unzip 'my photos.zip' -d 'my photos'" in caught.value.remedy
