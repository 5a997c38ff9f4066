"""The base as training and sampling run it: a copy in one dtype, with all that its weights imply computed once.

The copy holds diffusers' own modules, some exchanged for their equals: attention projects q, k and v at once
(diffusers' `fuse_projections`), and repetition followed by a 3x3 convolution becomes one transposed convolution.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from diticli.models.layout import layout_for
from diticli.models.modulation import PathWeights, gather_weights
from diticli.models.plain_blocks import is_attention, is_resnet, is_upsampling
from diticli.models.unet import DownFeatures, down_resnets, predict_noise, run_down_path, up_resnets

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from diticli.models.plain_unet import PlainUNet

# Measured on a Xeon with AMX, batch 4 to 64: 1.2 to 2.4 times as fast up to 256 channels, at 512 as slow in bf16.
# On GPUs unmeasured: 4/9 of the products.
MERGED_WIDTH = 256


class FrozenBase(nn.Module):
    """An inference copy of a base: no gradient, no autocast, always in eval mode.

    The time embedding and all that modulates stay in float32; they cost next to nothing.

    Args:
        unet: a base that passes `diticli.models.gate.check_base`; left as it is.
        dtype: in which the copy computes.
        merge_up_to: widest map whose doubling is merged with the convolution that follows; 0 merges none.
    """

    def __init__(
        self, unet: UNet2DModel | PlainUNet, dtype: torch.dtype = torch.bfloat16, *, merge_up_to: int = MERGED_WIDTH
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.unet = copy.deepcopy(unet).requires_grad_(False).eval()
        for name, blocks in (("down", down_resnets(self.unet)), ("up", up_resnets(self.unet))):
            for field, value in gather_weights(blocks)._asdict().items():
                self.register_buffer(f"{name}_{field}", value.float(), persistent=False)
        to_inference(self.unet, dtype, merge_up_to=merge_up_to)
        self.eval()

    def forward(self, x_BCHW: torch.Tensor, t_B: torch.Tensor) -> tuple[torch.Tensor, DownFeatures]:
        """Noise estimate [B, C, H, W] and down-path features, in the copy's dtype (the time embedding in float32).

        Args:
            x_BCHW: noisy images, of any floating dtype.
            t_B: integer timesteps [B], or [1] for all samples.
        """
        with torch.no_grad(), torch.autocast(x_BCHW.device.type, enabled=False):
            down = run_down_path(self.unet, x_BCHW.to(self.dtype), t_B, self._weights("down"))
            return predict_noise(self.unet, down, self._weights("up")), down

    def train(self, mode: bool = True) -> Self:
        """Eval mode, whatever is asked for."""
        return super().train(False)

    def _weights(self, path: str) -> PathWeights:
        return PathWeights(*(getattr(self, f"{path}_{field}") for field in PathWeights._fields))


def to_inference(network: nn.Module, dtype: torch.dtype, *, merge_up_to: int = MERGED_WIDTH) -> None:
    """Change a frozen copy of a base or a shift decoder in place, as this module describes.

    Convolutions and attention go to `dtype`; norms, embeddings and projections stay as they are.
    """
    modules: list[Any] = list(network.modules())
    for module in modules:
        if is_attention(module):
            module.fuse_projections()
            module.to_qkv.to(dtype)
            module.to_out.to(dtype)
        elif is_upsampling(module) and module.channels <= merge_up_to:
            module.conv, module.use_conv_transpose = merge_upsampling(module.conv), True
        elif is_resnet(module) and module.up and module.in_channels <= merge_up_to:
            module.conv1 = merge_upsampling(module.conv1)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            layout = layout_for(module.weight.device, dtype)
            module.to(dtype=dtype, memory_format=layout)  # type: ignore[call-overload]
    network.requires_grad_(False)


def merge_upsampling(conv: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution that equals repeating every pixel twice each way before the 3x3 `conv`.

    Output pixel 2i sees w0 x[i-1] + (w1 + w2) x[i], output pixel 2i + 1 sees (w0 + w1) x[i] + w2 x[i+1]: with
    stride 2 and padding 1 those are the taps (w2, w1 + w2, w0 + w1, w0), along height and width alike.
    """
    weight = conv.weight.detach()
    for dim in (2, 3):
        w0, w1, w2 = weight.unbind(dim)
        weight = torch.stack([w2, w1 + w2, w0 + w1, w0], dim)
    merged = nn.ConvTranspose2d(conv.in_channels, conv.out_channels, 4, 2, 1, device=weight.device)
    merged.weight = nn.Parameter(weight.transpose(0, 1).contiguous(), requires_grad=False)
    merged.bias = None if conv.bias is None else nn.Parameter(conv.bias.detach(), requires_grad=False)
    return merged
