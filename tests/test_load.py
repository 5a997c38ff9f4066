import json
import os
from pathlib import Path

import pytest
import torch

from diticli._version import __version__
from diticli.errors import ConfigError, DeviceError, ModelError
from diticli.models import device as device_module
from diticli.models import hub
from diticli.models.base_files import load_base
from diticli.models.device import resolve_device, resolve_precision
from diticli.models.load import load_model, load_pipeline, locate
from diticli.models.model import DiTiModel

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory and no $DITI_MODEL."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DITI_MODEL", raising=False)
    monkeypatch.setattr(hub, "SHIPPED_FOLDER", tmp_path / "package" / "shipped")
    return tmp_path


@pytest.fixture
def shipped(elsewhere, make_pipeline):
    """A tiny model in half precision, in the place of the shipped one."""
    folder = elsewhere / "package" / "shipped"
    pipeline = make_pipeline()
    for network in pipeline.networks.values():
        network.half()
    pipeline.save_pretrained(folder)
    record = {"config": {"data": {"source": "faces:200000"}}}
    (folder / "training.json").write_text(json.dumps(record))
    return folder


def test_what_a_model_usually_gives_back_is_read_from_its_run_or_its_copy(shipped, make_pipeline):
    make_pipeline().save_pretrained("runs/mine/model")
    run = Path("runs/mine")
    assert locate("runs/mine").usual_psnr is None
    (run / "quality.json").write_text('{"reconstruction_psnr_db": 41.5, "step": 10}')
    (run / "config.json").write_text('{"config": {"data": {"source": "photos"}}}')
    assert (locate("runs/mine").usual_psnr, locate("runs/mine").trained_on) == (41.5, "photos")
    assert locate("someone/model").usual_psnr is None
    record = json.loads((shipped / "training.json").read_text())
    (shipped / "training.json").write_text(json.dumps(record | {"reconstruction_psnr_db": 52}))
    assert (locate("shipped").usual_psnr, locate("shipped").usual_range) == (52.0, None)
    spread = {"least": 50, "lower_quartile": 51, "median": 52, "upper_quartile": 53, "images": 9}
    rates = {"smile": 0.05, "hat": 10**400, "skin": "all"}
    record |= {"reconstruction_psnr_db": spread, "transfer_rates": rates}
    (shipped / "training.json").write_text(json.dumps(record))
    assert (locate("shipped").usual_psnr, locate("shipped").usual_range) == (50.0, (51.0, 53.0, 9))
    model = load_model("shipped", "cpu")
    assert (model.usual_psnr, model.trained_on) == (50.0, "built-in faces")
    assert model.transfer_rates == {"smile": 0.05}


def finish(name, *, age):
    """A finished run under ./runs, `age` seconds old."""
    index = Path("runs", name, "model", "model_index.json")
    index.parent.mkdir(parents=True)
    index.write_text("{}")
    os.utime(index, (1_700_000_000 - age, 1_700_000_000 - age))


def test_what_is_named_wins(monkeypatch):
    finish("demo", age=0)
    monkeypatch.setenv("DITI_MODEL", "from/environment")
    assert locate("someone/model").name == "someone/model"


def test_then_the_environment(monkeypatch):
    finish("demo", age=0)
    monkeypatch.setenv("DITI_MODEL", "from/environment")
    assert locate(None).name == "from/environment"
    monkeypatch.setenv("DITI_MODEL", "")
    assert locate(None).name == "runs/demo"


def test_then_the_newest_finished_run():
    finish("zoo", age=500)
    finish("older", age=1000)
    finish("demo", age=10)
    assert locate(None).name == "runs/demo"
    Path("runs/unfinished/checkpoints/step-1").mkdir(parents=True)
    Path("runs/unfinished/model").mkdir()
    Path("runs/notes.txt").write_text("not a run")
    assert locate(None).name == "runs/demo"


def test_runs_may_lie_elsewhere(tmp_path):
    finish("demo", age=0)
    Path("runs").rename("other")
    assert locate(None, runs=tmp_path / "other").name == str(tmp_path / "other" / "demo")


def test_last_comes_the_shipped_model(shipped):
    assert locate(None).name == "shipped"
    described = locate(None).describe()
    assert described == f"shipped with diticli {__version__}, trained on built-in faces"
    finish("demo", age=0)
    Path("runs/demo/config.json").write_text(json.dumps({"config": {"data": {"source": "/photos"}}}))
    assert locate(None).describe() == "runs/demo (newest run under ./runs), trained on /photos"
    assert locate("shipped").name == "shipped"


def test_the_newest_run_is_not_taken_through_a_link(elsewhere, shipped):
    """./runs may have come in an archive; where nobody named a model, none from elsewhere is used without a word."""
    runs = elsewhere / "archive" / "runs"
    runs.mkdir(parents=True)
    Path("runs").symlink_to(runs)  # the user's own choice
    finish("demo", age=2)
    (elsewhere / "theirs" / "model").mkdir(parents=True)
    (elsewhere / "theirs" / "model" / "model_index.json").write_text("{}")
    Path("runs", "linked").symlink_to(elsewhere / "theirs")
    assert locate(None).name == "runs/demo"
    assert locate(None).reason == "newest run under ./runs; not runs/linked, a link to another place"
    Path("runs", "demo2").symlink_to("demo")
    assert "demo" in locate(None).name
    for path in (Path("runs", "demo", "model", "model_index.json"),):
        path.unlink()
        path.symlink_to(elsewhere / "theirs" / "model" / "model_index.json")
    assert locate(None).name == "shipped"
    assert "not runs/demo, a link to another place" in locate(None).describe()


def test_the_newest_run_of_another_user_is_named_as_such(monkeypatch):
    finish("demo", age=0)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert locate(None).reason.startswith("newest run under ./runs, of the user ")


def test_the_reason_names_option_and_environment(monkeypatch):
    assert locate("someone/model").describe() == "someone/model (--model)"
    monkeypatch.setenv("DITI_MODEL", "their/model")
    assert locate(None).describe() == "their/model ($DITI_MODEL)"
    monkeypatch.setenv("DITI_MODEL", "/no/such/folder")
    for load in (load_model, load_pipeline):
        with pytest.raises(ModelError, match=r"^\$DITI_MODEL: There is no folder '/no/such/folder'"):
            load()


def test_the_shipped_model_runs_in_float32_however_it_is_loaded(shipped):
    Path("shipped").mkdir()  # a folder of that name is ./shipped
    fast, pipeline = load_model("shipped", "cpu"), load_pipeline("shipped", "cpu")
    assert type(fast) is DiTiModel
    for model in (fast, pipeline):
        assert model.model_id == "shipped"
        assert model.origin.startswith("shipped with diticli")
        assert {p.dtype for network in model.networks.values() for p in network.parameters()} == {torch.float32}
    assert fast.model_hash == pipeline.model_hash


def test_the_shipped_base_can_be_trained_on(shipped):
    unet, scheduler = load_base("shipped")
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert scheduler.config.num_train_timesteps == 1000


def test_a_shipped_model_that_is_missing_is_said(elsewhere):
    with pytest.raises(ModelError, match="has no shipped model"):
        load_model("shipped", "cpu")


@pytest.mark.parametrize("unfinished", [False, True])
def test_no_model_at_all_says_how_to_get_one(unfinished):
    if unfinished:
        Path("runs/demo/base/unet").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no finished run under \./runs") as error:
        locate(None)
    assert all(way in error.value.remedy for way in ("--model", "DITI_MODEL", "diti demo"))


def test_load_pipeline_finds_and_loads(make_pipeline):
    made = make_pipeline()
    made.save_pretrained("runs/demo/model")
    loaded = load_pipeline(device="cpu")
    assert loaded.model_id == "runs/demo"
    assert loaded.model_hash == made.model_hash
    assert loaded.device.type == "cpu"


def test_load_pipeline_names_the_device_before_the_model():
    with pytest.raises(DeviceError, match="no device 'gpu9'"):
        load_pipeline(device="gpu9")


def test_load_pipeline_names_a_bad_setting_before_the_model(monkeypatch):
    monkeypatch.setenv("DITI_ATTENTION", "flash")
    with pytest.raises(ConfigError, match="DITI_ATTENTION='flash' is unknown"):
        load_pipeline("no/such/model", device="cpu")


# --- devices


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in (None, "", "auto", "cpu"):
        assert resolve_device(name) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == CUDA
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"no cuda:2, only 2 GPU"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "no device 'gpu'"),
        ("mps", "mps is not supported"),
        ("meta", "meta is not supported"),
        ("cuda", "sees no CUDA GPU"),
        ("cuda:0", "sees no CUDA GPU"),
    ],
)
def test_devices_that_cannot_be_had(monkeypatch, name, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=message) as error:
        resolve_device(name)
    assert "cpu" in error.value.remedy


@pytest.mark.parametrize("has_bf16", [True, False])
def test_precision_follows_the_hardware(monkeypatch, has_bf16):
    monkeypatch.setattr(device_module, "_cpu_has_bf16", lambda: has_bf16)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    for device in (CPU, CUDA):
        assert resolve_precision("auto", device) == ("bf16" if has_bf16 else "fp32")
        assert resolve_precision("fp32", device) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"  # slow where the CPU lacks it, but right
    if not has_bf16:
        with pytest.raises(DeviceError, match="does not compute in bf16") as error:
            resolve_precision("bf16", CUDA)
        assert "--precision fp32" in error.value.remedy
