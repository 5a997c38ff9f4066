"""A short name for a model's weights, by which features and pictures say what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from torch import nn

from diticli.models.frozen_pair import weights_state


class Fingerprint:
    """SHA-256 (first 16 hex digits) over a text and all weights; read again only after they have changed."""

    def __init__(self) -> None:
        self._known: tuple[object, str] | None = None

    def of(self, text: str, networks: Mapping[str, nn.Module]) -> str:
        """The digits for `text` and the networks' state, buffers included."""
        state = (text, weights_state(networks.values()))
        if self._known is None or self._known[0] != state:
            self._known = state, _digest(text, networks)
        return self._known[1]


def _digest(text: str, networks: Mapping[str, nn.Module]) -> str:
    digest = hashlib.sha256(text.encode())
    for module in networks.values():
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
