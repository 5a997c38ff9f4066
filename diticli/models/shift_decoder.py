"""The shift decoder G(x_t, t, z): what the frozen base could not reconstruct.

A trainable branch shaped like the base UNet's middle and up path (the ControlNet way of building one). It
reads the base's frozen down-path features and is modulated by the time embedding and by the projected,
masked features. Method: PDAE (arXiv 2212.12990), section 3.2; DiTi (arXiv 2401.11430), section 4.2.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diti_kernels.masked_linear import masked_linear
from torch import nn
from torch.nn import functional as F

from diticli.chunks import ChunkLayout
from diticli.models.bounds import check_latent_dim
from diticli.models.modulation import gather_weights, modulate, project_features
from diticli.models.modules import ResnetBlock, SelfAttention
from diticli.models.network import Config, Network
from diticli.models.norms import norm_silu
from diticli.models.unet import UNet
from diticli.models.unet_forward import DownFeatures, run_up_path, up_resnets


class ShiftResnetBlock2D(ResnetBlock):
    """A residual block that is also modulated by the features; `ShiftDecoder` runs it.

    h = (1 + s_z) * TimeModulatedNorm(h) + b_z, then the activation and the second convolution, where
    TimeModulatedNorm is GroupNorm(h)(1 + s_t) + b_t (`scale_shift`) or GroupNorm(h + b_t) (`default`).
    """

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.z_emb_proj = nn.Linear(self.time_emb_proj.in_features, 2 * self.out_channels)

    @classmethod
    def like(cls, block: ResnetBlock) -> ShiftResnetBlock2D:
        """A freshly initialised twin of `block`; its second convolution starts at zero (Dhariwal & Nichol, 2021)."""
        twin = cls(
            in_channels=block.in_channels,
            out_channels=block.out_channels,
            temb_channels=block.time_emb_proj.in_features,
            groups=block.norm1.num_groups,
            eps=block.norm1.eps,
            time_embedding_norm=block.time_embedding_norm,
            dropout=block.dropout.p,
            output_scale_factor=block.output_scale_factor,
            up=block.up,
            down=block.down,
        )
        zero_(twin.conv2)
        return twin


class ChunkWindows(nn.Module):
    """The layout's tables on the device: what a timestep sees of z, and which of it gets gradient."""

    visible_T2: torch.Tensor
    own_T2: torch.Tensor

    def __init__(self, layout: ChunkLayout) -> None:
        super().__init__()
        self.latent_dim = layout.latent_dim
        self.register_buffer("visible_T2", torch.from_numpy(layout.visible_dims()), persistent=False)
        self.register_buffer("own_T2", torch.from_numpy(layout.own_dims()), persistent=False)


class ShiftDecoder(Network):
    """Shift branch for one base UNet.

    Args:
        unet_config: the base's `UNet2DModel` config, perhaps with `attention_heads`.
        latent_dim: d, length of the (masked) feature vector.

    Raises:
        ModelError: as `UNet`.
    """

    STORED_AS = "ShiftDecoder"

    def __init__(self, unet_config: Mapping[str, Any], latent_dim: int = 512) -> None:
        super().__init__()
        check_latent_dim(latent_dim)
        self.config = Config(unet_config=dict(unet_config), latent_dim=latent_dim)
        shape = UNet(**unet_config)
        embed_dim = shape.time_embedding.linear_2.out_features
        self.z_embedding = nn.Linear(latent_dim, embed_dim)
        self.mid_block = shape.mid_block
        self.up_blocks = shape.up_blocks
        self.conv_norm_out = shape.conv_norm_out
        self.conv_act = shape.conv_act
        self.conv_out = nn.Conv2d(shape.conv_out.in_channels, shape.config.in_channels, 3, padding=1)
        zero_(self.conv_out)
        _give_features(self)

    @classmethod
    def for_unet(cls, unet: UNet, latent_dim: int) -> ShiftDecoder:
        """A freshly initialised branch for `unet`."""
        return cls(unet_config=unet.config, latent_dim=latent_dim)

    def project(
        self,
        z_BD: torch.Tensor,
        t_B: torch.Tensor,
        windows: ChunkWindows | None,
        detach_others: bool = False,
    ) -> torch.Tensor:
        """All that the branch takes from the features: [B, M]. It is the same at all timesteps of a chunk.

        Args:
            z_BD: features.
            t_B: integer timesteps [B], or [1] for all samples.
            windows: what each timestep sees of z; None shows it whole.
            detach_others: let gradient reach the slice of z of t's own chunk only; the value is the same.
        """
        weight, bias = self.z_embedding.weight, self.z_embedding.bias
        if windows is None:
            zemb = F.linear(z_BD, weight, bias)
        else:
            own_T2 = windows.own_T2 if detach_others else None
            zemb = masked_linear(z_BD, t_B.expand(len(z_BD)), windows.visible_T2, weight, bias, own_T2=own_T2)
        return project_features(
            [block.z_emb_proj for block in up_resnets(self) if isinstance(block, ShiftResnetBlock2D)], zemb
        )

    def forward(self, down: DownFeatures, z_mod_BM: torch.Tensor) -> torch.Tensor:
        """Shift [B, C, H, W] from the base's down-path features and `project`ed features."""
        hidden, *skips = (_fitting(h, self.conv_out.weight) for h in (down.hidden, *down.skips))
        resnets = up_resnets(self)
        modulations = modulate(resnets, gather_weights(resnets), _fitting(down.temb, self.conv_out.weight), z_mod_BM)
        return self.conv_out(norm_silu(self.conv_norm_out, run_up_path(self, hidden, skips, modulations)))


def _fitting(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`h` in the dtype of the weights, such as that of a base in half precision; autocast converts by itself."""
    return h if torch.is_autocast_enabled(h.device.type) else h.to(weight.dtype)


def zero_(module: nn.Module) -> None:
    """Set all parameters of `module` to zero in place."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _give_features(module: nn.Module) -> None:
    """Replace every residual block below `module` by its feature-modulated twin; attention outputs start at zero."""
    for name, child in module.named_children():
        if isinstance(child, ResnetBlock):
            setattr(module, name, ShiftResnetBlock2D.like(child))
        elif isinstance(child, SelfAttention):
            zero_(child.to_out[0])
        else:
            _give_features(child)
