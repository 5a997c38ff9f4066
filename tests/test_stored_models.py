"""A run that an earlier version trained is read, and computes what that version computed.

`data/stored_run` was trained by commit 0c98ef0 (diffusers 0.42.1) for 8 steps a stage on 16 cartoon faces;
`expected.safetensors` is what that commit computed from it on a CPU in float32.
"""

import json
import operator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file

from diticli.models.base_files import load_base
from diticli.models.load import load_model, load_pipeline
from diticli.models.unet_forward import estimate_noise

FOLDER = Path(__file__).parent / "data" / "stored_run"
MODEL = FOLDER / "run" / "model"
HASHES = ("3f319cc87bf67f30", "v2-c7ed1934573909d2")
"""`model_hash` as earlier versions recorded it."""


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module", params=[load_model, load_pipeline])
def model(request):
    return request.param(str(FOLDER / "run"), "cpu")


def close(found, expected):
    """Up to rounding in 20 steps: convolutions by Winograd's algorithm differ by 1e-5 each."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=3e-4)


def test_a_stored_model_computes_what_it_computed(model, expected):
    x, t, z = (expected[name] for name in ("x", "t", "z"))
    close(model.encode(x), z)
    for found, name in zip(model.predict(x, t, z), ("noise", "shift"), strict=True):
        close(found, expected[name])
        assert found.abs().max() > 1e-3
    close(model.invert(x, z, 20, precision="fp32"), expected["x_T"])
    close(model.decode(expected["x_T"], z, 20, precision="fp32"), expected["back"])


def test_a_stored_model_is_known_by_its_recorded_hashes(model):
    assert [model.hash_like(recorded) for recorded in HASHES] == [*HASHES]
    assert (model.resolution, model.crop, model.config.shift_form) == (16, "center", "score")
    assert (model.chunks.ends, model.chunks.timestep_ends) == ((2, 4, 6, 8), (250, 500, 750, 1000))


def test_a_stored_model_is_saved_as_it_is_stored(tmp_path):
    load_pipeline(str(FOLDER / "run"), "cpu").save_pretrained(tmp_path)
    files = [path.relative_to(MODEL) for path in MODEL.rglob("*.*")]
    assert {*files} == {path.relative_to(tmp_path) for path in tmp_path.rglob("*.*")}
    for file in files:
        saved, before = read(tmp_path / file), read(MODEL / file)
        assert saved.keys() == before.keys()
        for name in before:
            same = torch.equal if isinstance(before[name], torch.Tensor) else operator.eq
            assert same(saved[name], before[name]), (file, name)


def read(path):
    """Weights, or settings without what names a version or a place."""
    if path.suffix == ".safetensors":
        return load_file(path)
    entries = json.loads(path.read_bytes())
    return {key: entries[key] for key in entries.keys() - {"_diffusers_version", "_name_or_path"}}


def test_a_stored_base_is_a_base(expected):
    unet, scheduler = load_base(str(FOLDER / "run"))
    assert scheduler.config.num_train_timesteps == 1000
    with torch.no_grad():
        close(estimate_noise(unet, expected["x"], expected["t"]), expected["noise"])


def test_stored_parts_are_read_by_diffusers(expected):
    unet = UNet2DModel.from_pretrained(MODEL / "unet")
    with torch.no_grad():
        close(unet(expected["x"], expected["t"]).sample, expected["noise"])
    assert DDIMScheduler.from_pretrained(MODEL / "scheduler").config.beta_end == 0.02
