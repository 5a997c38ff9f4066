"""Photographs: no person whom training sees is probed, and the models differ in the method alone."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.experiments.real_data import MODELS, celeba, lfw, settings
from diticli.data.images import open_images
from diticli.data.labels import read_groups, read_parts
from diticli.settings import build_config

OPTIONS = argparse.Namespace(preset="faces32", images=0, device="cpu", seed=3, set=[])


def write_pictures(folder, names):
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 255, (109, 89, 3), dtype=np.uint8)).save(folder / "images" / name)


@pytest.fixture
def people(tmp_path):
    """40 pictures of 20 people, in CelebA's layout."""
    folder = tmp_path / "celeba"
    names = [f"{i:06}.jpg" for i in range(1, 41)]
    write_pictures(folder, names)
    (folder / "identity_CelebA.txt").write_text("".join(f"{n} {i // 2}\n" for i, n in enumerate(names)))
    return folder


def test_training_sees_no_person_of_the_test(people, tmp_path):
    found, seen = celeba(people, tmp_path)
    parts, person = read_parts(found.split), read_groups(found.groups)
    trained = [Path(line).name for line in seen.read_text().split()]
    tested = {person[name] for name, part in parts.items() if part == "test"}
    assert len(parts) == 40
    assert len(tested) == 3
    assert sorted(trained) == sorted(name for name in parts if person[name] not in tested)
    assert len(open_images((f"@{seen}",), 32, crop="celeba")) == len(trained) == 34


def test_people_of_lfw_are_told_by_their_file_names(tmp_path):
    write_pictures(tmp_path / "lfw", ["Ana_Guevara_0001.jpg", "Ana_Guevara_0002.jpg", "Al_Gore_0001.jpg"])
    assert read_groups(lfw(tmp_path / "lfw", tmp_path).groups) == {
        "Ana_Guevara_0001.jpg": "Ana_Guevara",
        "Ana_Guevara_0002.jpg": "Ana_Guevara",
        "Al_Gore_0001.jpg": "Al_Gore",
    }


@pytest.mark.parametrize("model", MODELS)
def test_models_differ_in_the_method_alone(model, tmp_path):
    preset = build_config("faces32")
    config = settings(model, tmp_path / "seen.txt", tmp_path / "base", OPTIONS)
    assert (config.features, config.encoder, config.unet) == (preset.features, preset.encoder, preset.unet)
    assert config.base_model == str(tmp_path / "base")
    assert config.data.source == f"@{tmp_path / 'seen.txt'}"
    assert config.chunks.count == (1 if model == "pdae" else 64)
    assert config.chunks.visible == ("all" if model == "modular" else preset.chunks.visible)


def test_the_first_model_makes_the_base_within_the_given_budget(tmp_path):
    options = argparse.Namespace(**vars(OPTIONS) | {"images": 640, "set": ["base.batch_size=16"]})
    config = settings("diti", tmp_path / "seen.txt", None, options)
    assert (config.base_model, config.base.batch_size, config.features.images) == ("", 16, 640)
