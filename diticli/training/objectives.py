"""The losses of both stages, as modules whose forward returns one loss per image.

A module per stage keeps the loop blind to the method, and lets DDP wrap the whole step. Its
forward takes what the loop draws by these names: `x0_BCHW`, `t_B`, `noise_BCHW`, `feature_noise_BD` and `beta` where
the objective asks for them, and `views_2BCHW` where there are views. `compile_parts` exchanges the parts of forward for
compiled ones; modules, weights and their names stay.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from diticli.chunks import ChunkLayout
from diticli.models.compiled import CompilablePart, Compiler
from diticli.models.encoder import SemanticEncoder
from diticli.models.frozen import FrozenBase
from diticli.models.noise_prediction import run_base
from diticli.models.shift_decoder import ChunkWindows, ShiftDecoder
from diticli.models.unet import UNet
from diticli.models.unet_forward import DownFeatures, estimate_noise
from diticli.schedule import NoiseSchedule, per_sample
from diticli.training.step_losses import StepLosses


class NoiseObjective(nn.Module):
    """Stage 1: the simple DDPM loss (Ho et al., 2020, eq. 14), mean over elements of (noise - estimate)^2."""

    feature_noise = 0

    def __init__(self, unet: UNet, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.unet = unet
        self.schedule = schedule
        self._part: CompilablePart = self._losses

    def compile_parts(self, compiler: Compiler) -> None:
        """Compile the loss as one training graph."""
        self._part = compiler("base's training graph", self._losses)

    def forward(self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        """Loss [B] of images in [-1, 1] at integer timesteps."""
        losses_B: torch.Tensor = self._part(x0_BCHW, t_B, noise_BCHW)
        return losses_B

    def _losses(self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, noise_BCHW: torch.Tensor) -> torch.Tensor:
        x_t = self.schedule.add_noise(x0_BCHW, noise_BCHW, t_B)
        estimate = estimate_noise(self.unet, x_t, t_B)
        return (noise_BCHW - estimate.float()).square().mean(dim=(1, 2, 3))

    @property
    def timesteps(self) -> int:
        """T of the timesteps and noise that forward takes."""
        return self.schedule.timesteps

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the moving average sees."""
        return {"unet": self.unet}


class FeatureObjective(nn.Module):
    """Stage 2: encoder and shift decoder learn what the frozen base lost.

    L = mean over elements of w_t (noise - base - c_t G(x_t, t, m_t z))^2 (PDAE eq. 13 with the chunk mask of
    DiTi eq. 6). `cumulative` lets gradient reach all of z that t sees, `detached` only the slice of t's own chunk
    (same value), `dual` is the sum of both.

    With a bottleneck the decoder sees z + n, n standard Gaussian, and beta * kl_scale * KL(N(z, 1) || N(0, 1)) =
    beta * kl_scale * |z|^2 / 2 is added for each chunk: the KL term of an information bottleneck (Alemi et al., 2017,
    arXiv 1612.00410, eq. 17, with fixed variance), its weight beta in degrees of freedom per nat. See
    `diticli.training.loss_weighting`.

    Args:
        unet: the base; kept frozen and in eval mode. A `FrozenBase` is its copy for speed.
        gradient: "cumulative", "detached" or "dual".
        weight_T: w_t, [T]; None: as published.
        kl_scale_D: scale of the KL term: by how much one degree of freedom lowers the loss in each chunk, [D] above 0
            (`diticli.training.loss_weighting.kl_scale`); forward then takes feature noise and a KL weight.
    """

    weight_T: torch.Tensor
    kl_scale_D: torch.Tensor | None

    def __init__(
        self,
        unet: UNet | FrozenBase,
        encoder: SemanticEncoder,
        shift_decoder: ShiftDecoder,
        schedule: NoiseSchedule,
        layout: ChunkLayout,
        gradient: str,
        *,
        weight_T: torch.Tensor | None = None,
        kl_scale_D: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False).eval()
        self.encoder = encoder
        self.shift_decoder = shift_decoder
        self.schedule = schedule
        self.windows = ChunkWindows(layout)
        weight_T = schedule.loss_weight if weight_T is None else weight_T
        self.register_buffer("weight_T", weight_T.float().clone(), persistent=False)
        self.register_buffer("kl_scale_D", kl_scale_D, persistent=False)
        self.detach_others = {"cumulative": (False,), "detached": (True,), "dual": (False, True)}[gradient]
        self._frozen_part: CompilablePart = self._run_base
        self._trained_part: CompilablePart = self._losses

    def compile_parts(self, compiler: Compiler) -> None:
        """Compile the frozen base as inference, apart from encoder, shift decoder and loss as one training graph."""
        self._frozen_part = compiler("frozen base", self._run_base)
        self._trained_part = compiler("features' training graph", self._losses)

    def train(self, mode: bool = True) -> Self:
        """Switch encoder and shift decoder; the base stays in eval mode."""
        super().train(mode)
        self.unet.eval()
        return self

    def forward(
        self,
        x0_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        noise_BCHW: torch.Tensor,
        feature_noise_BD: torch.Tensor | None = None,
        beta: torch.Tensor | None = None,
    ) -> StepLosses | torch.Tensor:
        """Loss [B] of images in [-1, 1] at integer timesteps; with a bottleneck, its parts.

        Args:
            x0_BCHW: images.
            t_B: timesteps.
            noise_BCHW: what is added to the images.
            feature_noise_BD: what is added to the features, where there is a bottleneck.
            beta: the KL weight, in degrees of freedom per nat, where there is a bottleneck.
        """
        noise, down = self._frozen_part(x0_BCHW, t_B, noise_BCHW)
        losses_B, kl_B = self._trained_part(x0_BCHW, t_B, noise_BCHW, noise, down, feature_noise_BD)
        if kl_B is None or beta is None:
            return losses_B
        return StepLosses(losses_B + beta * kl_B, losses_B, None)

    def _run_base(
        self, x0_BCHW: torch.Tensor, t_B: torch.Tensor, noise_BCHW: torch.Tensor
    ) -> tuple[torch.Tensor, DownFeatures]:
        return run_base(self.unet, self.schedule.add_noise(x0_BCHW, noise_BCHW, t_B), t_B)

    def _losses(
        self,
        x0_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        noise_BCHW: torch.Tensor,
        base_BCHW: torch.Tensor,
        down: DownFeatures,
        feature_noise_BD: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss [B] of the noise estimate, and the KL term [B] at beta = 1."""
        z, kl_B = self.encoder(x0_BCHW), None
        if feature_noise_BD is not None and self.kl_scale_D is not None:
            kl_B = 0.5 * (z.float().square() * self.kl_scale_D).sum(dim=1)
            z = z + feature_noise_BD
        coefficient = per_sample(self.schedule.shift_coef, t_B)
        weight = self.weight_T[t_B]
        total = x0_BCHW.new_zeros(len(x0_BCHW))
        for detach in self.detach_others:
            shift = self.shift_decoder(down, self.shift_decoder.project(z, t_B, self.windows, detach))
            estimate = base_BCHW.float() + coefficient * shift.float()
            total = total + weight * (noise_BCHW - estimate).square().mean(dim=(1, 2, 3))
        return total, kl_B

    @property
    def timesteps(self) -> int:
        """T of the timesteps and noise that forward takes."""
        return self.schedule.timesteps

    @property
    def feature_noise(self) -> int:
        """D of the feature noise that forward takes; 0 for none."""
        return 0 if self.kl_scale_D is None else self.windows.latent_dim

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the moving average sees."""
        return {"encoder": self.encoder, "shift_decoder": self.shift_decoder}


class JointObjective(nn.Module):
    """Stage 2 with a self-supervised loss of the encoder beside its own: L + weight * L_ssl.

    Args:
        features: the loss of stage 2.
        head: loss [B] of the features of two views; see `diticli.training.ssl`.
        weight: of the loss.
    """

    def __init__(self, features: FeatureObjective, head: nn.Module, weight: float) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.weight = weight
        self._view_part: CompilablePart = self._embed

    def compile_parts(self, compiler: Compiler) -> None:
        """Compile the parts of stage 2's loss, and the encoder on views; the heads wait for other processes."""
        self.features.compile_parts(compiler)
        self._view_part = compiler("encoder on views", self._embed)

    def forward(
        self,
        x0_BCHW: torch.Tensor,
        t_B: torch.Tensor,
        noise_BCHW: torch.Tensor,
        feature_noise_BD: torch.Tensor | None = None,
        beta: torch.Tensor | None = None,
        views_2BCHW: torch.Tensor | None = None,
    ) -> StepLosses:
        """Losses [B] of images and, where there are any, of their two views."""
        own = StepLosses.coerce(self.features(x0_BCHW, t_B, noise_BCHW, feature_noise_BD, beta))
        if views_2BCHW is None:
            return own
        ssl_B = _compare_views(self._view_part, self.head, views_2BCHW)
        return own._replace(total_B=own.total_B + self.weight * ssl_B, ssl_B=ssl_B)

    def _embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BD: torch.Tensor = self.encoder(images_BCHW)
        return features_BD

    @property
    def timesteps(self) -> int:
        """T of the timesteps and noise that forward takes."""
        return self.features.timesteps

    @property
    def feature_noise(self) -> int:
        """D of the feature noise that forward takes; 0 for none."""
        return self.features.feature_noise

    @property
    def encoder(self) -> SemanticEncoder:
        """Images -> features."""
        return self.features.encoder

    @property
    def shift_decoder(self) -> ShiftDecoder:
        """What the features add to the base's noise estimate."""
        return self.features.shift_decoder

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the moving average sees; the head is trained, and left behind."""
        return self.features.trained_modules()


class EncoderObjective(nn.Module):
    """The encoder under a self-supervised loss alone: weight * L_ssl.

    Args:
        encoder: images -> features.
        head: loss [B] of the features of two views; see `diticli.training.ssl`.
        weight: of the loss.
    """

    shift_decoder = None
    feature_noise = 0

    def __init__(self, encoder: SemanticEncoder, head: nn.Module, weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.weight = weight
        self._view_part: CompilablePart = self._embed

    def compile_parts(self, compiler: Compiler) -> None:
        """Compile the encoder; the heads wait for other processes."""
        self._view_part = compiler("encoder on views", self._embed)

    def forward(self, views_2BCHW: torch.Tensor) -> StepLosses:
        """Losses [B] of two views of each image."""
        ssl_B = _compare_views(self._view_part, self.head, views_2BCHW)
        return StepLosses(self.weight * ssl_B, None, ssl_B)

    def _embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        features_BD: torch.Tensor = self.encoder(images_BCHW)
        return features_BD

    @property
    def timesteps(self) -> int:
        """0: forward takes views only."""
        return 0

    def trained_modules(self) -> dict[str, nn.Module]:
        """What the moving average sees; the head is trained, and left behind."""
        return {"encoder": self.encoder}


def _compare_views(encode: CompilablePart, head: nn.Module, views_2BCHW: torch.Tensor) -> torch.Tensor:
    first, second = encode(views_2BCHW.flatten(0, 1)).chunk(2)
    losses: torch.Tensor = head(first, second)
    return losses


Objective = NoiseObjective | FeatureObjective | JointObjective | EncoderObjective
