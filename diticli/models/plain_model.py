"""A saved pipeline, read and run without diffusers.

Importing diffusers takes longer than editing a pair of images. `load_plain` reads the files that `save_pretrained`
of `DiTiPipeline` writes, as long as they hold nothing but what it knows: one file of float32 or float16
weights for each part (they run in float32), all settings present and none of them new.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diticli.chunks import ChunkLayout
from diticli.errors import DiTiError, ModelError
from diticli.models.encoder_body import EncoderBody
from diticli.models.gate import check_base_config, check_scheduler
from diticli.models.hub import first_line, pipeline_folder
from diticli.models.model import DiTiModel
from diticli.models.plain import Config, PlainNetwork
from diticli.models.plain_unet import DEFAULTS, HEADS, PlainUNet
from diticli.models.shift_body import ShiftBody
from diticli.schedule import NoiseSchedule

logger = logging.getLogger(__name__)

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PARTS = {
    "unet": ["diffusers", "UNet2DModel"],
    "encoder": ["diticli", "SemanticEncoder"],
    "shift_decoder": ["diticli", "ShiftDecoder"],
}
_Network = TypeVar("_Network", bound=PlainNetwork)


class _LeftToDiffusersError(Exception):
    """Something sound, perhaps, that is not written for this reader."""


class PlainEncoder(EncoderBody):
    """`SemanticEncoder` without diffusers; takes its config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(**config)
        self.config = Config(config)


class PlainShift(ShiftBody):
    """`ShiftDecoder` without diffusers; takes its config."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(**config)
        self.config = Config(config)


class PlainModel(DiTiModel):
    """A `DiTiPipeline` without diffusers: it runs, and cannot be saved.

    Args:
        unet: the frozen base; None for an encoder alone.
        encoder: images -> features.
        shift_decoder: what the features add to the base's noise estimate; None for an encoder alone.
        schedule: of the noise.
        config: of the pipeline: chunk_layout, shift_form and crop.

    Raises:
        ChunkError: for an impossible layout.
        ModelError: when the parts do not fit each other.
    """

    def __init__(
        self,
        unet: PlainUNet | None,
        encoder: PlainEncoder,
        shift_decoder: PlainShift | None,
        schedule: NoiseSchedule,
        config: Config,
    ) -> None:
        self.unet, self.encoder, self.shift_decoder, self.config = unet, encoder, shift_decoder, config
        self._set_up(schedule, ChunkLayout.from_dict(config.chunk_layout))

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.encoder.device

    def to(self, device: torch.device) -> Self:
        """Move everything; returns the model."""
        for module in (*self.networks.values(), self.schedule, self.windows):
            module.to(device)
        return self


def load_plain(name: str) -> PlainModel | None:
    """The model that a path, a run directory or a Hub id names, on the CPU; None where diffusers has to read it.

    A model that only diffusers can read is left to it with a warning that says why.

    Raises:
        ModelError: when there is no such model, it is damaged, it names code outside diffusers and diticli, or
            the gate (`diticli.models.gate`) refuses it.
    """
    folder = pipeline_folder(name)
    try:
        model = _read(folder)
    except _LeftToDiffusersError as reason:
        logger.warning("diffusers reads this model, which takes some seconds more: %s", reason)
        return None
    except DiTiError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"Cannot load the model in {folder}: {first_line(error)}",
            remedy="Train or copy it again; its weights must be safetensors.",
        ) from error
    model.model_id = name
    return model


def _read(folder: Path) -> PlainModel:
    index = _json(folder / "model_index.json")
    for part, named in _PARTS.items():
        if index.get(part) != named and (part == "encoder" or index.get(part) != [None, None]):
            raise _LeftToDiffusersError(f"{part} is {index.get(part)}.")
    if index.get("_class_name") != "DiTiPipeline":
        raise _LeftToDiffusersError(f"The pipeline is a {index.get('_class_name')}.")
    if missing := [key for key in ("chunk_layout", "shift_form", "crop") if key not in index]:
        raise _LeftToDiffusersError(f"{folder / 'model_index.json'} has no {', '.join(missing)}.")
    has_base = index["unet"] != [None, None]
    has_shift = index["shift_decoder"] != [None, None]
    unet = _network(PlainUNet, folder / "unet", {*DEFAULTS}) if has_base else None
    encoder = _network(PlainEncoder, folder / "encoder", _arguments(EncoderBody))
    shift = _network(PlainShift, folder / "shift_decoder", _arguments(ShiftBody)) if has_shift else None
    settings = {key: index[key] for key in ("chunk_layout", "shift_form", "crop")}
    return PlainModel(unet, encoder, shift, _schedule(folder / "scheduler"), Config(settings))


def _network(kind: type[_Network], folder: Path, known: set[str]) -> _Network:
    stored = _json(folder / "config.json")
    if kind is PlainUNet:
        check_base_config(stored)
    config = {key: value for key, value in stored.items() if not key.startswith("_")}
    if odd := (config.keys() ^ known) - {HEADS}:
        raise _LeftToDiffusersError(f"The config in {folder} lacks entries or has new ones: {sorted(odd)}.")
    with torch.device("meta"):
        network = kind(config)
    if not (folder / WEIGHTS).is_file():
        raise _LeftToDiffusersError(f"There is no {WEIGHTS} in {folder}.")
    weights = load_file(folder / WEIGHTS)
    if odd_types := {tensor.dtype for tensor in weights.values()} - {torch.float32, torch.float16}:
        raise _LeftToDiffusersError(f"The weights in {folder} are {odd_types}.")
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    except RuntimeError as error:  # older names of weights, or damage: diffusers knows which
        raise _LeftToDiffusersError(f"The weights in {folder} have other names or shapes.") from error
    return network


def _schedule(folder: Path) -> NoiseSchedule:
    config = Config(_json(folder / "scheduler_config.json"))
    check_scheduler(config, str(folder))
    if config.beta_schedule != "linear" or config.get("trained_betas") or config.get("rescale_betas_zero_snr"):
        raise _LeftToDiffusersError(f"The schedule in {folder} is not linear.")
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float32)
    return NoiseSchedule(1.0 - betas)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def _arguments(kind: type) -> set[str]:
    return {*inspect.signature(kind).parameters}
