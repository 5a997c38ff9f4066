"""`diti convert` on runs in the official file layout, built here."""

import functools
import json
import os
from pathlib import Path

import pytest
import torch
import yaml
from official_layout import encoder_forward, encoder_state, unet_forward, unet_settings, unet_state
from typer.testing import CliRunner

from diticli.chunks import ChunkLayout
from diticli.commands.app import app
from diticli.errors import ModelError
from diticli.models.pipeline import DiTiPipeline
from diticli.models.unet import load_base
from diticli.official import convert as official_convert
from diticli.official.convert import convert, pipeline_from_official
from diticli.official.files import load_checkpoint, locate
from diticli.official.run import read_official

LATENT_DIM = 16
SETTINGS = unet_settings(channel_multiplier=[1, 1])


@pytest.fixture(scope="module")
def weights():
    """Averaged and raw weights of a run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return {
            f"{prefix}{name}": state
            for prefix in ("ema_", "")
            for name, state in (
                ("encoder", encoder_state(64, LATENT_DIM)),
                ("decoder", unet_state(SETTINGS, LATENT_DIM)),
                ("denoise_fn", unet_state(SETTINGS)),
            )
        }


def run_settings(**changes):
    config = {
        "train_dataset_config": {"name": "CELEBA64", "image_size": 64, "latent_dim": LATENT_DIM},
        "diffusion_config": {
            "timesteps": 1000,
            "betas_type": "linear",
            "linear_beta_start": 0.0001,
            "linear_beta_end": 0.02,
        },
        "trained_ddpm_config": "../pre-trained-dpms/celeba64/config.yml",
        "encoder_config": {"model": "CELEBA64Encoder", "latent_dim": LATENT_DIM},
        "decoder_config": {"model": "CELEBA64Decoder", "latent_dim": LATENT_DIM},
        "ssl_config": {"k": 4, "ssl_method": "simclr"},
    }
    return {key: value for key, value in (config | changes).items() if value is not None}


def write_yaml(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(data))
    return path


@pytest.fixture
def project(tmp_path, weights):
    """The folders that the official README recommends, with one DiTi run and its pre-trained DPM."""
    root = tmp_path / "DiTi"
    run, dpm = root / "runs" / "celeba64" / "diti64", root / "pre-trained-dpms" / "celeba64"
    (run / "checkpoints").mkdir(parents=True)
    write_yaml(run / "config.yml", run_settings())
    write_yaml(dpm / "config.yml", {"denoise_fn_config": SETTINGS})
    save(run / "checkpoints" / "latest.pt", weights, step=7000)
    return run, dpm


def save(path, weights, *names, step=None, wrap=lambda name: name, **others):
    """A checkpoint of the named weights, by default those of a representation run."""
    names = names or ("encoder", "ema_encoder", "decoder", "ema_decoder")
    content = {name: {wrap(key): tensor for key, tensor in weights[name].items()} for name in names}
    optimizer = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]}
    content |= {"optimizer": optimizer, "scaler": {}} | ({} if step is None else {"step": step}) | others
    torch.save(content, path)
    return path


def diti(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# a run


def test_a_run_becomes_a_model(project, weights, tmp_path):
    run, dpm = project
    result = diti("convert", run, "-o", tmp_path / "models" / "diti64")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for words in ("DiTi (ema weights, step 7,000)", "64 px", "4 over 1000 time-steps, 16 dims, uniform", "cumulative"):
        assert words in shown
    assert f"encoder {sum(t.numel() for t in weights['ema_encoder'].values()):,}" in shown
    assert f"--model {tmp_path / 'models' / 'diti64'}" in " ".join(result.stderr.split())
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "models" / "diti64")
    assert pipeline.chunks == ChunkLayout.uniform(chunks=4, latent_dim=LATENT_DIM)
    assert pipeline.crop == "celeba"
    x, t = torch.rand(1, 3, 64, 64) * 2 - 1, torch.tensor([990])
    z = encoder_forward(weights["ema_encoder"], x, 64)
    noise, shift = unet_forward(weights["ema_decoder"], SETTINGS, x, t, z)
    assert torch.allclose(pipeline.encode(x), z, atol=1e-5)
    got = pipeline.predict(x, t, z)
    assert torch.allclose(got.noise, noise, atol=1e-4)
    assert torch.allclose(got.shift, shift, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["diti64"]
    record = json.loads((tmp_path / "models" / "diti64" / "official.json").read_text())
    assert record["kind"] == "DiTi"
    assert Path(record["ddpm_config"]).samefile(dpm / "config.yml")


def test_json_raw_weights_and_the_other_settings(project, weights, tmp_path):
    run, _ = project
    ssl = {"k": 4, "stages": "100,1000", "dims_per_stage": "3,13", "pdae_mode": "stop_grad", "ssl_method": "simsiam"}
    write_yaml(run / "config.yml", run_settings(ssl_config=ssl, train_dataset_config={"name": "FFHQ"}))
    result = diti("convert", run, "-o", tmp_path / "model", "--raw", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    facts = ("weights", "gradient", "partition", "chunks", "crop", "step", "resolution")
    assert [record[key] for key in facts] == ["raw", "detached", "staged", 4, "center", 7000, 64]
    assert record["out"] == str(tmp_path / "model")
    assert record["parameters"]["encoder"] == sum(t.numel() for t in weights["encoder"].values())
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "model")
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(pipeline.encode(x), encoder_forward(weights["encoder"], x, 64), atol=1e-5)
    assert pipeline.chunks.ends == (3, 7, 11, 16)


def test_pdae_is_one_chunk(project, tmp_path):
    run, _ = project
    write_yaml(run / "config.yml", run_settings(ssl_config=None))
    record = convert(run, tmp_path / "model").record
    assert (record["kind"], record["chunks"], record["gradient"]) == ("PDAE", 1, "cumulative")


@pytest.mark.parametrize(("mode", "ours"), [("base", "cumulative"), ("dual", "dual")])
def test_gradient_modes(project, mode, ours):
    run, _ = project
    write_yaml(run / "config.yml", run_settings(ssl_config={"k": 4, "pdae_mode": mode}))
    assert read_official(run).gradient == ours


def test_an_encoder_trained_alone_becomes_an_encoder_alone(project, weights, tmp_path):
    run, _ = project
    write_yaml(run / "config.yml", run_settings(ssl_config={"k": 4, "ssl_method": "simsiam", "no_pdae": True}))
    result = diti("convert", run, "-o", tmp_path / "model", "--json")
    assert result.exit_code == 0, result.output
    assert "encoder alone" in result.stderr
    record = json.loads(result.stdout)
    assert (record["kind"], record["gradient"], list(record["parameters"])) == ("SimSiam", None, ["encoder"])
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "model")
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(pipeline.encode(x), encoder_forward(weights["ema_encoder"], x, 64), atol=1e-5)


def test_prefixes_of_compile_and_ddp_are_stripped(project, weights):
    run, _ = project
    save(run / "checkpoints" / "latest.pt", weights, wrap=lambda name: f"module._orig_mod.{name}")
    got = pipeline_from_official(run)
    assert torch.equal(got.encoder.head.weight, weights["ema_encoder"]["encoder.14.weight"])
    twice = weights["ema_encoder"] | {"module.encoder.0.bias": torch.ones(64)}
    save(run / "checkpoints" / "latest.pt", {**weights, "ema_encoder": twice})
    with pytest.raises(ModelError, match="differ only in the prefixes"):
        read_official(run)


# a pre-trained DPM


def test_a_pretrained_dpm_becomes_a_base(project, weights, tmp_path):
    _, dpm = project
    save(dpm / "checkpoint.pt", weights, "denoise_fn", "ema_denoise_fn")
    result = diti("convert", dpm, "-o", tmp_path / "base")
    assert result.exit_code == 0, result.output
    assert f"diti train --base {tmp_path / 'base'}" in " ".join(result.stderr.split())
    assert "took DDPM's schedule" in result.stderr
    assert "not stated" in result.stdout
    unet, scheduler = load_base(str(tmp_path / "base"), resolution=64)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([77])
    noise = unet_forward(weights["ema_denoise_fn"], SETTINGS, x, t)[0]
    assert torch.allclose(unet(x, t).sample, noise, atol=1e-4)
    assert scheduler.config.beta_end == 0.02
    with pytest.raises(ModelError, match="is a pre-trained DPM"):
        pipeline_from_official(dpm)


def test_a_base_keeps_its_schedule_and_size(project, weights, tmp_path):
    _, dpm = project
    diffusion = {"timesteps": 500, "betas_type": "linear", "linear_beta_start": 0.001, "linear_beta_end": 0.03}
    config = {"denoise_fn_config": SETTINGS, "diffusion_config": diffusion, "train_dataset_config": {"image_size": 32}}
    write_yaml(dpm / "config.yml", config)
    convert(save(dpm / "checkpoint.pt", weights, "denoise_fn"), tmp_path / "base", ema=False)
    unet, scheduler = load_base(str(tmp_path / "base"))
    assert unet.config.sample_size == 32
    assert torch.equal(scheduler.betas, torch.linspace(0.001, 0.03, 500))


def test_a_base_without_colour_is_refused(project, tmp_path):
    _, dpm = project
    grey = SETTINGS | {"input_channel": 1}
    state = unet_state(SETTINGS)
    state["input_blocks.0.0.weight"], state["out.2.weight"] = torch.ones(32, 1, 3, 3), torch.ones(1, 32, 3, 3)
    state["out.2.bias"] = torch.ones(1)
    write_yaml(dpm / "config.yml", {"denoise_fn_config": grey})
    save(dpm / "checkpoint.pt", {"ema_denoise_fn": state}, "ema_denoise_fn")
    with pytest.raises(ModelError, match="1 input and 1 output channels"):
        convert(dpm, tmp_path / "base")


# which files


def test_which_checkpoint_is_taken(project, tmp_path):
    run, _ = project
    folder = run / "checkpoints"
    latest = folder / "latest.pt"
    for place in (run, folder, latest, Path(os.path.relpath(folder))):
        assert locate(place).checkpoint.samefile(latest)
        assert locate(place).root.samefile(run)
    for name in ("save-90k.pt", "save-120k.pt"):
        (folder / name).touch()
    assert locate(run).checkpoint == latest
    latest.unlink()
    assert locate(run).checkpoint == folder / "save-120k.pt"
    (run / "checkpoint.pt").touch()
    assert locate(run).checkpoint == run / "checkpoint.pt"
    with pytest.raises(ModelError, match=r"nowhere does not exist"):
        locate(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"neither checkpoints/\*\.pt nor \*\.pt"):
        locate(tmp_path / "empty")


def test_where_the_dpms_config_is_looked_for(project, tmp_path, monkeypatch):
    run, dpm = project
    named = dpm / "config.yml"

    def found(**options):
        return read_official(run, **options).ddpm_config

    assert found().samefile(named)  # relative to one of the run's parents
    elsewhere = tmp_path / "work" / "trainer"
    elsewhere.mkdir(parents=True)
    moved = elsewhere.parent / "pre-trained-dpms" / "celeba64" / "config.yml"
    moved.parent.mkdir(parents=True)
    named.rename(moved)
    monkeypatch.chdir(elsewhere)
    assert found().samefile(moved)  # relative to the working folder
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="not to be found") as caught:
        read_official(run)
    assert str(run / "checkpoints" / "ddpm_config.yml") in str(caught.value)
    assert f"{run / 'config.yml'} (has no denoise_fn_config)" in str(caught.value)
    assert "--ddpm-config" in caught.value.remedy
    beside = run / "checkpoints" / "ddpm_config.yml"
    moved.rename(beside)
    assert found() == beside
    other = write_yaml(tmp_path / "other.yml", {"denoise_fn_config": SETTINGS | {"dropout": 0.5}})
    assert found(ddpm_config=other) == other
    with pytest.raises(ModelError, match=r"missing\.yml"):
        found(ddpm_config=tmp_path / "missing.yml")


# refusals


def test_a_pickle_that_wants_more_than_tensors_is_refused(project, tmp_path):
    run, _ = project
    path = run / "checkpoints" / "latest.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"ema_encoder": functools.partial(print, "hello")}, path, **options)
        result = diti("convert", run, "-o", tmp_path / "model")
        assert result.exit_code == 66
        assert "wants the Python object functools.partial" in " ".join(result.stderr.split())
        assert "hello" not in result.stdout
        assert not (tmp_path / "model").exists()


def test_checkpoints_before_pytorch_1_6_are_read(project, weights):
    run, _ = project
    path = run / "checkpoints" / "latest.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert torch.equal(load_checkpoint(path)["encoder"]["encoder.0.bias"], weights["encoder"]["encoder.0.bias"])


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_a_damaged_checkpoint_is_named(project, damage):
    path = project[0] / "checkpoints" / "latest.pt"
    whole = path.read_bytes()
    path.write_bytes({"text": b"hello " * 100, "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ModelError, match=r"latest\.pt is damaged, or no PyTorch checkpoint"):
        load_checkpoint(path)


def test_other_checkpoints_are_told_apart(project, tmp_path):
    run, _ = project
    path = run / "checkpoints" / "latest.pt"
    for content, says in (
        ({"ema_latent_denoise_fn": {}}, "holds a latent diffusion model"),
        ({"ema_classifier": {}}, "holds a classifier"),
        ({"something": 1}, "holds no official model: something"),
        ([1, 2], "it holds a list"),
        ({"ema_encoder": {}, "ema_decoder": 3}, "no weights ema_decoder; it has ema_encoder, ema_decoder"),
    ):
        torch.save(content, path)
        with pytest.raises(ModelError, match=says):
            read_official(run)


def test_missing_averages_point_to_raw(project, weights, tmp_path):
    run, _ = project
    save(run / "checkpoints" / "latest.pt", weights, "encoder", "decoder")
    result = diti("convert", run, "-o", tmp_path / "model")
    assert result.exit_code == 66
    assert "no weights ema_encoder" in result.stderr
    assert "Use --raw" in result.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder_config": {"model": "CELEBA64ResNet10", "latent_dim": LATENT_DIM}}, "ResNet"),
        ({"encoder_config": None}, "config.yml has no encoder_config"),
        ({"decoder_config": {"latent_dim": 8}}, "disagree: latent_dim 16 and 8"),
        (
            {"train_dataset_config": {"image_size": 128}},
            "CELEBA64Encoder is for 64 px, but the config's image_size is 128",
        ),
        ({"ssl_config": {"k": 4, "ssl_method": "mae"}}, "masked autoencoder"),
        ({"ssl_config": {"k": 4, "pdae_mode": "triple"}}, "pdae_mode is one of base, stop_grad, dual, got 'triple'"),
        (
            {"encoder_config": {"model": "FFHQEncoder", "latent_dim": LATENT_DIM}, "train_dataset_config": {}},
            "missing: enc",
        ),
        ({"diffusion_config": {"betas_type": "cosine", "timesteps": 1000}}, "cosine"),
    ],
)
def test_runs_that_cannot_be_converted(project, change, says, tmp_path):
    run, _ = project
    write_yaml(run / "config.yml", run_settings(**change))
    with pytest.raises(ModelError, match=says):
        convert(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_configs_are_plain_yaml(project):
    run, _ = project
    for text, says in (
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("- 1\n- 2", "holds no settings"),
        ("a: [", "Cannot read"),
    ):
        (run / "config.yml").write_text(text)
        with pytest.raises(ModelError, match=says):
            read_official(run)
    (run / "config.yml").unlink()
    with pytest.raises(ModelError, match=r"no config\.yml"):
        read_official(run)


def test_nothing_is_overwritten_or_left_half_written(project, tmp_path, monkeypatch):
    run, _ = project
    out = tmp_path / "model"
    out.mkdir()
    result = diti("convert", run, "-o", out)
    assert result.exit_code == 66
    assert f"{out} exists" in " ".join(result.stderr.split())
    assert not list(out.iterdir())
    out.rmdir()

    def full_disk(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(official_convert.DiTiPipeline, "save_pretrained", full_disk)
    with pytest.raises(ModelError, match="No space left on device"):
        convert(run, out)
    monkeypatch.setattr(official_convert.DiTiPipeline, "save_pretrained", lambda *a, **o: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(run, out)
    assert {p.name for p in tmp_path.iterdir()} == {"DiTi"}
