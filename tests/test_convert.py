"""`diti convert` on runs in the official file layout, built here."""

import json
from pathlib import Path

import pytest
import torch
from official_layout import encoder_forward, unet_forward, unet_state
from official_runs import LATENT_DIM, SETTINGS, run_settings, save, write_yaml
from typer.testing import CliRunner

from diticli.chunks import ChunkLayout
from diticli.commands.app import app
from diticli.errors import ModelError
from diticli.models.base_files import load_base
from diticli.models.pipeline import DiTiPipeline
from diticli.models.unet_forward import estimate_noise
from diticli.official import convert as official_convert
from diticli.official.convert import convert, pipeline_from_official
from diticli.official.run import read_official


def diti(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


# a run


def test_a_run_becomes_a_model(official_project, official_weights, tmp_path):
    run, dpm = official_project
    result = diti("convert", run, "-o", tmp_path / "models" / "diti64")
    assert result.exit_code == 0, result.output
    shown = " ".join(result.stdout.split())
    for words in (
        "DiTi (ema weights, step 7,000)",
        "64 px",
        "4 over 1000 timesteps, 16 dims, uniform",
        "cumulative",
    ):
        assert words in shown
    assert f"encoder {sum(t.numel() for t in official_weights['ema_encoder'].values()):,}" in shown
    assert f"--model {tmp_path / 'models' / 'diti64'}" in " ".join(result.stderr.split())
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "models" / "diti64")
    assert pipeline.chunks == ChunkLayout.uniform(chunks=4, latent_dim=LATENT_DIM)
    assert pipeline.crop == "celeba"
    x, t = torch.rand(1, 3, 64, 64) * 2 - 1, torch.tensor([990])
    z = encoder_forward(official_weights["ema_encoder"], x, 64)
    noise, shift = unet_forward(official_weights["ema_decoder"], SETTINGS, x, t, z)
    assert torch.allclose(pipeline.encode(x), z, atol=1e-5)
    got = pipeline.predict(x, t, z)
    assert torch.allclose(got.noise, noise, atol=1e-4)
    assert torch.allclose(got.shift, shift, atol=1e-4)
    assert sorted(p.name for p in (tmp_path / "models").iterdir()) == ["diti64"]
    record = json.loads((tmp_path / "models" / "diti64" / "official.json").read_text())
    assert record["kind"] == "DiTi"
    assert Path(record["ddpm_config"]).samefile(dpm / "config.yml")


def test_json_raw_weights_and_the_other_settings(official_project, official_weights, tmp_path):
    run, _ = official_project
    ssl = {"k": 4, "stages": "100,1000", "dims_per_stage": "3,13", "pdae_mode": "stop_grad", "ssl_method": "simsiam"}
    write_yaml(run / "config.yml", run_settings(ssl_config=ssl, train_dataset_config={"name": "FFHQ"}))
    result = diti("convert", run, "-o", tmp_path / "model", "--raw", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    facts = ("weights", "gradient", "partition", "chunks", "crop", "step", "resolution")
    assert [record[key] for key in facts] == ["raw", "detached", "staged", 4, "center", 7000, 64]
    assert record["out"] == str(tmp_path / "model")
    assert record["parameters"]["encoder"] == sum(t.numel() for t in official_weights["encoder"].values())
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "model")
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(pipeline.encode(x), encoder_forward(official_weights["encoder"], x, 64), atol=1e-5)
    assert pipeline.chunks.ends == (3, 7, 11, 16)


def test_pdae_is_one_chunk(official_project, tmp_path):
    run, _ = official_project
    write_yaml(run / "config.yml", run_settings(ssl_config=None))
    record = convert(run, tmp_path / "model").record
    assert (record["kind"], record["chunks"], record["gradient"]) == ("PDAE", 1, "cumulative")


@pytest.mark.parametrize(("mode", "ours"), [("base", "cumulative"), ("dual", "dual")])
def test_gradient_modes(official_project, mode, ours):
    run, _ = official_project
    write_yaml(run / "config.yml", run_settings(ssl_config={"k": 4, "pdae_mode": mode}))
    assert read_official(run).gradient == ours


def test_an_encoder_trained_alone_becomes_an_encoder_alone(official_project, official_weights, tmp_path):
    run, _ = official_project
    write_yaml(run / "config.yml", run_settings(ssl_config={"k": 4, "ssl_method": "simsiam", "no_pdae": True}))
    result = diti("convert", run, "-o", tmp_path / "model", "--json")
    assert result.exit_code == 0, result.output
    assert "encoder alone" in result.stderr
    record = json.loads(result.stdout)
    assert (record["kind"], record["gradient"], list(record["parameters"])) == ("SimSiam", None, ["encoder"])
    pipeline = DiTiPipeline.from_pretrained(tmp_path / "model")
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(pipeline.encode(x), encoder_forward(official_weights["ema_encoder"], x, 64), atol=1e-5)


def test_prefixes_of_compile_and_ddp_are_stripped(official_project, official_weights):
    run, _ = official_project
    save(run / "checkpoints" / "latest.pt", official_weights, wrap=lambda name: f"module._orig_mod.{name}")
    got = pipeline_from_official(run)
    assert torch.equal(got.encoder.head.weight, official_weights["ema_encoder"]["encoder.14.weight"])
    twice = official_weights["ema_encoder"] | {"module.encoder.0.bias": torch.ones(64)}
    save(run / "checkpoints" / "latest.pt", {**official_weights, "ema_encoder": twice})
    with pytest.raises(ModelError, match="differ only in the prefixes"):
        read_official(run)


# a pre-trained DPM


def test_a_pretrained_dpm_becomes_a_base(official_project, official_weights, tmp_path):
    _, dpm = official_project
    save(dpm / "checkpoint.pt", official_weights, "denoise_fn", "ema_denoise_fn")
    result = diti("convert", dpm, "-o", tmp_path / "base")
    assert result.exit_code == 0, result.output
    assert f"diti train --base {tmp_path / 'base'}" in " ".join(result.stderr.split())
    assert "took DDPM's schedule" in result.stderr
    assert "not stated" in result.stdout
    unet, scheduler = load_base(str(tmp_path / "base"), resolution=64)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([77])
    noise = unet_forward(official_weights["ema_denoise_fn"], SETTINGS, x, t)[0]
    assert torch.allclose(estimate_noise(unet, x, t), noise, atol=1e-4)
    assert scheduler.config.beta_end == 0.02
    with pytest.raises(ModelError, match="is a pre-trained DPM"):
        pipeline_from_official(dpm)


def test_a_base_keeps_its_schedule_and_size(official_project, official_weights, tmp_path):
    _, dpm = official_project
    diffusion = {"timesteps": 500, "betas_type": "linear", "linear_beta_start": 0.001, "linear_beta_end": 0.03}
    config = {"denoise_fn_config": SETTINGS, "diffusion_config": diffusion, "train_dataset_config": {"image_size": 32}}
    write_yaml(dpm / "config.yml", config)
    convert(save(dpm / "checkpoint.pt", official_weights, "denoise_fn"), tmp_path / "base", ema=False)
    unet, scheduler = load_base(str(tmp_path / "base"))
    assert unet.config.sample_size == 32
    assert torch.equal(scheduler.betas, torch.linspace(0.001, 0.03, 500))


def test_a_base_of_two_channels_is_refused(official_project, tmp_path):
    _, dpm = official_project
    odd = SETTINGS | {"input_channel": 2}
    state = unet_state(SETTINGS)
    state["input_blocks.0.0.weight"], state["out.2.weight"] = torch.ones(32, 2, 3, 3), torch.ones(2, 32, 3, 3)
    state["out.2.bias"] = torch.ones(2)
    write_yaml(dpm / "config.yml", {"denoise_fn_config": odd})
    save(dpm / "checkpoint.pt", {"ema_denoise_fn": state}, "ema_denoise_fn")
    with pytest.raises(ModelError, match="2 input and 2 output channels"):
        convert(dpm, tmp_path / "base")


def test_an_earlier_conversion_is_replaced_and_said(official_project, tmp_path):
    run, _ = official_project
    out = tmp_path / "model"
    assert "replaced" not in diti("convert", run, "-o", out).stderr
    before = (out / "official.json").stat().st_mtime_ns
    result = diti("convert", run, "-o", out)
    assert result.exit_code == 0, result.output
    assert "is there already and will be replaced" in " ".join(result.stderr.split())
    assert (out / "official.json").stat().st_mtime_ns > before
    (out / "notes.txt").write_text("mine")  # it is no more what diti made
    assert diti("convert", run, "-o", out).exit_code == 66
    assert (out / "notes.txt").read_text() == "mine"


def test_nothing_is_overwritten_or_left_half_written(official_project, tmp_path, monkeypatch):
    run, _ = official_project
    out = tmp_path / "model"
    out.mkdir()
    result = diti("convert", run, "-o", out)
    assert result.exit_code == 66
    assert f"{out} is there already, and diti did not make it" in " ".join(result.stderr.split())
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
