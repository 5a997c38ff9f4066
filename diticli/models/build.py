"""Networks from a run's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diticli.config import RunConfig
from diticli.config_groups import UNetConfig
from diticli.models.encoder import SemanticEncoder
from diticli.models.unet import UNet

if TYPE_CHECKING:
    from diticli.models.pipeline import DDPMScheduler


def build_unet(config: UNetConfig, resolution: int, channels: int = 3) -> UNet:
    """A freshly initialised base for square images of `resolution` pixels and 1 or 3 channels."""
    sizes = [resolution // 2**level for level in range(len(config.channels))]
    plain = "Resnet{way}sampleBlock2D" if config.resampling == "resnet" else "{way}Block2D"

    def kinds(way: str) -> list[str]:
        return [f"Attn{way}Block2D" if size in config.attention_sizes else plain.format(way=way) for size in sizes]

    return UNet(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        down_block_types=tuple(kinds("Down")),
        up_block_types=tuple(reversed(kinds("Up"))),
        downsample_type=config.resampling,
        upsample_type=config.resampling,
        resnet_time_scale_shift=config.time_scale_shift,
        attention_head_dim=config.head_dim or None,
        norm_num_groups=config.norm_groups,
        attn_norm_num_groups=config.norm_groups,
        norm_eps=1e-5,
        dropout=config.dropout,
    )


def build_encoder(config: RunConfig) -> SemanticEncoder:
    """A freshly initialised encoder."""
    return SemanticEncoder(
        sample_size=config.data.resolution,
        in_channels=config.data.channels,
        widths=config.encoder.widths,
        latent_dim=config.chunks.latent_dim,
        attention_size=config.encoder.attention_size,
        attention_heads=config.encoder.attention_heads,
    )


def new_scheduler() -> DDPMScheduler:
    """The schedule of the DDPM paper: beta linear from 1e-4 to 0.02 over 1000 steps."""
    from diticli.models.pipeline import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False)
