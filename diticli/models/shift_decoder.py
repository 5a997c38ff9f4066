"""The shift decoder as a diffusers model, with its config, loading and saving; `ShiftBody` is what it computes."""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from diticli.models.shift_body import ChunkWindows, ShiftBody, ShiftResnetBlock2D, zero_

__all__ = ["ChunkWindows", "ShiftDecoder", "ShiftResnetBlock2D", "zero_"]


class ShiftDecoder(ShiftBody, ModelMixin, ConfigMixin):
    """Shift branch for one base UNet.

    Args:
        unet_config: the base's `UNet2DModel` config.
        latent_dim: d, length of the (masked) feature vector.
    """

    @register_to_config
    def __init__(self, unet_config: dict[str, Any], latent_dim: int = 512) -> None:
        super().__init__(unet_config, latent_dim)

    @classmethod
    def for_unet(cls, unet: UNet2DModel, latent_dim: int) -> ShiftDecoder:
        """A freshly initialised branch for `unet`."""
        config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        return cls(unet_config=config, latent_dim=latent_dim)
