"""The encoder as a diffusers model, with its config, loading and saving; `EncoderBody` is what it computes."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from diticli.models.encoder_body import EncoderBody


class SemanticEncoder(EncoderBody, ModelMixin, ConfigMixin):
    """Feature encoder.

    Args:
        sample_size: image height and width; must be divisible by 2^len(widths).
        in_channels: image channels.
        widths: output channels of each stride-2 convolution.
        latent_dim: d, length of the feature vector.
        attention_size: the attention block stands where the map is this high and wide (none if never).
        attention_heads: number of heads.
        norm_num_groups: groups of every GroupNorm.

    Raises:
        ConfigError: when the sizes do not divide.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 64,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 128, 128),
        latent_dim: int = 512,
        attention_size: int = 16,
        attention_heads: int = 4,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__(sample_size, in_channels, widths, latent_dim, attention_size, attention_heads, norm_num_groups)
