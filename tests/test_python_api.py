"""What Python users expect: callable pipelines, paths and arrays as inputs, features as a frame, named errors."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import SIZE

import diticli
import diticli.features.read
from diticli.errors import ConfigError, FeatureFileError, UnreadableImageError


@pytest.fixture
def pipe(make_pipeline):
    return make_pipeline()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(256, size=(40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_paths_pictures_and_calls_give_the_same_features(pipe, photo):
    with Image.open(photo) as image:
        expected = pipe.encode([image, image])
    assert torch.equal(pipe([photo, str(photo)]), expected)
    assert torch.equal(pipe(str(photo)), pipe.encode(photo))


def test_arrays_are_taken_where_tensors_are(pipe):
    x = torch.empty(2, 3, SIZE, SIZE).uniform_(-1, 1)
    z = pipe.encode(x)
    assert torch.equal(pipe.encode(x.numpy()), z)
    x_T = pipe.invert(x, z, steps=2)
    assert torch.equal(pipe.invert(x.numpy(), z.numpy(), steps=2), x_T)
    assert torch.equal(pipe.decode(x_T.numpy(), z.numpy(), steps=2), pipe.decode(x_T, z, steps=2))


@pytest.mark.parametrize("images", [3, [3], [None], np.array([None], dtype=object), {1.5}])
def test_what_is_no_picture_is_named(pipe, images):
    with pytest.raises(ConfigError, match="is no picture"):
        pipe.encode(images)


def test_a_path_without_a_picture_is_named(pipe, tmp_path):
    with pytest.raises(UnreadableImageError, match=r"gone\.png"):
        pipe.encode(str(tmp_path / "gone.png"))


@pytest.fixture
def features(tmp_path: Path) -> Path:
    np.save(tmp_path / "feats.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
    (tmp_path / "feats.json").write_text(diticli.features.read.FeatureMeta(files=("a.png", "b.png", "c.png")).to_json())
    return tmp_path / "feats.npy"


def test_features_and_labels_as_one_frame(features, tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "labels.csv").write_text("file,smile,age\nc.png,1,30\na.png,0,2.5\n")
    loaded = diticli.load_features(str(features))
    assert loaded.names == ("a.png", "b.png", "c.png")
    assert loaded.to_frame().loc["b.png"].tolist() == [2, 3]
    frame = loaded.to_frame(labels=tmp_path / "labels.csv")
    assert list(frame.columns) == ["z0", "z1", "smile", "age"]
    assert frame.loc["c.png"].tolist() == [4, 5, 1, 30]
    assert frame.loc["a.png"].tolist() == [0, 1, 0, 2.5]


def test_a_frame_without_names_or_pandas(features, tmp_path, monkeypatch):
    (tmp_path / "feats.json").unlink()
    bare = diticli.load_features(features)
    with pytest.raises(FeatureFileError, match="no file names"):
        bare.to_frame(labels=tmp_path / "labels.csv")

    imported = builtins.__import__

    def without_pandas(name, *others, **more):
        if name == "pandas":
            raise ImportError(name)
        return imported(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(FeatureFileError, match="needs pandas"):
        bare.to_frame()


@pytest.mark.parametrize("z", ["a", ["a"], np.array([None]), torch.zeros(3), np.zeros((2, 7))])
def test_what_are_no_features_is_named(pipe, z):
    x = torch.empty(2, 3, SIZE, SIZE).uniform_(-1, 1)
    for call in (pipe.invert, pipe.decode):
        with pytest.raises(ConfigError, match="Features"):
            call(x, z, steps=2)


@pytest.mark.parametrize("x_T", ["a", None, torch.zeros(3), [[1.0]]])
def test_what_is_no_noise_is_named(pipe, x_T):
    z = torch.zeros(1, pipe.chunks.latent_dim)
    with pytest.raises(ConfigError, match="Noise"):
        pipe.decode(x_T, z, steps=2)
