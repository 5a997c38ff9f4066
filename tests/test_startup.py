"""Models read and run without diffusers: the same numbers, and none of what takes long to import."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_models import LATENT_DIM, SIZE, UNET_SHAPES, tiny_unet_config

from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.heads import restore_heads
from diticli.models.locate import load_model
from diticli.models.pipeline import DiTiPipeline
from diticli.models.plain_model import WEIGHTS, PlainModel, load_plain
from diticli.models.plain_unet import DEFAULTS, PlainUNet
from diticli.models.unet import estimate_noise

# Each takes a tenth of a second to some seconds; diffusers alone brings most of the others along.
HEAVY = (
    *("diffusers", "transformers", "accelerate", "xformers", "huggingface_hub", "torch._dynamo", "torch._inductor"),
    *("sympy", "scipy", "sklearn", "matplotlib", "pandas", "tensorboard", "triton"),
)
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from diticli.commands.app import app
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.output, result.exception)
print(json.dumps(list(sys.modules)))
"""


@pytest.fixture
def saved(make_pipeline, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def images(count=3):
    return torch.empty(count, 3, SIZE, SIZE).uniform_(-1, 1)


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_edit_and_encode_import_nothing_heavy(saved, tmp_path):
    model = ["--model", str(saved), "--device", "cpu"]
    commands = [
        ["edit", "faces:3", "faces:8", *model, "--steps", "1", "-o", str(tmp_path / "edit.png")],
        ["encode", "faces:4", *model, "-o", str(tmp_path / "feats.npy")],
    ]
    code = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {*json.loads(done.stdout)} & {*HEAVY} == set()


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_plain_modules_are_those_of_diffusers(shape):
    """Same parameters under the same names in the same order, from the same random draws."""
    config = tiny_unet_config(**UNET_SHAPES[shape])
    drawn = []
    for kind in (lambda: UNet2DModel(**config), lambda: PlainUNet(config)):
        torch.manual_seed(0)
        drawn.append(kind())
    theirs, ours = (unet.state_dict() for unet in drawn)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [n for n, _ in drawn[0].named_parameters()] == [n for n, _ in drawn[1].named_parameters()]
    t = torch.arange(0, 1000, 37)
    assert torch.equal(drawn[1].time_proj(t), drawn[0].time_proj(t))


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_plain_modules_compute_what_diffusers_computes(make_unet, shape):
    theirs = make_unet(shape)
    ours = PlainUNet(theirs.config)
    ours.load_state_dict(theirs.state_dict())
    side, t = theirs.config.sample_size, torch.tensor([3, 700])
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(estimate_noise(ours.eval(), x, t), theirs(x, t).sample)


def test_settings_are_those_of_diffusers():
    arguments = inspect.signature(UNet2DModel.__init__).parameters.values()
    assert {a.name: a.default for a in arguments if a.name != "self"} == DEFAULTS
    with pytest.raises(ValueError, match=r"no settings \['fir'\]"):
        PlainUNet({"fir": 1})
    with pytest.raises(ValueError, match=r"no blocks \['SkipDownBlock2D'\]"):
        PlainUNet({"down_block_types": ["SkipDownBlock2D"] * 4})


def test_heads_by_number():
    config = tiny_unet_config(attention_head_dim=8) | {"attention_heads": 2}
    unet = restore_heads(PlainUNet(config))
    assert {m.heads for m in unet.modules() if hasattr(m, "to_q")} == {2}
    with pytest.raises(ModelError, match="3 attention heads do not divide"):
        restore_heads(PlainUNet(config | {"attention_heads": 3}))


def test_a_plain_model_is_the_saved_pipeline(saved, no_network):
    theirs, ours = DiTiPipeline.from_pretrained(saved), load_model(str(saved), "cpu")
    assert isinstance(ours, PlainModel)
    assert (ours.model_hash, ours.model_id) == (theirs.model_hash, theirs.model_id)
    assert (ours.chunks, ours.resolution, ours.crop) == (theirs.chunks, theirs.resolution, theirs.crop)
    assert ours.config.shift_form == theirs.config.shift_form
    assert torch.equal(ours.schedule.alphas_cumprod, theirs.schedule.alphas_cumprod)
    x, t = images(), torch.tensor([3, 400, 990])
    z = theirs.encode(x)
    assert torch.equal(ours.encode(x), z)
    for mine, other in zip(ours.predict(x, t, z), theirs.predict(x, t, z), strict=True):
        assert torch.equal(mine, other)
    noise = theirs.invert(x, z, steps=3)
    assert torch.equal(ours.invert(x, z, steps=3), noise)
    assert torch.equal(ours.decode(noise, z, steps=3), theirs.decode(noise, z, steps=3))
    encoders = (BatchEncoder(model.encoder, "bf16") for model in (ours, theirs))
    pixels = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8)
    assert torch.equal(*(encode(pixels) for encode in encoders))
    assert not any(module.training for module in ours.networks.values())


def test_a_run_directory_and_an_encoder_alone(make_pipeline, tmp_path, no_network):
    pipeline = make_pipeline(unet=None, shift_decoder=None)
    pipeline.save_pretrained(tmp_path / "run" / "model")
    model = load_plain(str(tmp_path / "run"))
    assert set(model.networks) == {"encoder"}
    assert model.model_hash == pipeline.model_hash
    with pytest.raises(ModelError, match="encoder alone"):
        model.predict(images(1), torch.tensor([3]), torch.zeros(1, LATENT_DIM))


def bfloat(folder):
    weights = {name: value.bfloat16() for name, value in load_file(folder / "unet" / WEIGHTS).items()}
    save_file(weights, folder / "unet" / WEIGHTS, metadata={"format": "pt"})


def in_parts(folder):
    unet = UNet2DModel.from_pretrained(folder / "unet")
    (folder / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="8KB")


LEFT_TO_DIFFUSERS = {
    "bfloat16 weights": bfloat,
    "weights in several files": in_parts,
    "another schedule": lambda f: change(f / "scheduler" / "scheduler_config.json", beta_schedule="scaled_linear"),
    "a setting of tomorrow's diffusers": lambda f: change(f / "unet" / "config.json", sharpness=None),
}


@pytest.mark.parametrize("difference", LEFT_TO_DIFFUSERS)
def test_what_is_not_known_is_left_to_diffusers(saved, no_network, caplog, difference):
    LEFT_TO_DIFFUSERS[difference](saved)
    assert load_plain(str(saved)) is None
    assert "diffusers reads this model, which takes some seconds more: " in caplog.text
    model = load_model(str(saved), "cpu")
    assert isinstance(model, DiTiPipeline)
    x, t = images(), torch.tensor([3, 400, 990])
    with torch.no_grad():
        encoder = SemanticEncoder.from_pretrained(saved / "encoder")
        torch.testing.assert_close(model.encode(x), encoder.eval()(x))
        truth = UNet2DModel.from_pretrained(saved / "unet")(x, t).sample
    torch.testing.assert_close(model.predict(x, t, model.encode(x)).noise, truth, rtol=1e-4, atol=1e-5)
    bar = DDIMScheduler.from_pretrained(saved / "scheduler").alphas_cumprod
    torch.testing.assert_close(model.schedule.alphas_cumprod, bar)


def test_what_is_wrong_is_said_as_ever(saved, no_network):
    (saved / "encoder" / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError, match="Cannot load the model"):
        load_model(str(saved), "cpu")
    with pytest.raises(ModelError, match="holds no model"):
        load_model(str(saved / "unet"), "cpu")
    (saved / "evil.py").write_text("")
    with pytest.raises(ModelError, match="names code outside"):
        load_model(str(saved), "cpu")


def test_wrappers_keep_their_config(tmp_path):
    encoder = SemanticEncoder(SIZE, 3, (8, 8), LATENT_DIM, 8, 2, 4)
    encoder.save_pretrained(tmp_path)
    assert SemanticEncoder.from_pretrained(tmp_path).config.widths == [8, 8]
    assert encoder.dtype == torch.float32


def test_benchmark_counts_everything_before_editing_as_starting(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    from benchmarks.startup import summary, table

    plain = {"torch": [2.0, 1.0], "model": [1.0, 0.5], "editing": [6.0, 6.0]}
    diffusers = plain | {"diffusers": [3.0, 3.0]}
    found = summary({"plain": [plain] * 6, "diffusers": [diffusers] * 6})
    assert found["wall"]["seconds"]["plain"] == {"torch": 2.0, "model": 1.0, "editing": 6.0, "starting": 3.0}
    assert found["wall"]["ratios"]["starting / editing, plain"].median == 0.5
    assert found["processor"]["ratios"]["starting, diffusers / plain"].median == 3.0
    assert "| starting" in table(found)
