"""Pictures of a run in progress: base samples, reconstructions, loss by timestep."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from diticli.chunks import ChunkLayout
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.models.unet import UNet
from diticli.models.unet_forward import estimate_noise
from diticli.pictures.charts import loss_by_timestep_chart
from diticli.pictures.grids import captioned_strip, psnr, save_png
from diticli.sampling import DEFAULT_STEPS, ddim_decode
from diticli.schedule import NoiseSchedule

COUNT = 8
STEPS = 50


@torch.no_grad()
def base_samples(unet: UNet, schedule: NoiseSchedule, *, seed: int, step: int, path: Path) -> None:
    """Images drawn from the base by DDIM, always from the same noise."""
    device = schedule.alphas_cumprod.device
    size = int(unet.config.sample_size)
    noise = torch.randn(
        (COUNT * 2, unet.config.in_channels, size, size), generator=torch.Generator().manual_seed(seed)
    ).to(device)

    def noise_estimate(x: torch.Tensor, t: int) -> torch.Tensor:
        return estimate_noise(unet, x, torch.tensor([t], device=device)).float()

    steps = _steps(len(schedule.alphas_cumprod))
    images = list(ddim_decode(noise_estimate, noise, schedule.alphas_cumprod, steps=steps).cpu())
    strip = captioned_strip(
        [images[:COUNT], images[COUNT:]],
        row_captions=["", ""],
        column_captions=[""] * COUNT,
        title=f"Base, step {step:,}: pictures drawn from noise (the same at every step), DDIM, {steps} steps",
    )
    save_png(strip, path)


def reconstructions(
    pipeline: DiTiPipeline, images_BCHW: torch.Tensor, *, seed: int, step: int, path: Path
) -> float | None:
    """Originals (uint8), what their features alone give back (random x_T), and features with inferred x_T.

    The first of these shows what the features have learned; the second is good from the first step on.

    Returns:
        PSNR of the last in dB, over all pixels, in as many steps as edits have by default, which are compared with it;
        None where it is no finite number.
    """
    x0 = normalise(images_BCHW[:COUNT])
    z = pipeline.encode(x0)
    sampler = pipeline.sampler()  # anew for every picture: training goes on between them
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(seed))
    timesteps = pipeline.scheduler.config.num_train_timesteps
    few = _steps(timesteps, DEFAULT_STEPS)
    rows = [
        x0,
        sampler.decode(noise, z, steps=_steps(timesteps)).cpu(),
        sampler.decode(sampler.invert(x0, z, steps=few), z, steps=few).cpu(),
    ]
    alone, quality = (psnr(row, x0) for row in rows[1:])
    strip = captioned_strip(
        [list(row) for row in rows],
        row_captions=[
            "original",
            f"features, random x_T: {alone:.1f} dB. What the features have learned.",
            f"features, inferred x_T: {quality:.1f} dB. x_T holds the picture, before any training too.",
        ],
        column_captions=[""] * len(x0),
        title=f"Features, step {step:,}",
    )
    save_png(strip, path)
    return round(quality, 2) if math.isfinite(quality) else None


def _steps(timesteps: int, wanted: int = STEPS) -> int:
    """Solver steps for a base of so many timesteps: a solver takes fewer steps than there are timesteps."""
    return min(wanted, timesteps - 1)


def loss_chart(losses: torch.Tensor, *, layout: ChunkLayout | None, title: str, path: Path) -> None:
    """Mean training loss by timestep since the last picture."""
    y_label = "loss" if layout is None else "loss, weighted by timestep"
    loss_by_timestep_chart(path, losses.numpy(), layout=layout, title=title, y_label=y_label)
