"""The built-in faces: deterministic, every factor visible, pictures and labels in step."""

import csv
import hashlib
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.data.faces import FACTORS, render_face, sample_factors, write_faces, write_labels_csv
from diticli.data.labels import read_labels
from diticli.errors import ConfigError, DataError

NAMES = [
    "background_hue", "light_direction", "skin", "hair_colour", "face_width", "position_x", "long_hair",
    "hat", "glasses", "smile", "brow_thickness", "freckles", "stripes",
]  # fmt: skip


def middle() -> np.ndarray:
    """A face with every number at a third of its range, no hat, no glasses."""
    third = [f.low + (f.high - f.low) / 3 if f.kind == "number" else 0.0 for f in FACTORS]
    return np.array(third, dtype=np.float32)


class Recorder:
    """A reporter that remembers its calls."""

    def __init__(self) -> None:
        self.total, self.done, self.warnings = 0, 0, []

    def start(self, title, total, unit="images"):
        self.total = total

    def advance(self, amount=1, **fields):
        self.done += amount

    def finish(self):
        pass

    def note(self, message):
        pass

    def warn(self, message):
        self.warnings.append(message)


def test_factors_are_the_thirteen_of_the_design():
    assert [factor.name for factor in FACTORS] == NAMES
    assert [f.name for f in FACTORS if f.kind == "binary"] == ["long_hair", "hat", "glasses"]


def test_a_face_depends_on_seed_and_index_alone():
    together = sample_factors(3, np.arange(20))
    assert together.dtype == np.float32
    np.testing.assert_array_equal(sample_factors(3, [17, 4]), together[[17, 4]])
    assert not np.array_equal(sample_factors(4, [17]), together[[17]])
    np.random.seed(0)
    np.testing.assert_array_equal(sample_factors(3, np.arange(20)), together)


def test_the_stream_is_pinned():
    """Published numbers refer to these very faces: a change here must be a decision."""
    digest = hashlib.sha256(sample_factors(0, np.arange(50)).tobytes()).hexdigest()
    assert digest == "7ffba70da4a8866d1f2f1ea43db7002004bfcfb7c07217dfd2effb012d11b052"


def test_factors_are_uniform_fair_and_independent():
    values = sample_factors(0, np.arange(4000))
    for column, factor in zip(values.T, FACTORS, strict=True):
        assert factor.low <= column.min() <= column.max() <= factor.high + 1e-6
        middle_of_range = (factor.low + factor.high) / 2
        assert abs(column.mean() - middle_of_range) < 0.05 * (factor.high - factor.low)
        if factor.kind == "binary":
            assert set(np.unique(column)) == {0.0, 1.0}
    correlation = np.corrcoef(values.T) - np.eye(len(FACTORS))
    assert np.abs(correlation).max() < 0.07


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("row", range(13), ids=NAMES)
def test_every_factor_is_visible_when_varied_alone(row, size):
    low, high = middle(), middle()
    low[row], high[row] = FACTORS[row].low, FACTORS[row].high
    change = np.abs(render_face(low, size).astype(int) - render_face(high, size)).max(axis=2)
    assert (change > 20).mean() > 0.004


@pytest.mark.parametrize("row", [i for i, f in enumerate(FACTORS) if f.kind == "number"])
def test_a_number_changes_the_picture_gradually(row):
    pictures = []
    for u in np.linspace(0, 1, 9):
        face = middle()
        face[row] = FACTORS[row].low + u * (FACTORS[row].high - FACTORS[row].low)
        pictures.append(render_face(face, 64).astype(int))
    assert all((a != b).any() for a, b in pairwise(pictures))


def test_light_comes_from_the_named_side():
    face = middle()
    face[1] = 1.0
    picture = render_face(face, 32).astype(float).mean(axis=(0, 2))
    assert picture[-4:].mean() > 1.5 * picture[:4].mean()


def test_no_colour_clips_so_that_factors_stay_readable():
    pictures = np.stack([render_face(f, 32) for f in sample_factors(1, np.arange(200))])
    assert (pictures == 255).mean() < 1e-3


@pytest.mark.parametrize("size", [16, 17, 100, 512])
def test_any_size_shows_the_same_face(size):
    small = render_face(middle(), size)
    assert small.shape == (size, size, 3)
    assert small.dtype == np.uint8
    reference = Image.fromarray(render_face(middle(), 128)).resize((size, size), Image.Resampling.BOX)
    assert np.abs(small.astype(int) - np.asarray(reference)).mean() < 8


@pytest.mark.parametrize(("factors", "size"), [(np.zeros(12), 32), (np.zeros(13), 15), (np.zeros(13), 513)])
def test_impossible_pictures_are_refused(factors, size):
    with pytest.raises(ConfigError):
        render_face(factors, size)


@pytest.mark.parametrize(("seed", "indices"), [(-1, [0]), (2**64, [0]), (0, [-1])])
def test_impossible_faces_are_refused(seed, indices):
    with pytest.raises(ConfigError):
        sample_factors(seed, indices)


def test_written_faces_and_labels_agree(tmp_path):
    recorder = Recorder()
    labels = write_faces(tmp_path / "new" / "faces", 5, 32, seed=2, start=7, reporter=recorder)
    assert (recorder.total, recorder.done) == (5, 5)
    assert sorted(p.name for p in labels.parent.iterdir()) == [
        "000007.png", "000008.png", "000009.png", "000010.png", "000011.png", "labels.csv",
    ]  # fmt: skip
    truth = sample_factors(2, np.arange(7, 12))
    table = read_labels(labels)
    for column, factor in zip(truth.T, FACTORS, strict=True):
        assert table.columns[factor.name].kind == factor.kind
        np.testing.assert_array_equal(table.columns[factor.name].values, column)
    picture = np.asarray(Image.open(labels.parent / table.files[3]))
    np.testing.assert_array_equal(picture, render_face(truth[3], 32))


def test_labels_csv_writes_binaries_as_whole_numbers(tmp_path):
    write_labels_csv(tmp_path / "labels.csv", 0, range(3))
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == ["000000.png", "000001.png", "000002.png"]
    assert {row["hat"] for row in rows} <= {"0", "1"}


def test_a_folder_of_our_faces_is_rewritten_without_leftovers(tmp_path):
    write_faces(tmp_path, 6, 16)
    write_faces(tmp_path, 2, 16)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000.png", "000001.png", "labels.csv"]


@pytest.mark.parametrize("names", [["photo.jpg"], ["000000.png"], ["labels.csv"]])
def test_other_peoples_files_are_never_touched(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match="not empty") as caught:
        write_faces(tmp_path, 2, 16)
    assert "--overwrite" in caught.value.remedy
    assert all((tmp_path / name).read_text() == "precious" for name in names)


def test_overwrite_writes_beside_other_files(tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    write_faces(tmp_path, 1, 16, overwrite=True)
    assert (tmp_path / "photo.jpg").read_text() == "precious"
    assert (tmp_path / "000000.png").exists()


def test_an_added_file_protects_a_folder_of_faces(tmp_path):
    write_faces(tmp_path, 2, 16)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        write_faces(tmp_path, 2, 16)


@pytest.mark.parametrize("request_", [{"count": 0}, {"size": 8}, {"size": 1024}, {"seed": -1}, {"start": -5}], ids=str)
def test_impossible_requests_write_nothing(tmp_path, request_):
    with pytest.raises(ConfigError):
        write_faces(tmp_path / "out", **({"count": 1, "size": 16} | request_))
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="is a file"):
        write_faces(tmp_path / "out", 1, 16)
    with pytest.raises(DataError, match="Cannot write"):
        write_faces(tmp_path / "out" / "deeper", 1, 16)


def test_the_folder_is_named_as_in_other_commands_too(tmp_path):
    written = CliRunner().invoke(app, ["faces", "-o", str(tmp_path / "a"), "-n", "2", "--size", "16", "--json"])
    assert json.loads(written.stdout)["out"] == str(tmp_path / "a")
    assert (tmp_path / "a" / "000001.png").exists()
    for arguments in ([], [str(tmp_path / "b"), "-o", str(tmp_path / "c")]):
        refused = CliRunner().invoke(app, ["faces", *arguments, "-n", "2"])
        assert refused.exit_code == 2
        assert "diti faces -o OUT" in refused.stderr
