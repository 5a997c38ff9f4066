"""A network without diffusers: what `ModelMixin` and `ConfigMixin` give that running it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Config(dict[str, Any]):
    """Settings by key and by attribute, like a diffusers config."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"The config has no entry {name!r}.") from None


class PlainNetwork(nn.Module):
    """A network that knows its config.

    Attributes:
        config: its settings.
    """

    config: Config

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Of its parameters."""
        return next(self.parameters()).device
