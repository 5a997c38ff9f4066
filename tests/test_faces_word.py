"""The word `faces`: one grammar and one precedence for data and for edits, said where a file has the same name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diticli.commands.train import _run_name
from diticli.comparison.settings import CompareSettings
from diticli.data.faces import render_face, sample_factors
from diticli.data.faces_word import FacesWord, faces_beside, is_faces, parse_faces
from diticli.data.images import FaceImages, open_images
from diticli.editing.inputs import check_source, read_source, source_digest
from diticli.editing.many_files import _absolute
from diticli.errors import ConfigError
from diticli.progress import SilentReporter


class Warnings(SilentReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("faces", FacesWord()),
        ("faces:3", FacesWord(number=3)),
        ("faces:3:0", FacesWord(number=3, seed=0)),
        *(
            (text, None)
            for text in ("faces:", "faces:x", "faces:1:2:3", "faces:-1", "faces:\u0663", "./faces", "Faces")
        ),
    ],
)
def test_grammar(source: str, word: FacesWord | None) -> None:
    assert parse_faces(source) == word
    assert is_faces(source) == source.startswith("faces")


def test_data_named_faces_is_built_in_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "faces" / "photo.png")
    monkeypatch.chdir(tmp_path)
    warnings = Warnings()
    assert isinstance(open_images("faces", 16, reporter=warnings), FaceImages)
    assert warnings.lines == ["'faces' means the built-in faces; write ./faces for what is here under that name."]
    assert open_images("faces:7", 16, reporter=warnings) is not None
    assert open_images("./faces", 16, reporter=warnings).file_name(0) == "photo.png"
    assert len(warnings.lines) == 1


def test_an_edit_takes_the_same_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "faces:3", format="PNG")
    monkeypatch.chdir(tmp_path)
    warnings = Warnings()
    check_source("faces:3", warnings)
    assert warnings.lines == [faces_beside("faces:3")]
    drawn = render_face(sample_factors(5, [3])[0], 16)
    np.testing.assert_array_equal(np.asarray(read_source("faces:3", 16, "center", seed=5)), drawn)
    np.testing.assert_array_equal(np.asarray(read_source("faces:3:5", 16, "center")), drawn)
    assert source_digest("faces:3", seed=5) == source_digest("faces:3:5")
    assert np.asarray(read_source("./faces:3", 16, "center")).reshape(-1, 3)[0].tolist() == [255, 0, 0]


def test_seed_zero_is_a_seed() -> None:
    drawn = render_face(sample_factors(0, [3])[0], 16)
    np.testing.assert_array_equal(np.asarray(read_source("faces:3:0", 16, "center", seed=5)), drawn)


def test_faces_without_a_number_is_no_image_even_where_a_file_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "faces", format="PNG")
    monkeypatch.chdir(tmp_path)
    for source in ("faces", "faces:x"):
        with pytest.raises(ConfigError) as caught:
            check_source(source)
        assert f"./{source}" in caught.value.remedy


def test_all_others_ask_the_same_parser() -> None:
    assert CompareSettings(data=("faces:9:2",)).built_in
    assert not CompareSettings(data=("./faces",), labels="folder").built_in
    assert _absolute("faces:3") == "faces:3"
    assert _absolute("faces.png") == str(Path("faces.png").absolute())
    assert _run_name("faces:100") == "faces"
