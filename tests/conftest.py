"""Tiny models shared by the tests.

Nothing here imports diffusers at the top: it imports Triton, whose interpreter tests/ops/conftest.py must be
able to choose first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from diticli.chunks import ChunkLayout

SIZE, CHUNKS, LATENT_DIM = 16, 4, 16

# Every way in which the bases on the Hub, the official checkpoints and our own presets differ.
UNET_SHAPES: dict[str, dict[str, Any]] = {
    "conv-default": {"kinds": "DA", "resampling": "conv", "shift": "default"},
    "conv-scale_shift": {"kinds": "DD", "resampling": "conv", "shift": "scale_shift"},
    "resnet-default": {"kinds": "RR", "resampling": "resnet", "shift": "default"},
    "resnet-scale_shift": {"kinds": "RA", "resampling": "resnet", "shift": "scale_shift"},
    "ddpm-cifar10-32": {
        "kinds": "DADD",
        "channels": (8, 16, 16, 16),
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 1,
        "attention_head_dim": None,
    },
    "ddpm-celebahq-256": {
        "kinds": "DDDDAD",
        "channels": (8, 8, 8, 8, 16, 16),
        "size": 32,
        "layers_per_block": 2,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "mid_block_scale_factor": 1,
        "attention_head_dim": None,
    },
    "without-attention": {"kinds": "DD", "add_attention": False},
    "centred-and-scaled": {"kinds": "DA", "center_input_sample": True, "mid_block_scale_factor": 2**0.5},
}
_KINDS = {"D": "{way}Block2D", "A": "Attn{way}Block2D", "R": "Resnet{way}sampleBlock2D"}


def tiny_unet_config(
    kinds: str = "DA",
    *,
    channels: tuple[int, ...] = (8, 16),
    size: int = SIZE,
    resampling: str = "conv",
    shift: str = "default",
    **others: Any,
) -> dict[str, Any]:
    """Config of a small `UNet2DModel`; one letter a level: D plain, A with attention, R resnet resampling."""
    return {
        "sample_size": size,
        "block_out_channels": channels,
        "down_block_types": tuple(_KINDS[kind].format(way="Down") for kind in kinds),
        "up_block_types": tuple(_KINDS[kind].format(way="Up") for kind in reversed(kinds)),
        "layers_per_block": 1,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "resnet_time_scale_shift": shift,
        "norm_num_groups": 4,
        "attn_norm_num_groups": 4,
        "attention_head_dim": 4,
        **others,
    }


def perturb(module: torch.nn.Module, scale: float = 0.2) -> torch.nn.Module:
    """Move every parameter off its initial value, so that no zero hides a path."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves the one it found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def layout() -> ChunkLayout:
    """Four chunks of four dims."""
    return ChunkLayout.uniform(chunks=CHUNKS, latent_dim=LATENT_DIM)


@pytest.fixture(scope="session")
def unet_shapes() -> dict[str, dict[str, Any]]:
    """Name -> arguments of `make_unet`."""
    return UNET_SHAPES


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """(shape name or kinds, **config) -> a frozen `UNet2DModel` in eval mode with nothing left at zero."""
    from diffusers import UNet2DModel

    def make(shape: str = "DA", **others: Any) -> Any:
        arguments = dict(UNET_SHAPES.get(shape, {"kinds": shape})) | others
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = perturb(UNet2DModel(**tiny_unet_config(**arguments)), 0.05)
        return unet.requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def make_pipeline(make_unet: Callable[..., Any], layout: ChunkLayout) -> Callable[..., Any]:
    """(**overrides) -> a tiny `DiTiPipeline` with random weights."""
    from diffusers import DDIMScheduler

    from diticli.models.encoder import SemanticEncoder
    from diticli.models.pipeline import DiTiPipeline
    from diticli.models.shift_decoder import ShiftDecoder

    def make(**overrides: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            unet = make_unet()
            parts = {
                "unet": unet,
                "encoder": SemanticEncoder(SIZE, 3, (8, 8), LATENT_DIM, 8, 2, 4),
                "shift_decoder": perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)),
                "scheduler": DDIMScheduler(),
                "chunk_layout": layout.to_dict(),
            }
            return DiTiPipeline(**parts | overrides)

    return make
