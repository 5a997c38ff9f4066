"""`DiTiPipeline`: base, encoder, shift decoder, scheduler and chunk layout as one diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.pipelines import pipeline_loading_utils

from diticli.chunks import ChunkLayout
from diticli.errors import ConfigError, ModelError
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import check_base_config, check_scheduler
from diticli.models.hub import first_line, pipeline_folder
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.models.shift_decoder import ShiftDecoder
from diticli.schedule import NoiseSchedule

# model_index.json then names our parts as ["diticli", "SemanticEncoder"], wherever they live in the package.
_OWN_CLASSES = {name: ["save_pretrained", "from_pretrained"] for name in ("SemanticEncoder", "ShiftDecoder")}
pipeline_loading_utils.LOADABLE_CLASSES["diticli"] = _OWN_CLASSES
pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(_OWN_CLASSES)

__all__ = ["DiTiPipeline", "normalise"]


class DiTiPipeline(DiTiModel, DiffusionPipeline):
    """A trained model, which diffusers loads, saves and pushes to the Hub.

    A self-supervised baseline is an encoder alone: it encodes, and refuses to predict, invert or decode.

    Args:
        unet: the frozen base; None for an encoder alone.
        encoder: images -> features.
        shift_decoder: what the features add to the base's noise estimate; None for an encoder alone.
        scheduler: the noise schedule (its betas; sampling is ours).
        chunk_layout: `ChunkLayout.to_dict()`.
        shift_form: "score" (the official sampler) or "posterior" (as trained); see `NoiseSchedule.shift_scale`.
        crop: which square of a picture it was trained on, see `diticli.data.decode.Crop`.

    Raises:
        ModelError: when the parts do not fit each other.
    """

    model_cpu_offload_seq = "encoder->unet->shift_decoder"
    _optional_components = ["unet", "shift_decoder"]  # noqa: RUF012 diffusers reads it from the class
    unet: UNet2DModel | None
    encoder: SemanticEncoder
    shift_decoder: ShiftDecoder | None

    def __init__(
        self,
        unet: UNet2DModel | None,
        encoder: SemanticEncoder,
        shift_decoder: ShiftDecoder | None,
        scheduler: DDIMScheduler,
        chunk_layout: dict[str, Any] | None = None,
        shift_form: str = "score",
        crop: str = "center",
    ) -> None:
        super().__init__()
        if chunk_layout is None:
            raise ModelError("A DiTi model needs its chunk layout.", remedy="Pass chunk_layout=layout.to_dict().")
        self.register_modules(unet=unet, encoder=encoder, shift_decoder=shift_decoder, scheduler=scheduler)
        self.register_to_config(chunk_layout=chunk_layout, shift_form=shift_form, crop=crop)
        layout = ChunkLayout.from_dict(chunk_layout)
        check_scheduler(scheduler.config, "the pipeline's scheduler")
        self._set_up(NoiseSchedule.from_scheduler(scheduler), layout)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline folder, a run directory, or a Hub id.

        Raises:
            ModelError: when there is no such model, it names code outside diffusers and diticli, or the gate
                (`diticli.models.gate`) refuses it.
            ConfigError: for a `dtype` that is no floating-point type of PyTorch.
        """
        kwargs |= {key: _dtype(kwargs[key]) for key in ("dtype", "torch_dtype") if kwargs.get(key) is not None}
        name = str(pretrained_model_name_or_path)
        folder = pipeline_folder(name)
        _check_unet(folder / "unet" / "config.json")
        try:
            # Without safetensors diffusers would unpickle.
            pipeline = super().from_pretrained(str(folder), **(kwargs | {"use_safetensors": True}))
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ModelError(
                f"Cannot load the model in {folder}: {first_line(error)}",
                remedy="Train or copy it again; its weights must be safetensors.",
            ) from error
        if unset := pipeline._unset_weights():
            raise ModelError(f"The model in {folder} lacks weights: {unset[:3]}.", remedy="Train or copy it again.")
        pipeline.model_id = name
        return pipeline

    def _unset_weights(self) -> list[str]:
        """Names of weights that no file set: diffusers only warns, and leaves them without storage."""
        return [f"{part}.{n}" for part, m in self.networks.items() for n, p in m.named_parameters() if p.is_meta]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `DiffusionPipeline.to`; moves the schedule and the mask tables along."""
        super().to(*args, **kwargs)
        self.schedule.to(self.device)
        self.windows.to(self.device)
        return self


def _check_unet(path: Path) -> None:
    """The gate before diffusers, which ignores what it does not know and builds what it can."""
    try:
        config = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return  # there is no base, or diffusers says what is wrong
    check_base_config(config)


def _dtype(named: Any) -> Any:
    """A type of PyTorch by its name, as "bfloat16"; dicts hold one for each part."""
    if isinstance(named, dict):
        return {part: _dtype(value) for part, value in named.items()}
    dtype = getattr(torch, named.removeprefix("torch."), None) if isinstance(named, str) else named
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise ConfigError(
            f"dtype is a floating-point type, got {named!r}.", remedy="Use float32, bfloat16, float16 or float64."
        )
    return dtype
