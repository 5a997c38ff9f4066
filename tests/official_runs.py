"""Official runs in their own file layout, with random weights. Imports no diffusers, see conftest.py."""

import torch
import yaml
from official_layout import encoder_state, unet_settings, unet_state

LATENT_DIM = 16
SETTINGS = unet_settings(channel_multiplier=[1, 1])


def random_weights():
    """Averaged and raw weights of a run and of a pre-trained DPM."""
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


def write_project(root, weights):
    """The folders that the official README recommends: a DiTi run and its pre-trained DPM, whose paths it returns."""
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
