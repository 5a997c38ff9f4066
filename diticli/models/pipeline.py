"""The one file that imports diffusers: its folders, its schedulers, and `DiTiPipeline`, a model as its pipeline.

Nothing that only runs a model imports it: `diticli.models.load.load_model` reads models without diffusers.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from diticli.errors import ConfigError, ModelError
from diticli.models.attention import quiet_xformers
from diticli.models.encoder import SemanticEncoder
from diticli.models.gate import BASE_REMEDY, HEADS, check_base_config, check_scheduler
from diticli.models.hub import first_line, pipeline_folder
from diticli.models.model import STORED_AS, DiTiModel
from diticli.models.network import OtherWeightsError
from diticli.models.pixels import normalise
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.reading import read_regular
from diticli.schedule import NoiseSchedule

with quiet_xformers():
    from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline, UNet2DModel
    from diffusers.pipelines import pipeline_loading_utils
    from diffusers.training_utils import EMAModel
    from diffusers.utils import logging as diffusers_logging

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DiTiPipeline",
    "EMAModel",
    "normalise",
    "read_scheduler",
    "read_unet",
    "unet_from_diffusers",
    "unet_to_diffusers",
]


class DiTiPipeline(DiTiModel, DiffusionPipeline):
    """A trained model, which diffusers loads, saves and pushes to the Hub.

    A self-supervised baseline is an encoder alone: it encodes, and refuses to predict, invert or decode.

    Args:
        unet: the frozen base; None for an encoder alone. A `UNet2DModel` is taken as `unet_from_diffusers` takes it.
        encoder: images -> features.
        shift_decoder: what the features add to the base's noise estimate; None for an encoder alone.
        scheduler: the noise schedule (its betas; sampling is ours).
        chunk_layout: `ChunkLayout.to_dict()`.
        shift_form: "score" (the official sampler) or "posterior" (as trained); see `NoiseSchedule.shift_scale`.
        crop: which square of a picture it was trained on, see `diticli.config_groups.Crop`.
        value_range: black and white of its pictures of more than 8 bits, {"low": ..., "high": ...}.

    Raises:
        ModelError: when the parts do not fit each other.
    """

    model_cpu_offload_seq = "encoder->unet->shift_decoder"
    _optional_components = ["unet", "shift_decoder"]  # noqa: RUF012 diffusers reads it from the class

    def __init__(
        self,
        unet: UNet | UNet2DModel | None,
        encoder: SemanticEncoder,
        shift_decoder: ShiftDecoder | None,
        scheduler: DDIMScheduler,
        chunk_layout: dict[str, Any] | None = None,
        shift_form: str = "score",
        crop: str = "center",
        value_range: dict[str, float] | None = None,
    ) -> None:
        _make_parts_known()
        self.register_modules(unet=unet, encoder=encoder, shift_decoder=shift_decoder, scheduler=scheduler)
        self._name_networks()
        settings: dict[str, Any] = {"chunk_layout": chunk_layout, "shift_form": shift_form, "crop": crop}
        if value_range is not None:  # other models are stored as before
            settings["value_range"] = value_range
        self.register_to_config(**settings)
        check_scheduler(scheduler.config, "the pipeline's scheduler")
        self._set_up(NoiseSchedule.from_scheduler(scheduler))

    def __setattr__(self, name: str, value: Any) -> None:
        """As diffusers sets parts; its own UNet becomes one of ours."""
        if name == "unet" and value is not None and not isinstance(value, UNet):
            value = unet_from_diffusers(value)
        super().__setattr__(name, value)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.encoder.device

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a pipeline folder, a run directory, or a Hub id.

        Raises:
            ModelError: when there is no such model, it names code outside diffusers and diticli, or the gate
                (`diticli.models.gate`) refuses it.
            ConfigError: for a `dtype` that is no floating-point type of PyTorch.
        """
        kwargs |= {key: _dtype(kwargs[key]) for key in ("dtype", "torch_dtype") if kwargs.get(key) is not None}
        if isinstance(kwargs.get("unet"), UNet):
            kwargs["unet"] = unet_to_diffusers(kwargs["unet"])
        name = str(pretrained_model_name_or_path)
        folder = pipeline_folder(name)
        _check_configs(folder)
        _make_parts_known()
        try:
            with _heads_are_known():
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

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the model into a folder, for `from_pretrained`; options as diffusers has them."""
        _make_parts_known()
        self._name_networks()
        super().save_pretrained(str(save_directory), **kwargs)

    def _name_networks(self) -> None:
        """Name them in the config as model_index.json has them: the base is a UNet of diffusers there."""
        named = {part: STORED_AS[part] if part in self.networks else (None, None) for part in STORED_AS}
        self.register_to_config(**named)

    def _unset_weights(self) -> list[str]:
        """Names of weights that no file set: diffusers only warns, and leaves them without storage."""
        return [f"{part}.{n}" for part, m in self.networks.items() for n, p in m.named_parameters() if p.is_meta]

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """As `DiffusionPipeline.to`; moves the schedule and the mask tables along."""
        DiffusionPipeline.to(self, *args, **kwargs)
        self.schedule.to(self.device)
        self.windows.to(self.device)
        return self


def _check_configs(folder: Path) -> None:
    """The gate before diffusers, which ignores what it does not know and builds what it can, of any size."""
    if unet := _config(folder / "unet" / "config.json"):
        check_base_config(unet)
    if scheduler := _config(folder / "scheduler" / "scheduler_config.json"):
        check_scheduler(scheduler, str(folder / "scheduler"))


def _config(path: Path) -> dict[str, Any]:
    """Empty when there is none, or when diffusers says what is wrong with it."""
    try:
        return dict(json.loads(read_regular(path)))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def unet_from_diffusers(network: nn.Module) -> UNet:
    """A base that holds the parameters of a `UNet2DModel`: the same objects, without a copy.

    Raises:
        ModelError: for another network, one that the gate refuses (`diticli.models.gate`), and one whose layers were
            changed.
    """
    if not isinstance(network, UNet2DModel):
        raise ModelError(f"This base cannot be used: it is a {type(network).__name__}.", remedy=BASE_REMEDY)
    with torch.device("meta"):
        unet = UNet(**network.config)
    _share(network, unet)
    return unet.train(network.training)


def unet_to_diffusers(unet: UNet) -> UNet2DModel:
    """A `UNet2DModel` that holds the parameters of a base: the same objects, without a copy."""
    with torch.device("meta"):
        network = UNet2DModel(**{key: value for key, value in unet.config.items() if key != HEADS})
    if heads := unet.config.get(HEADS):
        network.register_to_config(**{HEADS: heads})
        for name, block in network.named_modules():
            if name.rpartition(".")[0].endswith("attentions"):
                block.heads = block.sliceable_head_dim = heads
                block.scale = (block.inner_dim // heads) ** -0.5
    _share(unet, network)
    return network.train(unet.training)


def _share(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the parameters of `source`, which must have the same names."""
    parameters, names = dict(source.named_parameters()), [name for name, _ in target.named_parameters()]
    if odd := sorted(parameters.keys() ^ {*names}):
        raise OtherWeightsError(
            f"This base cannot be used: its layers are not those of its config ({', '.join(odd[:3])}).",
            remedy="Undo what changed them, such as fused projections or adapters.",
        )
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(target.get_submodule(owner), leaf, parameters[name])


def read_unet(folder: Path, *, variant: str | None = None) -> UNet:
    """The base in a folder of diffusers, in float32; weights under the names of its older versions are known.

    Raises:
        ModelError: when weights are missing or left over, or the gate refuses it.
        OSError, ValueError, TypeError, RuntimeError: when diffusers cannot read it.
    """
    with _heads_are_known():
        # Without safetensors diffusers would unpickle.
        network, report = UNet2DModel.from_pretrained(
            str(folder), output_loading_info=True, use_safetensors=True, variant=variant
        )
    missing, extra = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    if missing or extra:
        raise OtherWeightsError(
            f"The weights in {folder} are not those of its config: missing {missing[:3]}, left over {extra[:3]}.",
            remedy="Train or copy it again.",
        )
    return unet_from_diffusers(network.float())


def read_scheduler(folder: Path) -> DDPMScheduler:
    """The scheduler in a folder of diffusers, as one of DDPM."""
    return DDPMScheduler.from_pretrained(str(folder))


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Without diffusers' own progress bar: loading takes less time than reading it."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()


def _make_parts_known() -> None:
    """Let diffusers' pipelines save and load our networks, as ["diticli", "SemanticEncoder"] in model_index.json."""
    own = {name: ["save_pretrained", "from_pretrained"] for name in ("SemanticEncoder", "ShiftDecoder", "UNet")}
    pipeline_loading_utils.LOADABLE_CLASSES["diticli"] = own
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(own)


@contextlib.contextmanager
def _heads_are_known() -> Iterator[None]:
    """Without diffusers' warning that it ignores `attention_heads`, which is not ignored here."""
    logger = logging.getLogger("diffusers.configuration_utils")

    def other(record: logging.LogRecord) -> bool:
        return f"'{HEADS}'" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)


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
