"""Stage 2 from a run's settings: what is trained, and what it is given."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from diticli.config import RunConfig
from diticli.distributed import Rank
from diticli.models.build import build_encoder
from diticli.models.frozen import FrozenBase
from diticli.models.pipeline import DDPMScheduler
from diticli.models.reconstruction_gap import GapCurve
from diticli.models.shift_decoder import ShiftDecoder
from diticli.models.unet import UNet
from diticli.schedule import NoiseSchedule
from diticli.training.augment import StepViews, augmentation_of
from diticli.training.batches import fold_seed
from diticli.training.loss_weighting import kl_scale, loss_weights
from diticli.training.objectives import EncoderObjective, FeatureObjective, JointObjective
from diticli.training.ssl import build_head

STAGE = "features"


def build_objective(
    config: RunConfig, unet: UNet | None, scheduler: DDPMScheduler, gap: GapCurve | None = None
) -> FeatureObjective | JointObjective | EncoderObjective:
    """Freshly initialised networks under their losses.

    The encoder starts from the same weights whatever the loss, and so does the shift decoder. The base is computed
    by a copy in the run's precision, which costs 2 bytes per parameter in bf16 and 4 in fp32 beside the base; only
    the copy goes to the device, and no checkpoint holds it.

    Args:
        config: resolved settings.
        unet: the base, left as it is; None where the encoder is trained alone.
        scheduler: of the base.
        gap: what the base loses by timestep, where the settings need to know (`RunConfig.measures_base`).
    """
    torch.manual_seed(fold_seed(config.seed, STAGE, "weights"))
    encoder = build_encoder(config)
    if unet is None:
        return EncoderObjective(encoder, _head(config), config.ssl.weight)
    layout = config.layout(scheduler.config.num_train_timesteps, gap)
    decoder, schedule = ShiftDecoder.for_unet(unet, layout.latent_dim), NoiseSchedule.from_scheduler(scheduler)
    frozen = FrozenBase(unet, torch.bfloat16 if config.precision == "bf16" else torch.float32)
    weights_T, kl_scale_D = None, None
    if gap is not None and config.modularity.relative:
        weights_T = loss_weights(schedule, gap, config.modularity.weighting)
        if config.modularity.bottleneck > 0:
            values = unet.config.in_channels * config.data.resolution**2
            kl_scale_D = kl_scale(weights_T, layout, values)
    objective = FeatureObjective(
        frozen,
        encoder,
        decoder,
        schedule,
        layout,
        config.gradient,
        weight_T=weights_T,
        kl_scale_D=kl_scale_D,
    )
    if not config.ssl.active:
        return objective
    return JointObjective(objective, _head(config), config.ssl.weight)


def step_views(config: RunConfig, accelerator: Accelerator) -> StepViews | None:
    """The views that a self-supervised loss compares; None without one."""
    if not config.ssl.active:
        return None
    return StepViews(
        augmentation=augmentation_of(config.ssl),
        seed=config.seed,
        stage=STAGE,
        batch_size=config.features.batch_size,
        rank=Rank.from_accelerator(accelerator),
    )


def _head(config: RunConfig) -> nn.Module:
    return build_head(config.ssl, config.chunks.latent_dim)
