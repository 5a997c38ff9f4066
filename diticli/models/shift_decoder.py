"""The shift decoder G(x_t, t, z): what the frozen base could not reconstruct.

A trainable branch shaped like the base UNet's middle and up path (the ControlNet way of building one). It
reads the base's frozen down-path features and is modulated by the time embedding and by the projected,
masked features. Method: PDAE (arXiv 2212.12990), section 3.2; DiTi (arXiv 2401.11430), section 4.2.

Legend of shape suffixes: B batch, C channels, H height, W width, D latent dim, E embedding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diti_kernels.masked_linear import masked_linear
from torch import nn

from diticli.models.heads import unet_from_config
from diticli.models.unet import DownFeatures, run_up_path


class Conditioning(NamedTuple):
    """What stands in for `temb` on its way through the stock diffusers blocks.

    Diffusers hands `temb` to its resnets untouched, so both embeddings travel in one object.
    """

    temb: torch.Tensor
    zemb: torch.Tensor


class ShiftResnetBlock2D(ResnetBlock2D):
    """A `ResnetBlock2D` that is also modulated by the features.

    h = (1 + s_z) * TimeModulatedNorm(h) + b_z, then the activation and the second convolution, where
    TimeModulatedNorm is GroupNorm(h)(1 + s_t) + b_t (`scale_shift`) or GroupNorm(h + b_t) (`default`).
    """

    def __init__(self, *, temb_channels: int, **kwargs: Any) -> None:
        super().__init__(temb_channels=temb_channels, **kwargs)
        self.z_emb_proj = nn.Linear(temb_channels, 2 * self.out_channels)

    @classmethod
    def like(cls, block: ResnetBlock2D) -> ShiftResnetBlock2D:
        """A freshly initialised twin of `block`; its second convolution starts at zero (Dhariwal & Nichol, 2021)."""
        twin = cls(
            in_channels=block.in_channels,
            out_channels=block.out_channels,
            conv_shortcut=block.use_conv_shortcut,
            dropout=block.dropout.p,
            temb_channels=block.time_emb_proj.in_features,
            groups=block.norm1.num_groups,
            groups_out=block.norm2.num_groups,
            eps=block.norm1.eps,
            skip_time_act=block.skip_time_act,
            time_embedding_norm=block.time_embedding_norm,
            output_scale_factor=block.output_scale_factor,
            use_in_shortcut=block.use_in_shortcut,
            up=block.up,
            down=block.down,
        )
        twin.nonlinearity = block.nonlinearity
        zero_(twin.conv2)
        return twin

    def forward(self, input_tensor: torch.Tensor, temb: Conditioning, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[B, C, H, W] -> [B, C', H', W'], modulated by both embeddings of `temb`."""
        h = self.nonlinearity(self.norm1(owned(input_tensor)))
        if self.upsample is not None:
            input_tensor, h = self.upsample(input_tensor), self.upsample(h)
        elif self.downsample is not None:
            input_tensor, h = self.downsample(input_tensor), self.downsample(h)
        h = self.conv1(h)
        h = self._modulate(h, temb)
        h = self.conv2(self.dropout(self.nonlinearity(h)))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return (input_tensor + h) / self.output_scale_factor

    def _modulate(self, h: torch.Tensor, conditioning: Conditioning) -> torch.Tensor:
        temb, zemb = conditioning
        time = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
        z_scale, z_shift = self.z_emb_proj(self.nonlinearity(zemb))[:, :, None, None].chunk(2, dim=1)
        if self.time_embedding_norm == "scale_shift":
            t_scale, t_shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + t_scale) + t_shift
        else:
            h = self.norm2(h + time)
        return h * (1 + z_scale) + z_shift


class ShiftDecoder(ModelMixin, ConfigMixin):
    """Shift branch for one base UNet.

    Args:
        unet_config: the base's `UNet2DModel` config.
        latent_dim: d, length of the (masked) feature vector.
    """

    @register_to_config
    def __init__(self, unet_config: dict[str, Any], latent_dim: int = 512) -> None:
        super().__init__()
        shape = unet_from_config(unet_config)
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
    def for_unet(cls, unet: UNet2DModel, latent_dim: int) -> ShiftDecoder:
        """A freshly initialised branch for `unet`."""
        config = {k: v for k, v in unet.config.items() if not k.startswith("_")}
        return cls(unet_config=config, latent_dim=latent_dim)

    def forward(
        self, down: DownFeatures, z_BD: torch.Tensor, start_B: torch.Tensor, end_B: torch.Tensor
    ) -> torch.Tensor:
        """Shift [B, C, H, W] from the base's down-path features and the leading dims [0, end) of z [B, D].

        `start` only says where gradient to z begins; see `diti_kernels.masked_linear`.
        """
        zemb = masked_linear(z_BD, start_B, end_B, self.z_embedding.weight, self.z_embedding.bias)
        h = run_up_path(self, owned(down.hidden), down.skips, Conditioning(down.temb, zemb))
        return self.conv_out(self.conv_act(self.conv_norm_out(h)))


def owned(h: torch.Tensor) -> torch.Tensor:
    """`h` as NCHW-contiguous on the CPU, unchanged elsewhere.

    PyTorch's CPU group_norm backward reads invalid memory for a channels_last input without gradient under
    trainable affine weights: exactly the shift branch's norms on frozen features.
    """
    return h.contiguous() if h.device.type == "cpu" else h


def zero_(module: nn.Module) -> None:
    """Set all parameters of `module` to zero in place."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)


def _give_features(module: nn.Module) -> None:
    """Replace every plain resnet below `module` by its feature-modulated twin; attention outputs start at zero."""
    for name, child in module.named_children():
        if isinstance(child, ResnetBlock2D):
            setattr(module, name, ShiftResnetBlock2D.like(child))
        elif isinstance(child, Attention):
            zero_(child.to_out[0])
        else:
            _give_features(child)
