"""A saved pipeline, read and run without diffusers.

Importing diffusers takes longer than editing a pair of images. `load_plain` reads the files that `save_pretrained`
of `DiTiPipeline` writes, as long as they hold nothing but what it knows: one file of float32 or float16
weights for each part (they run in float32), all settings present and none of them new.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from diticli.chunks import ChunkLayout
from diticli.errors import DiTiError
from diticli.models.encoder_body import EncoderBody
from diticli.models.hub import pipeline_folder
from diticli.models.model import DiTiModel
from diticli.models.plain import Config, PlainNetwork
from diticli.models.plain_unet import DEFAULTS, HEADS, PlainUNet
from diticli.models.shift_body import ShiftBody
from diticli.models.unet import check_base
from diticli.schedule import NoiseSchedule

WEIGHTS = "diffusion_pytorch_model.safetensors"
_PARTS = {
    "unet": ["diffusers", "UNet2DModel"],
    "encoder": ["diticli", "SemanticEncoder"],
    "shift_decoder": ["diticli", "ShiftDecoder"],
}
_Network = TypeVar("_Network", bound=PlainNetwork)


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

    Raises:
        ModelError: when there is no such model, or it names code outside diffusers and diticli.
    """
    folder = pipeline_folder(name)
    try:
        model = _read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError, DiTiError):
        return None  # diffusers reads more, and says better what is wrong
    model.model_id = name
    return model


def _read(folder: Path) -> PlainModel:
    index = _json(folder / "model_index.json")
    for part, named in _PARTS.items():
        if index[part] != named and (part == "encoder" or index[part] != [None, None]):
            raise ValueError(f"{part} is {index[part]}.")
    if index["_class_name"] != "DiTiPipeline":
        raise ValueError(f"The pipeline is a {index['_class_name']}.")
    has_base = index["unet"] != [None, None]
    has_shift = index["shift_decoder"] != [None, None]
    unet = _network(PlainUNet, folder / "unet", {*DEFAULTS}) if has_base else None
    if unet is not None:
        check_base(unet)
    encoder = _network(PlainEncoder, folder / "encoder", _arguments(EncoderBody))
    shift = _network(PlainShift, folder / "shift_decoder", _arguments(ShiftBody)) if has_shift else None
    settings = {key: index[key] for key in ("chunk_layout", "shift_form", "crop")}
    return PlainModel(unet, encoder, shift, _schedule(folder / "scheduler"), Config(settings))


def _network(kind: type[_Network], folder: Path, known: set[str]) -> _Network:
    config = {key: value for key, value in _json(folder / "config.json").items() if not key.startswith("_")}
    if odd := (config.keys() ^ known) - {HEADS}:
        raise ValueError(f"The config in {folder} lacks entries or has new ones: {sorted(odd)}.")
    with torch.device("meta"):
        network = kind(config)
    weights = load_file(folder / WEIGHTS)
    if odd_types := {tensor.dtype for tensor in weights.values()} - {torch.float32, torch.float16}:
        raise ValueError(f"The weights in {folder} are {odd_types}.")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    return network


def _schedule(folder: Path) -> NoiseSchedule:
    config = Config(_json(folder / "scheduler_config.json"))
    if config.beta_schedule != "linear" or config.trained_betas is not None or config.get("rescale_betas_zero_snr"):
        raise ValueError(f"The schedule in {folder} is not linear.")
    betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float32)
    return NoiseSchedule(1.0 - betas)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes()))


def _arguments(kind: type) -> set[str]:
    return {*inspect.signature(kind).parameters}
