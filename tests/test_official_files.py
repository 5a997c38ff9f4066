"""Finding and reading official checkpoints and configs, and refusing what cannot or must not be read."""

import functools
import os
from pathlib import Path

import pytest
import torch
from official_runs import LATENT_DIM, SETTINGS, run_settings, save, write_yaml
from typer.testing import CliRunner

from diticli.commands.app import app
from diticli.errors import ModelError
from diticli.official.convert import convert
from diticli.official.files import load_checkpoint, locate
from diticli.official.run import read_official


def diti(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_which_checkpoint_is_taken(official_project, tmp_path):
    run, _ = official_project
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


def test_where_the_dpms_config_is_looked_for(official_project, tmp_path, monkeypatch):
    run, dpm = official_project
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


def test_a_pickle_that_wants_more_than_tensors_is_refused(official_project, tmp_path):
    run, _ = official_project
    path = run / "checkpoints" / "latest.pt"
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"ema_encoder": functools.partial(print, "hello")}, path, **options)
        result = diti("convert", run, "-o", tmp_path / "model")
        assert result.exit_code == 66
        assert "wants the Python object functools.partial" in " ".join(result.stderr.split())
        assert "hello" not in result.stdout
        assert not (tmp_path / "model").exists()


def test_checkpoints_before_pytorch_1_6_are_read(official_project, official_weights):
    run, _ = official_project
    path = run / "checkpoints" / "latest.pt"
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    assert torch.equal(
        load_checkpoint(path)["encoder"]["encoder.0.bias"], official_weights["encoder"]["encoder.0.bias"]
    )


@pytest.mark.parametrize("damage", ["text", "empty", "cut"])
def test_a_damaged_checkpoint_is_named(official_project, damage):
    path = official_project[0] / "checkpoints" / "latest.pt"
    whole = path.read_bytes()
    path.write_bytes({"text": b"hello " * 100, "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ModelError, match=r"latest\.pt is damaged, or no PyTorch checkpoint"):
        load_checkpoint(path)


def test_other_checkpoints_are_told_apart(official_project, tmp_path):
    run, _ = official_project
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


def test_missing_averages_point_to_raw(official_project, official_weights, tmp_path):
    run, _ = official_project
    save(run / "checkpoints" / "latest.pt", official_weights, "encoder", "decoder")
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
def test_runs_that_cannot_be_converted(official_project, change, says, tmp_path):
    run, _ = official_project
    write_yaml(run / "config.yml", run_settings(**change))
    with pytest.raises(ModelError, match=says):
        convert(run, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_configs_are_plain_yaml(official_project):
    run, _ = official_project
    for text, says in (
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("- 1\n- 2", "holds no settings"),
        ("a: [", "Cannot read"),
        ("a: 2024-99-99", "Cannot read"),
        ("[" * 1000, "Cannot read"),
    ):
        (run / "config.yml").write_text(text)
        with pytest.raises(ModelError, match=says) as caught:
            read_official(run)
        assert caught.value.remedy
    (run / "config.yml").unlink()
    with pytest.raises(ModelError, match=r"no config\.yml"):
        read_official(run)
