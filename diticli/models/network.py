"""The base class of base, encoder and shift decoder: settings, saved in and loaded from diffusers' folders.

The folder holds `config.json` and safetensors weights, as those of diffusers' models do. It is read and written here
without diffusers, whose import takes longer than editing a pair of images.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from diticli.errors import DiTiError, ModelError
from diticli.files import write_bytes
from diticli.models.hub import first_line
from diticli.reading import parse_json, quoted, read_regular

STEM = "diffusion_pytorch_model"
WEIGHTS = f"{STEM}.safetensors"
PRECISIONS = ("fp16", "bf16", "fp32")
"""Variants of weights that are the same weights in another precision."""
_REMEDY = "Train or copy it again; its weights must be safetensors."


class Config(dict[str, Any]):
    """Settings by key and by attribute, like a diffusers config."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The config has no entry {name!r}.") from None


class OtherWeightsError(ModelError):
    """Weights that are not those of the network's config."""


class Network(nn.Module):
    """A network that knows its settings.

    Attributes:
        config: all arguments that it was built with.
    """

    STORED_AS: ClassVar[str]
    """Name of its class in `config.json`."""

    config: Config

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return next(self.parameters()).device

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """Write settings and weights into a folder, as diffusers' models do.

        Args:
            save_directory: the folder, which is made where there is none.
            variant: goes into the name of the weights' file, e.g. "fp16".
            max_shard_size: from which the weights are written as several files.

        Raises:
            OSError: when it cannot be written.
        """
        # Imported here: what only runs a network does without.
        from huggingface_hub import save_torch_state_dict

        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        written_by = {"_class_name": self.STORED_AS, "_diffusers_version": importlib.metadata.version("diffusers")}
        write_bytes(
            folder / "config.json", (json.dumps(written_by | self.config, indent=2, sort_keys=True) + "\n").encode()
        )
        save_torch_state_dict(
            self.state_dict(),
            folder,
            filename_pattern=f"{STEM}.{variant}{{suffix}}.safetensors" if variant else f"{STEM}{{suffix}}.safetensors",
            max_shard_size=max_shard_size,
        )

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, torch_dtype: torch.dtype | None = None, **others: Any
    ) -> Self:
        """The network that `save_pretrained`, this one or diffusers', wrote into a folder; in eval mode, on the CPU.

        Args:
            folder: with `config.json` and safetensors weights, in one file or several.
            torch_dtype: of its parameters; None: float32.
            others: options of diffusers, which change nothing here.

        Raises:
            ModelError: when it is damaged or not to be found; `OtherWeightsError` when settings and weights differ.
        """
        folder = Path(folder)
        try:
            settings = cls._known(dict(parse_json(read_regular(folder / "config.json"))))
            with torch.device("meta"), _Undrawn():
                network = cls(**settings)
            weights = _read_weights(folder)
        except DiTiError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, RecursionError) as error:
            reason = (
                f"{error.strerror}: {error.filename}" if isinstance(error, FileNotFoundError) else first_line(error)
            )
            raise ModelError(f"Cannot load the model in {folder}: {reason}", remedy=_REMEDY) from error
        network._take(weights, folder, torch_dtype or torch.float32)
        return network.eval()

    @classmethod
    def _known(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings among the entries of a `config.json`.

        Raises:
            ModelError: for one that is unknown here and not switched off.
        """
        known = inspect.signature(cls).parameters
        own = {key: value for key, value in config.items() if not key.startswith("_")}
        if unknown := [key for key, value in own.items() if key not in known and value not in (None, False)]:
            names = ", ".join(unknown)[:200]
            raise ModelError(f"A {cls.__name__} has settings that are unknown here ({names}).", remedy=_REMEDY)
        return {key: value for key, value in own.items() if key in known}

    def _take(self, weights: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
        expected = self.state_dict()
        missing, extra = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        if missing or extra:
            found = [f"lacks weights: {quoted(missing[:3])}"] * bool(missing)
            found += [f"has too many: {quoted(extra[:3])}"] * bool(extra)
            raise OtherWeightsError(f"The model in {folder} {' and '.join(found)}.", remedy="Train or copy it again.")
        if bad := [name for name in expected if expected[name].shape != weights[name].shape]:
            raise OtherWeightsError(
                f"Cannot load the model in {folder}: {bad[0]} is {list(weights[bad[0]].shape)} "
                f"where {list(expected[bad[0]].shape)} belongs.",
                remedy=_REMEDY,
            )
        self.load_state_dict({name: tensor.to(dtype) for name, tensor in weights.items()}, assign=True)


class _Undrawn(TorchFunctionMode):
    """Within it layers draw no initial weights, which takes half the time of building a network to be loaded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """All weights in a folder, on the CPU."""
    index = folder / f"{WEIGHTS}.index.json"
    single = [folder / WEIGHTS, *(folder / f"{STEM}.{precision}.safetensors" for precision in PRECISIONS)]
    if index.is_file() and not single[0].is_file():
        names = {Path(str(name)).name for name in parse_json(read_regular(index))["weight_map"].values()}
        return {key: value for name in sorted(names) for key, value in load_file(folder / name).items()}
    file = next((file for file in single if file.is_file()), None)
    if file is None:
        raise ModelError(f"Cannot load the model in {folder}: there is no file named {WEIGHTS}.", remedy=_REMEDY)
    return load_file(file)
