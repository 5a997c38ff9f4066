"""The encoder E: image -> feature vector z.

The architecture of PDAE and DiTi: stride-2 convolutions, each but the first behind GroupNorm and SiLU, one
attention block at 16x16, a linear head. One class with widths serves every data set.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from diticli.errors import ConfigError
from diticli.models.blocks import run_attention
from diticli.models.bounds import check_encoder_counts
from diticli.models.layout import in_layout
from diticli.models.modules import Convolution, SelfAttention
from diticli.models.network import Config, Network
from diticli.models.norms import norm_silu


class SemanticEncoder(Network):
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
        ConfigError: for counts out of bounds (`diticli.models.bounds`), and when the sizes do not divide.
    """

    STORED_AS = "SemanticEncoder"

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
        super().__init__()
        self.config = Config(
            sample_size=sample_size,
            in_channels=in_channels,
            widths=widths,
            latent_dim=latent_dim,
            attention_size=attention_size,
            attention_heads=attention_heads,
            norm_num_groups=norm_num_groups,
        )
        check_encoder_counts(**self.config)
        if sample_size % 2 ** len(widths):
            raise ConfigError(
                f"An encoder with {len(widths)} stride-2 convolutions needs a resolution divisible by "
                f"{2 ** len(widths)}, got {sample_size}.",
                remedy=f"Use a multiple of {2 ** len(widths)}, or fewer widths.",
            )
        if bad := [w for w in widths if w % norm_num_groups or w % attention_heads]:
            raise ConfigError(
                f"Encoder widths {bad} are not divisible by {norm_num_groups} groups and {attention_heads} heads.",
                remedy=f"Use multiples of both for --set encoder.widths, e.g. {norm_num_groups * attention_heads}.",
            )
        self.convs = nn.ModuleList(
            Convolution(cin, cout, 2) for cin, cout in zip((in_channels, *widths[:-1]), widths, strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(norm_num_groups, width) for width in widths)
        sizes = [sample_size // 2 ** (i + 1) for i in range(len(widths))]
        self.attention_after = sizes.index(attention_size) if attention_size in sizes else -1
        self.attention = (
            _attention_block(widths[self.attention_after], attention_heads, norm_num_groups)
            if self.attention_after >= 0
            else None
        )
        self.head = nn.Linear(widths[-1] * sizes[-1] ** 2, latent_dim)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Features [B, D] of images [B, C, H, W] in [-1, 1]."""
        h = in_layout(x_BCHW)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = conv(h)
            if self.attention is not None and i == self.attention_after:
                h = run_attention(self.attention, h)
            h = norm_silu(norm, h)
        return self.head(h.flatten(1))


def _attention_block(channels: int, heads: int, groups: int) -> SelfAttention:
    """Self-attention with its own norm and residual; the output projection starts at zero."""
    block = SelfAttention(channels, heads=heads, dim_head=channels // heads, groups=groups, eps=1e-5)
    for parameter in block.to_out.parameters():
        nn.init.zeros_(parameter)
    return block
