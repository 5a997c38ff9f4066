"""Networks without diffusers: its modules and numbers, its folders, and none of what takes long to import."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from tiny_models import LATENT_DIM, SIZE, UNET_SHAPES, tiny_unet_config

from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import DEFAULTS
from diticli.models.load import load_model
from diticli.models.model import DiTiModel
from diticli.models.model_files import read_model
from diticli.models.modules import SelfAttention
from diticli.models.network import WEIGHTS
from diticli.models.pipeline import DiTiPipeline, unet_from_diffusers, unet_to_diffusers
from diticli.models.unet import UNet
from diticli.models.unet_forward import estimate_noise

# Each takes a tenth of a second to some seconds; diffusers alone brings most of the others along.
HEAVY = (
    *("diffusers", "transformers", "accelerate", "xformers", "huggingface_hub", "torch._dynamo", "torch._inductor"),
    *("sympy", "scipy", "sklearn", "matplotlib", "pandas", "tensorboard", "triton", "pyarrow", "rich"),
)
OTHER_COMMANDS = {f"diticli.commands.{name}" for name in ("train", "probe", "compare", "evaluate", "convert", "demo")}
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


def leave_out(path, *names):
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in entries.items() if key not in names}))


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_edit_and_encode_import_nothing_heavy(saved, tmp_path):
    model = ["--model", str(saved), "--device", "cpu"]
    commands = [
        ["edit", "faces:3", "faces:8", *model, "--steps", "1", "-o", str(tmp_path / "edit.png")],
        ["encode", "faces:4", *model, "-o", str(tmp_path / "feats.npy")],
    ]
    code = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    new = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}  # a machine where nothing was measured yet
    done = subprocess.run(code, capture_output=True, text=True, timeout=300, env=new)
    assert done.returncode == 0, done.stderr
    assert {*json.loads(done.stdout)} & {*HEAVY, *OTHER_COMMANDS} == set()


def test_torch_is_imported_without_the_collector_which_goes_on_afterwards():
    code = """
import gc
from diticli.commands.lazy import import_torch
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
import_torch()
seen, frozen = len(collections), gc.get_freeze_count()
import_torch()  # later calls take nothing more from the collector
print(seen, frozen > 100_000, gc.isenabled(), gc.get_freeze_count() == frozen)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0", "True", "True", "True"]


ENDING = """
import atexit, sys, threading, types
class Module(types.ModuleType):
    def __del__(self):
        print("taken apart")
sys.modules["torch"] = Module("torch") if sys.argv.pop() == "with" else None
if sys.modules["torch"] is None:
    del sys.modules["torch"]
    keep = Module("other")
atexit.register(print, "atexit")
threading.Thread(target=lambda: (threading.main_thread().join(), print("thread"))).start()
from diticli.__main__ import main
main()
"""


def ended(torch: str, *arguments: str, stdout: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """A command whose process has imported something that is named torch, or nothing."""
    code = [sys.executable, "-c", ENDING, *arguments, torch]
    return subprocess.run(code, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


def test_a_command_with_torch_ends_without_taking_its_modules_apart() -> None:
    ends = [ended(torch, "faces", "--help") for torch in ("with", "without")]
    assert [end.returncode for end in ends] == [0, 0], ends
    last = ["thread", "atexit", "taken apart"]
    assert ends[0].stdout.splitlines()[-2:] == last[:2]
    assert ends[1].stdout.splitlines()[-3:] == last
    assert ended("with", "faces", "--nothing").returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_cannot_be_written_at_the_end_is_said_as_ever() -> None:
    with Path("/dev/full").open("w") as full:
        ends = [ended(torch, "faces", "--help", stdout=full) for torch in ("with", "without")]
    assert ends[0].returncode == ends[1].returncode != 0
    assert "No space left" in ends[0].stderr


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_the_modules_are_those_of_diffusers(shape):
    """Same parameters under the same names in the same order, from the same random draws."""
    config = tiny_unet_config(**UNET_SHAPES[shape])
    drawn = []
    for kind in (lambda: UNet2DModel(**config), lambda: UNet(**config)):
        torch.manual_seed(0)
        drawn.append(kind())
    theirs, ours = (unet.state_dict() for unet in drawn)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [n for n, _ in drawn[0].named_parameters()] == [n for n, _ in drawn[1].named_parameters()]
    t = torch.arange(0, 1000, 37)
    assert torch.equal(drawn[1].time_proj(t), drawn[0].time_proj(t))


@pytest.mark.parametrize("shape", UNET_SHAPES)
def test_a_base_of_diffusers_and_ours_hold_the_same_parameters(make_unet, shape):
    theirs = unet_to_diffusers(make_unet(shape))
    ours = unet_from_diffusers(theirs)
    assert ours.config == make_unet(shape).config
    assert all(a is b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    side, t = theirs.config.sample_size, torch.tensor([3, 700])
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(estimate_noise(ours, x, t), theirs(x, t).sample)


def test_a_base_whose_layers_were_changed_is_refused(make_unet):
    theirs = unet_to_diffusers(make_unet())
    theirs.mid_block.attentions[0].fuse_projections()
    with pytest.raises(ModelError, match=r"its layers are not those of its config .*to_qkv"):
        unet_from_diffusers(theirs)


@pytest.mark.parametrize("shape", ["resnet-scale_shift", "without-attention"])
def test_a_saved_base_is_one_of_diffusers_and_the_other_way_round(make_unet, tmp_path, shape):
    unet = make_unet(shape)
    unet.save_pretrained(tmp_path / "ours")
    theirs = UNet2DModel.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    read = [json.loads((tmp_path / name / "config.json").read_bytes()) for name in ("ours", "theirs")]
    assert read[0] == {key: value for key, value in read[1].items() if key != "_name_or_path"}
    for network in (theirs, UNet.from_pretrained(tmp_path / "theirs")):
        assert all(torch.equal(value, unet.state_dict()[name]) for name, value in network.state_dict().items())


def test_a_network_may_be_saved_in_parts_and_variants(make_unet, tmp_path):
    unet = make_unet()
    unet.save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    unet.save_pretrained(tmp_path / "half", variant="fp16")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
    for folder in tmp_path.iterdir():
        assert all(torch.equal(v, unet.state_dict()[n]) for n, v in UNet.from_pretrained(folder).state_dict().items())
    assert UNet2DModel.from_pretrained(tmp_path / "half", variant="fp16").config.sample_size == SIZE


def test_settings_are_those_of_diffusers():
    arguments = inspect.signature(UNet2DModel.__init__).parameters.values()
    assert {a.name: a.default for a in arguments if a.name != "self"} == DEFAULTS
    with pytest.raises(ModelError, match=r"settings that are unknown here \(fir\)"):
        UNet(fir=1)
    with pytest.raises(ModelError, match="its blocks are SkipDownBlock2D"):
        UNet(down_block_types=["SkipDownBlock2D"] * 4)


def test_heads_by_number():
    config = tiny_unet_config(attention_head_dim=8) | {"attention_heads": 2}
    assert {m.heads for m in UNet(**config).modules() if isinstance(m, SelfAttention)} == {2}
    with pytest.raises(ModelError, match="3 attention heads do not divide"):
        UNet(**config | {"attention_heads": 3})


def test_diffusers_may_ignore_the_number_of_heads_without_a_warning(make_pipeline, make_unet, tmp_path, caplog):
    pipeline = make_pipeline(unet=make_unet(attention_heads=2))
    pipeline.save_pretrained(tmp_path)
    caplog.clear()
    found = [DiTiPipeline.from_pretrained(tmp_path), load_model(str(tmp_path), "cpu"), pipeline]
    assert {model.unet.config.attention_heads for model in found} == {2}
    assert len({model.model_hash for model in found}) == 1
    assert "attention_heads" not in caplog.text


def test_a_base_is_one_of_ours_whichever_way_it_comes_in(make_pipeline, make_unet, saved):
    theirs = unet_to_diffusers(make_unet("conv-default"))
    pipeline = make_pipeline()
    pipeline.unet = theirs
    for unet in (theirs, make_unet("conv-default")):
        assert type(DiTiPipeline.from_pretrained(saved, unet=unet).unet) is UNet
    assert type(pipeline.unet) is UNet
    assert next(pipeline.unet.parameters()) is next(theirs.parameters())


def test_a_model_is_the_saved_pipeline(saved, no_network):
    theirs, ours = DiTiPipeline.from_pretrained(saved), load_model(str(saved), "cpu")
    assert type(ours) is DiTiModel
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
    model = read_model(str(tmp_path / "run"))
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


def older_names(folder):
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = load_file(folder / "unet" / WEIGHTS)
    for new, name in old.items():
        weights = {key.replace(new, name): value for key, value in weights.items()}
    save_file(weights, folder / "unet" / WEIGHTS, metadata={"format": "pt"})


DIFFERENCES = {
    "bfloat16 weights": bfloat,
    "weights in several files": in_parts,
    "another schedule": lambda f: change(f / "scheduler" / "scheduler_config.json", beta_schedule="scaled_linear"),
    "a setting of tomorrow's diffusers": lambda f: change(f / "unet" / "config.json", sharpness=None),
    "settings of an older version": lambda f: leave_out(f / "model_index.json", "crop", "shift_form"),
    "names of weights of an older version": older_names,
}
BY_DIFFUSERS = ("another schedule", "names of weights of an older version")


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_files_of_other_versions_are_read(saved, no_network, caplog, difference):
    DIFFERENCES[difference](saved)
    model = load_model(str(saved), "cpu")
    assert type(model) is DiTiModel
    assert (", which takes some seconds more: " in caplog.text) == (difference in BY_DIFFUSERS)
    assert model.model_hash == DiTiPipeline.from_pretrained(saved).model_hash
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


def test_an_encoder_keeps_its_config(tmp_path):
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
