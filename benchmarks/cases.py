"""The model sizes that are measured, in the official code's own configuration terms and in ours.

`small64` is the size of our `faces32` demo in official terms: the official encoders exist for 64 and 128 pixels only.
Dropout is 0 on both sides, or the two could not be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import DDIMScheduler

from diticli.config import RunConfig
from diticli.data.images import FaceImages
from diticli.models.encoder import SemanticEncoder
from diticli.models.pipeline import DiTiPipeline
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.official.chunks import official_chunks
from diticli.official.config import encoder_config, official_scheduler, unet_config
from diticli.settings import build_config

TIMESTEPS = 1000
DIFFUSION = {"timesteps": TIMESTEPS, "betas_type": "linear", "linear_beta_start": 1e-4, "linear_beta_end": 0.02}
PAPER_CHUNKS = {"k": 64, "stages": "50,100,300,500,1000", "dims_per_stage": "10,25,327,100,50"}
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size.

    Attributes:
        name: what the command line calls it.
        resolution: pixels.
        encoder: official class of the encoder.
        latent_dim: d.
        denoise_fn: official config of the base.
        chunks: official config of the chunks.
        preset: ours.
        settings: where ours differs from the preset, by dotted key.
    """

    name: str
    resolution: int
    encoder: str
    latent_dim: int
    denoise_fn: dict[str, Any]
    chunks: dict[str, Any]
    preset: str
    settings: dict[str, Any]

    def write_configs(self, folder: Path, gradient: str = "base") -> None:
        """`config.yml` and `ddpm_config.yml`, as an official run keeps them."""
        config = {
            "train_dataset_config": {"name": "FACES", "image_size": self.resolution, "latent_dim": self.latent_dim},
            "diffusion_config": DIFFUSION,
            "trained_ddpm_config": "ddpm_config.yml",
            "encoder_config": {"model": self.encoder, "latent_dim": self.latent_dim},
            "decoder_config": {"model": self.encoder.replace("Encoder", "Decoder"), "latent_dim": self.latent_dim},
            "ssl_config": {**self.chunks, "ssl_method": "simclr", "pdae_mode": gradient},
        }
        ddpm = {"denoise_fn_config": self.denoise_fn, "diffusion_config": DIFFUSION}
        for name, content in (("config.yml", config), ("ddpm_config.yml", ddpm)):
            (folder / name).write_text(yaml.safe_dump(content))

    def run_config(self, *, batch_size: int, device: torch.device, precision: str, **changes: Any) -> RunConfig:
        """Settings of our training run of this size."""
        options = {
            **self.settings,
            "features.batch_size": batch_size,
            "features.images": batch_size * 1_000_000,
            "data.horizontal_flip": False,
            "device": device.type,
            "precision": precision,
        }
        return build_config(self.preset, options=options | changes)


def _denoise_fn(base: int, multipliers: list[int], layers: int, attention: list[int]) -> dict[str, Any]:
    return {
        "input_channel": 3,
        "base_channel": base,
        "channel_multiplier": multipliers,
        "num_residual_blocks_of_a_block": layers,
        "attention_resolutions": attention,
        "num_heads": 1,
        "head_channel": -1,
        "use_new_attention_order": False,
        "dropout": 0.0,
    }


CASES = {
    case.name: case
    for case in (
        Case(
            name="tiny64",
            resolution=64,
            encoder="CELEBA64Encoder",
            latent_dim=64,
            denoise_fn=_denoise_fn(32, [1, 2], 1, [2]),
            chunks={"k": 20, "stages": "50,100,300,500,1000", "dims_per_stage": "4,6,30,14,10"},
            preset="celeba64",
            settings={"chunks.count": 20, "chunks.latent_dim": 64, "chunks.stage_dims": [4, 6, 30, 14, 10]},
        ),
        Case(
            name="small64",
            resolution=64,
            encoder="CELEBA64Encoder",
            latent_dim=128,
            denoise_fn=_denoise_fn(32, [1, 2, 2], 1, []),
            chunks={"k": 16},
            preset="celeba64",
            settings={"chunks.count": 16, "chunks.latent_dim": 128, "chunks.partition": "uniform"},
        ),
        Case(
            name="celeba64",
            resolution=64,
            encoder="CELEBA64Encoder",
            latent_dim=512,
            denoise_fn=_denoise_fn(64, [1, 2, 4, 8], 2, [4]),
            chunks=PAPER_CHUNKS,
            preset="celeba64",
            settings={},
        ),
        Case(
            name="ffhq128",
            resolution=128,
            encoder="FFHQEncoder",
            latent_dim=512,
            denoise_fn=_denoise_fn(128, [1, 1, 2, 3, 4], 2, [8]),
            chunks=PAPER_CHUNKS,
            preset="ffhq128",
            settings={},
        ),
    )
}


def random_pipeline(case: Case) -> DiTiPipeline:
    """Our modules of this size with seeded random weights, nothing left at zero; needs no official code."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        config = unet_config(case.denoise_fn, case.resolution)
        unet, shift = UNet(**config), ShiftDecoder(unet_config=config, latent_dim=case.latent_dim)
        for parameter in (*unet.parameters(), *shift.parameters()):
            if parameter.ndim > 1 and not parameter.any():
                parameter.data.normal_(std=0.5 * parameter[0].numel() ** -0.5)
        return DiTiPipeline(
            unet.requires_grad_(False),
            SemanticEncoder(**encoder_config(case.encoder, case.latent_dim)),
            shift,
            DDIMScheduler.from_config(official_scheduler(DIFFUSION).config),
            official_chunks(case.chunks, case.latent_dim, TIMESTEPS).layout.to_dict(),
        )


def pictures(case: Case, count: int) -> torch.Tensor:
    """Built-in faces, uint8 [count, 3, R, R] on the CPU."""
    faces = FaceImages(count, SEED, case.resolution)
    return torch.from_numpy(np.stack([faces.load(i) for i in range(count)])).permute(0, 3, 1, 2).contiguous()
