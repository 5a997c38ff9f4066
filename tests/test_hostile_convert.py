"""`convert` on a stranger's run: its config opens no file of its choice and costs little; what was there stays."""

import os

import pytest
from official_runs import run_settings, write_yaml

from diticli.errors import DiTiError, ModelError
from diticli.official.convert import convert
from diticli.official.files import read_yaml
from diticli.official.run import read_official

HUGE = 10**9
SECRET = "hidden-words"


@pytest.mark.parametrize("kind", ["absolute", "far above", "up within", "another suffix", "a list"])
def test_a_config_opens_no_file_of_its_choice(official_project, tmp_path, kind, monkeypatch):
    run, dpm = official_project
    monkeypatch.chdir(run)
    (dpm / "config.yml").unlink()
    secret = tmp_path / "secret.yml"
    secret.write_text(f"denoise_fn_config: {{{SECRET}: 1}}\n")
    (run / "secret.txt").write_text(f"denoise_fn_config: {{{SECRET}: 1}}\n")
    named = {
        "absolute": str(secret),
        "far above": str(secret).lstrip("/"),
        "up within": "x/../secret.yml",
        "another suffix": "secret.txt",
        "a list": [str(secret)],
    }[kind]
    write_yaml(run / "config.yml", run_settings(trained_ddpm_config=named))
    with pytest.raises(ModelError, match="not to be found") as caught:
        read_official(run)
    assert SECRET not in str(caught.value)
    assert f"\n  {secret}" not in str(caught.value)


def test_contents_of_a_config_are_not_quoted(tmp_path):
    (tmp_path / "config.yml").write_text(f"a: 1\nb: [{SECRET}\n{SECRET}: %\n")
    with pytest.raises(ModelError, match=r"line [0-9]") as caught:
        read_yaml(tmp_path / "config.yml")
    assert SECRET not in str(caught.value)


def test_shared_nodes_and_large_configs_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))]
    for text, reason in (("\n".join(lines), "YAML aliases"), ("#" * 2**19, "more than any config"), ("{" * 1000, "")):
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(ModelError, match=f"Cannot read .*{reason}") as caught:
            read_yaml(tmp_path / "config.yml")
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion_config": {"timesteps": HUGE, "linear_beta_start": 1e-4, "linear_beta_end": 0.02}},
        {"diffusion_config": {"timesteps": 1000, "linear_beta_start": float("nan"), "linear_beta_end": 0.02}},
        {"diffusion_config": [1]},
        {"encoder_config": {"model": "CELEBA64Encoder", "latent_dim": HUGE}},
        {"encoder_config": {"model": ["x"] * 10_000, "latent_dim": 16}},
        {"encoder_config": {"model": "CELEBA64Encoder", "latent_dim": float("inf")}},
        {"ssl_config": {"k": HUGE}},
        {"ssl_config": {"k": 4, "stages": list(range(1, 1001)) * 2, "dims_per_stage": [1] * 2000}},
        {"ssl_config": {"k": 4, "stages": [0, 1000], "k_per_stage": [4, 0]}},
        {"ssl_config": {"k": 4, "pdae_mode": ["base"]}},
        {"ssl_config": "k"},
        {"ssl_config": [4]},
        {"train_dataset_config": 3},
    ],
    ids=lambda changes: f"{next(iter(changes))} {str(next(iter(changes.values())))[:40]}",
)
def test_counts_and_types_of_a_runs_config(official_project, changes):
    run, _ = official_project
    write_yaml(run / "config.yml", run_settings(**changes))
    with pytest.raises(DiTiError) as caught:
        convert(run, run.parent / "out")
    assert len(str(caught.value)) < 600
    assert not (run.parent / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"num_residual_blocks_of_a_block": HUGE},
        {"base_channel": HUGE},
        {"channel_multiplier": [1] * 1000},
        {"channel_multiplier": [1, float("inf")]},
        {"input_channel": HUGE},
        {"dropout": "x"},
        {"num_heads": HUGE},
    ],
    ids=str,
)
def test_counts_and_types_of_the_bases_config(official_project, changes):
    run, dpm = official_project
    config = read_yaml(dpm / "config.yml")["denoise_fn_config"] | changes
    write_yaml(dpm / "config.yml", {"denoise_fn_config": config})
    with pytest.raises(DiTiError) as caught:
        convert(run, run.parent / "out")
    assert len(str(caught.value)) < 600


def test_folders_that_were_there_stay(official_project, tmp_path):
    run, _ = official_project
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").write_text("kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(ModelError, match="is there already"):
        convert(run, tmp_path / "dangling")
    convert(run, tmp_path / "out")
    assert (tmp_path / ".out.partial" / "mine").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.glob(".out*")) == [".out.partial"]


def test_an_interrupted_conversion_leaves_nothing(official_project, tmp_path, monkeypatch):
    run, _ = official_project

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("diticli.official.convert.write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(run, tmp_path / "new" / "out")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("name", ["config.yml", "checkpoints/latest.pt"])
def test_named_pipes_are_not_opened(official_project, name):
    run, _ = official_project
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(ModelError, match=r"no config\.yml|holds no checkpoint"):
        read_official(run)
    if name.endswith(".pt"):
        with pytest.raises(ModelError, match="does not exist"):
            read_official(run / name)
