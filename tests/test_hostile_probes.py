"""Probes and directions whose numbers could not be right are refused with the reason."""

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from diticli.chunks import ChunkLayout
from diticli.errors import FeatureFileError
from diticli.probing.directions import read_parts, write_parts
from diticli.probing.linear_probe import LinearProbe, load_probe, save_probe


def linear(**changes):
    parts = {
        "weights": np.ones((2, 4), np.float32),
        "bias": np.zeros(2, np.float32),
        "mean": np.zeros(4, np.float32),
        "std": np.ones(4, np.float32),
        "names": ("hat", "age"),
        "kinds": ("binary", "number"),
        "classes": ("", ""),
    }
    return LinearProbe(**parts | changes)


@pytest.fixture
def folder(tmp_path):
    layout = ChunkLayout.uniform(chunks=2, latent_dim=4)
    patterns = np.ones((2, 4), np.float32)
    write_parts(
        tmp_path, full=linear(), masked=linear(), chosen={"hat": (0, 2)}, patterns=patterns, layout=layout, model="m"
    )
    save_probe(linear(), tmp_path / "probe.safetensors")
    return tmp_path


def edit(folder, tensors=None, **facts):
    """Change tensors and facts; the checksum fits."""
    data = (folder / "directions.safetensors").read_bytes()
    if tensors:
        data = save(load_file(folder / "directions.safetensors") | tensors)
        (folder / "directions.safetensors").write_bytes(data)
    known = json.loads((folder / "directions.json").read_text())
    known |= facts | {"tensors_sha256": hashlib.sha256(data).hexdigest()}
    (folder / "directions.json").write_text(json.dumps(known))


@pytest.mark.parametrize("key", ["weights", "bias", "mean", "std", "masked_weights", "patterns"])
@pytest.mark.parametrize("kind", ["nan", "infinite", "whole"])
def test_numbers_of_directions_are_finite_floats(folder, key, kind):
    array = load_file(folder / "directions.safetensors")[key].copy()
    if kind == "whole":
        array = array.astype(np.int32)
    else:
        array.flat[0] = {"nan": np.nan, "infinite": np.inf}[kind]
    edit(folder, {key: array})
    with pytest.raises(FeatureFileError, match=r"finite|not float32") as caught:
        read_parts(folder)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"chosen_dims": {"hat": [0, 4]}}, "do not rise within 0 to 3"),
        ({"chosen_dims": {"hat": [-1]}}, "do not rise within"),
        ({"chosen_dims": {"hat": [2, 1]}}, "do not rise within"),
        ({"chosen_dims": {"hat": [1.0]}}, "no whole numbers"),
        ({"chosen_dims": {"hat": 3}}, "not iterable"),
        ({"chosen_dims": [1]}, "attribute 'items'"),
        ({"chunks": {"ends": [4, 2], "timestep_ends": [500, 1000]}}, "not strictly increasing"),
        ({"chunks": {"ends": [2, 8], "timestep_ends": [500, 1000]}}, "of 8 dimensions, the weights of 4"),
        ({"chunks": float("nan")}, "NaN is no value of JSON"),
        ({"rows": [{"attribute": "hat", "kind": "odd", "class": ""}] * 2}, "no attributes of kind 'odd'"),
        ({"rows": []}, "do not fit together"),
        ({"rows": "x" * 100_000}, "indices"),
    ],
)
def test_facts_of_directions_are_possible(folder, facts, reason):
    edit(folder, **facts)
    with pytest.raises(FeatureFileError, match=reason) as caught:
        read_parts(folder)
    assert len(str(caught.value)) < 600


def test_whole_directions_come_back(folder):
    parts = read_parts(folder)
    assert parts["chosen"] == {"hat": (0, 2)}
    assert load_probe(folder / "probe.safetensors").names == ("hat", "age")


@pytest.mark.parametrize(
    ("tensors", "meta", "reason"),
    [
        ({"weights": np.full((2, 4), np.nan, np.float32)}, {}, "not finite"),
        ({"weights": np.ones((2, 4), np.int64)}, {}, "int64, not float32"),
        ({"std": np.zeros(4, np.float32)}, {}, "do not fit together"),
        ({"mean": np.zeros((1, 4), np.float32)}, {}, "do not fit together"),
        ({}, {"kinds": ["odd", "odd"]}, "kind 'odd'"),
        ({}, {"names": 3}, "not iterable"),
        ({}, [1], "list indices"),
        ({}, "[" * 100_000, "recursion"),
    ],
)
def test_probes_are_possible(tmp_path, tensors, meta, reason):
    good = linear()
    arrays = {key: getattr(good, key) for key in ("weights", "bias", "mean", "std")} | tensors
    facts = {"names": ["hat", "age"], "kinds": ["binary", "number"], "classes": ["", ""], "model_hash": ""}
    text = meta if isinstance(meta, str) else json.dumps(facts | meta if isinstance(meta, dict) else meta)
    save_file(arrays, tmp_path / "probe.safetensors", metadata={"diti_probe": text})
    with pytest.raises(FeatureFileError, match=reason) as caught:
        load_probe(tmp_path / "probe.safetensors")
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["probe.safetensors", "directions.json", "directions.safetensors"])
def test_named_pipes_are_not_opened(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(FeatureFileError, match="not a regular file"):
        load_probe(folder / name) if name.startswith("probe") else read_parts(folder)
