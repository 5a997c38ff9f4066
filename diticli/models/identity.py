"""The hash of a model: of its weights by content and of everything else that enters its results.

Features, directions, pictures and kept scores say by this hash which model made them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from diticli.models.network import Network

FORM = "v2-"
"""How the hash of `model_identity` begins. Hashes without it were recorded before, of layout and weights alone."""


def model_identity(networks: Mapping[str, Network], alphas_cumprod_T: torch.Tensor, settings: Mapping[str, Any]) -> str:
    """`FORM` and 16 hex digits of SHA-256 over all weights, the networks' settings, the noise schedule and the model's
    settings (chunk layout, shift_form, crop). Read anew at every call: weights may have changed in any way.
    """
    facts = {**settings, "configs": {name: _settings(network.config) for name, network in networks.items()}}
    hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    _add_tensor(hasher, alphas_cumprod_T)
    for name, network in networks.items():
        for key, value in sorted(network.state_dict().items()):
            hasher.update(f"{name}.{key} {list(value.shape)}\0".encode())
            _add_tensor(hasher, value)
    return FORM + hasher.hexdigest()[:16]


def weights_digest(networks: Mapping[str, nn.Module], text: str = "") -> str:
    """SHA-256 (first 16 hex digits) over a text and all weights, buffers included: `model_hash` before `FORM`."""
    hasher = hashlib.sha256(text.encode())
    for module in networks.values():
        for name, value in sorted(module.state_dict().items()):
            hasher.update(name.encode())
            hasher.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return hasher.hexdigest()[:16]


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A part's config without what diffusers adds of itself (`_class_name`, its version, where it was loaded from)."""
    return {key: value for key, value in config.items() if not key.startswith("_") and value is not None}


def _add_tensor(hasher: hashlib._Hash, value: torch.Tensor) -> None:
    """The dtype and the bytes, which NumPy has no name for in bfloat16."""
    hasher.update(f"{value.dtype}\0".encode())
    hasher.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
