"""A saved model, read without diffusers, whose import takes longer than editing a pair of images."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from diticli.errors import DiTiError, ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import check_base_config, check_scheduler
from diticli.models.hub import first_line, pipeline_folder
from diticli.models.model import STORED_AS, DiTiModel
from diticli.models.network import Config, OtherWeightsError
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.reading import read_regular
from diticli.schedule import NoiseSchedule

logger = logging.getLogger(__name__)

SETTINGS = {"chunk_layout": None, "shift_form": "score", "crop": "center", "value_range": None}
"""Settings of a model in `model_index.json`, and what is meant where one is missing."""


def read_model(name: str) -> DiTiModel:
    """The model that a path, a run directory or a Hub id names, on the CPU in float32.

    Raises:
        ModelError: when there is no such model, it is damaged, it names code outside diffusers and diticli, or
            the gate (`diticli.models.gate`) refuses it.
    """
    folder = pipeline_folder(name)
    try:
        model = _read(folder)
    except DiTiError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"Cannot load the model in {folder}: {first_line(error)}",
            remedy="Train or copy it again; its weights must be safetensors.",
        ) from error
    model.model_id = name
    return model


def _read(folder: Path) -> DiTiModel:
    index = _json(folder / "model_index.json")
    named = {part: tuple(index.get(part) or (None, None)) for part in STORED_AS}
    for part, stored_as in STORED_AS.items():
        if named[part] != stored_as and (part == "encoder" or named[part] != (None, None)):
            raise ModelError(
                f"Cannot load the model in {folder}: its {part} is {named[part]}.", remedy="Train or copy it again."
            )
    settings = {key: index.get(key, default) for key, default in SETTINGS.items()}
    return DiTiModel(
        None if named["unet"] == (None, None) else _unet(folder / "unet"),
        SemanticEncoder.from_pretrained(folder / "encoder"),
        None if named["shift_decoder"] == (None, None) else ShiftDecoder.from_pretrained(folder / "shift_decoder"),
        _schedule(folder / "scheduler"),
        Config(settings),
    )


def _unet(folder: Path) -> UNet:
    check_base_config(_json(folder / "config.json"))
    try:
        return UNet.from_pretrained(folder)
    except OtherWeightsError as reason:
        # Diffusers knows the names that its older versions gave to the weights of attention.
        logger.warning("diffusers reads this base, which takes some seconds more: %s", reason)
        from diticli.models.pipeline import read_unet

        return read_unet(folder)


def _schedule(folder: Path) -> NoiseSchedule:
    config = Config(_json(folder / "scheduler_config.json"))
    check_scheduler(config, str(folder))
    if config.beta_schedule != "linear" or config.get("trained_betas") or config.get("rescale_betas_zero_snr"):
        logger.warning("diffusers reads this model's noise schedule, which takes some seconds more: it is not linear.")
        from diticli.models.pipeline import read_scheduler

        return NoiseSchedule.from_scheduler(read_scheduler(folder))
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float32)
    return NoiseSchedule(1.0 - betas)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(read_regular(path)))
