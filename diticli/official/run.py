"""Read an official run: its kind, chunks, gradient mode, noise schedule and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from diticli.config_groups import Crop
from diticli.errors import DiTiError, ModelError
from diticli.models.pipeline import DDPMScheduler
from diticli.official.chunks import NOT_CONVERTIBLE, RESTORE_CONFIG, OfficialChunks, official_chunks
from diticli.official.config import ENCODERS, encoder_config, integer, official_scheduler
from diticli.official.files import (
    OfficialFiles,
    dpm_config,
    load_checkpoint,
    locate,
    run_config,
    state_dict,
)
from diticli.reading import quoted, shortened

CheckpointKind = Literal["DiTi", "PDAE", "SimCLR", "SimSiam", "pre-trained DPM"]
_GRADIENTS = {"base": "cumulative", "stop_grad": "detached", "dual": "dual"}
_ALONE: dict[str, CheckpointKind] = {"simclr": "SimCLR", "simsiam": "SimSiam"}
_OTHER_CHECKPOINTS = {
    "ema_latent_denoise_fn": "a latent diffusion model",
    "ema_classifier": "a classifier",
    "model": "another project's model",
}


@dataclass(frozen=True, kw_only=True)
class OfficialRun:
    """A run as understood, its weights still where they are.

    Attributes:
        kind: what was trained; SimCLR and SimSiam for runs with `no_pdae`, whose encoder alone is of use.
        checkpoint: the file.
        ema: whether the moving average was taken.
        step: of training, if the checkpoint says so.
        scheduler: the noise schedule.
        weights: "encoder" and "decoder", or "denoise_fn", in official names.
        denoise_fn_config: of the base; empty for an encoder alone.
        ddpm_config: the file that holds it.
        encoder_model: official class of the encoder.
        resolution: height and width of the images, if known.
        crop: which square of a picture the data set's code takes.
        latent_dim: d.
        chunks: None for a base.
        gradient: "cumulative", "detached" or "dual"; None for a base or an encoder alone.
        notes: facts for the user.
    """

    kind: CheckpointKind
    checkpoint: Path
    ema: bool
    step: int | None
    scheduler: DDPMScheduler
    weights: Mapping[str, Mapping[str, torch.Tensor]]
    denoise_fn_config: Mapping[str, Any] = field(default_factory=dict)
    ddpm_config: Path | None = None
    encoder_model: str = ""
    resolution: int | None = None
    crop: Crop = "center"
    latent_dim: int = 0
    chunks: OfficialChunks | None = None
    gradient: str | None = None
    notes: tuple[str, ...] = ()


def read_official(official: Path, *, ddpm_config: Path | None = None, ema: bool = True) -> OfficialRun:
    """Find and understand an official run or pre-trained DPM.

    Args:
        official: run folder or `.pt` file.
        ddpm_config: the pre-trained DPM's config, when it is not where the run's config says.
        ema: take the moving average of the weights.

    Raises:
        ModelError: for files that are missing, damaged, unsafe, or of an unsupported kind.
    """
    files = locate(official)
    content = load_checkpoint(files.checkpoint)
    with wrong_values_named(official):
        return _understood(files, content, ddpm_config, ema)


@contextlib.contextmanager
def wrong_values_named(official: Path) -> Iterator[None]:
    """What a config's value of another type or size makes Python raise becomes a `ModelError`."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, LookupError, OverflowError) as error:
        if isinstance(error, DiTiError):
            raise
        raise ModelError(
            f"A config of {official} has a wrong value ({shortened(error)}).", remedy="Copy the run's configs again."
        ) from error


def _understood(files: OfficialFiles, content: dict[str, Any], ddpm_config: Path | None, ema: bool) -> OfficialRun:
    if {"encoder", "ema_encoder"} & content.keys():
        return _representation(files, content, ddpm_config, ema)
    if {"denoise_fn", "ema_denoise_fn"} & content.keys():
        return _base(files, content, ddpm_config, ema)
    what = next((w for key, w in _OTHER_CHECKPOINTS.items() if key in content), "no official model")
    raise ModelError(
        f"{files.checkpoint} holds {what}: {shortened(', '.join(map(str, list(content)[:6])))}.",
        remedy="Give a run of DiTi or PDAE (ema_encoder, ema_decoder), or a pre-trained DPM (ema_denoise_fn).",
    )


def _base(files: OfficialFiles, content: dict[str, Any], given: Path | None, ema: bool) -> OfficialRun:
    path, config = dpm_config(files, None, given)
    data = config.get("train_dataset_config") or config.get("dataset_config") or {}
    notes = () if "diffusion_config" in config else ("Its config has no diffusion_config; took DDPM's schedule.",)
    resolution = integer(data, "image_size") if "image_size" in data else None
    return OfficialRun(
        kind="pre-trained DPM",
        checkpoint=files.checkpoint,
        ema=ema,
        step=_step(content),
        scheduler=_scheduler(config),
        weights={"denoise_fn": state_dict(content, "denoise_fn", ema=ema)},
        denoise_fn_config=config["denoise_fn_config"],
        ddpm_config=path,
        resolution=resolution,
        crop=_crop(data),
        notes=notes,
    )


def _representation(files: OfficialFiles, content: dict[str, Any], given: Path | None, ema: bool) -> OfficialRun:
    config = run_config(files)
    encoder, ssl = _section(config, "encoder_config"), config.get("ssl_config") or {}
    latent_dim, model = integer(encoder, "latent_dim"), str(encoder.get("model"))
    _check(config, latent_dim, model, ssl)
    scheduler = _scheduler(config)
    timesteps = scheduler.config.num_train_timesteps
    shared: dict[str, Any] = {
        "checkpoint": files.checkpoint,
        "ema": ema,
        "step": _step(content),
        "scheduler": scheduler,
        "encoder_model": model,
        "resolution": ENCODERS[model].resolution,
        "crop": _crop(config.get("train_dataset_config") or {}),
        "latent_dim": latent_dim,
    }
    weights = {"encoder": state_dict(content, "encoder", ema=ema)}
    if ssl.get("no_pdae"):
        return OfficialRun(
            kind=_ALONE.get(str(ssl.get("ssl_method")), "SimCLR"),
            weights=weights,
            chunks=official_chunks(None, latent_dim, timesteps),
            notes=("Trained without the diffusion loss (no_pdae): the encoder alone, its decoder is left out.",),
            **shared,
        )
    path, dpm = dpm_config(files, config.get("trained_ddpm_config"), given)
    chunks = official_chunks(ssl, latent_dim, timesteps)
    return OfficialRun(
        kind="DiTi" if "k" in ssl else "PDAE",
        weights=weights | {"decoder": state_dict(content, "decoder", ema=ema)},
        denoise_fn_config=dpm["denoise_fn_config"],
        ddpm_config=path,
        chunks=chunks,
        gradient=_gradient(ssl),
        notes=chunks.notes,
        **shared,
    )


def _check(config: Mapping[str, Any], latent_dim: int, model: str, ssl: Mapping[str, Any]) -> None:
    """Refuse what cannot be converted, and settings that contradict each other."""
    shape = encoder_config(model, latent_dim)
    size = (config.get("train_dataset_config") or {}).get("image_size", shape["sample_size"])
    if size != shape["sample_size"]:
        raise ModelError(
            f"{model} is for {shape['sample_size']} px, but the config's image_size is {quoted(size)}.",
            remedy=RESTORE_CONFIG,
        )
    decoder = _section(config, "decoder_config")
    if integer(decoder, "latent_dim") != latent_dim:
        raise ModelError(
            f"encoder_config and decoder_config disagree: latent_dim {latent_dim} and {decoder['latent_dim']}.",
            remedy=RESTORE_CONFIG,
        )
    if ssl.get("ssl_method") == "mae":
        raise ModelError(
            "This run takes its features from a masked autoencoder (SwinMAE), which cannot be converted.",
            remedy=NOT_CONVERTIBLE,
        )


def _gradient(ssl: Mapping[str, Any]) -> str:
    mode = ssl.get("pdae_mode", "base")
    if not isinstance(mode, str) or mode not in _GRADIENTS:
        raise ModelError(
            f"ssl_config.pdae_mode is one of {', '.join(_GRADIENTS)}, got {quoted(mode)}.", remedy=RESTORE_CONFIG
        )
    return _GRADIENTS[mode]


def _scheduler(config: Mapping[str, Any]) -> DDPMScheduler:
    default = {"timesteps": 1000, "linear_beta_start": 1e-4, "linear_beta_end": 0.02}
    return official_scheduler(config.get("diffusion_config") or default)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise ModelError(
            f"The run's config.yml has no {name}; it has {shortened(', '.join(map(str, config)))}.",
            remedy=RESTORE_CONFIG,
        )
    return section


def _crop(data: Mapping[str, Any]) -> Crop:
    return "celeba" if data.get("name") == "CELEBA64" else "center"


def _step(content: Mapping[str, Any]) -> int | None:
    return content["step"] if isinstance(content.get("step"), int) else None
