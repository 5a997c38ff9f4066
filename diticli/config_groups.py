"""The groups of a run's settings, each a frozen dataclass that is checked when it is built. Pure Python.

They stand in `diticli.config.RunConfig`; a preset's TOML sections have their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from diticli.chunks import PAPER_STAGE_DIMS, PAPER_STAGE_ENDS, ChunkLayout, Visible
from diticli.errors import ChunkError, ConfigError

Crop = Literal["center", "celeba"]
"""Which square of a picture is kept: the central one, or that of Diff-AE, PDAE and DiTi for aligned CelebA."""
ValueRange = tuple[float, float]
"""Values that are black and white in pictures of more than 8 bits; what lies outside is cut."""
Partition = Literal["uniform", "staged", "quadratic", "auto"]
Weighting = Literal["pdae", "uniform", "gap"]
SSLMethod = Literal["none", "simclr", "simsiam"]


class LossCurve(Protocol):
    """What `diticli.models.reconstruction_gap.GapCurve` offers."""

    def lost_between(self, t0: float, t1: float) -> float:
        """What the base loses in the timesteps [t0, t1), 0 or more."""


def check_value_range(window: ValueRange) -> ValueRange:
    """The window itself.

    Raises:
        ConfigError: unless it is two finite numbers, the lower one first.
    """
    if len(window) != 2 or not all(map(math.isfinite, window)) or not window[0] < window[1]:
        raise ConfigError(
            f"A value range is two numbers, black and white, the lower one first; got {', '.join(map(str, window))}.",
            remedy="Write e.g. --value-range 0,4095.",
        )
    return window


def parse_value_range(text: str) -> ValueRange:
    """LOW,HIGH.

    Raises:
        ConfigError: for anything else.
    """
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--value-range {text!r} is not LOW,HIGH.", remedy="Write two numbers, e.g. --value-range 0,4095."
        ) from error
    return check_value_range((low, high))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they are read."""

    source: str = "faces"
    """Folder, tars or LMDB (see `diticli.data.sources.open_images`), or `faces[:COUNT[:SEED]]`, the built-in data."""
    resolution: int = 64
    """Height and width in pixels after crop and resize."""
    crop: Literal["auto", Crop] = "auto"
    """Which square of each picture: the central one, or that of the CelebA literature for its aligned images;
    auto takes the latter for CelebA's LMDB only."""
    channels: Literal[1, 3] = 3
    """Of the networks' pictures: 1 for grey ones, else 3."""
    value_range: ValueRange | None = None
    """Black and white of pictures of more than 8 bits; None: found from the data, and kept here."""
    faces_count: int = 50_000
    """Images of the built-in data when `source` names no count."""
    horizontal_flip: bool = True
    """Flip half of the training images."""
    workers: int = 0
    """Decoding threads or processes; 0 means one per processor core."""
    memory_limit_mb: int = 4096
    """Data sets that fit decoded into this many megabytes are held in memory, others are streamed."""

    def __post_init__(self) -> None:
        if self.value_range is not None:
            check_value_range(self.value_range)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Shape of the base `UNet2DModel`, when it is trained here."""

    channels: tuple[int, ...] = (64, 128, 256, 512)
    """Channels of each level, finest first; each level halves the resolution of the one before."""
    layers_per_block: int = 2
    """Residual blocks per level on the way down (one more on the way up)."""
    attention_sizes: tuple[int, ...] = (16,)
    """Map sizes (in pixels) at which attention blocks stand; the middle block always has one."""
    head_dim: int = 0
    """Channels of an attention head; 0 means a single head."""
    resampling: Literal["conv", "resnet"] = "resnet"
    """How levels are joined: strided convolution and upsampled convolution, or residual blocks."""
    time_scale_shift: Literal["default", "scale_shift"] = "scale_shift"
    """How the time embedding modulates a residual block."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
    dropout: float = 0.0
    """Dropout within residual blocks."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the feature encoder."""

    widths: tuple[int, ...] = (64, 128, 128, 128)
    """Channels of each stride-2 convolution."""
    attention_size: int = 16
    """Map size (in pixels) at which the attention block stands; 0 means none."""
    attention_heads: int = 4
    """Heads of the attention block."""


@dataclass(frozen=True, kw_only=True)
class ChunksConfig:
    """How timesteps and feature dimensions are cut."""

    count: int = 64
    """K, number of chunks; 1 is PDAE."""
    latent_dim: int = 512
    """d, length of the feature vector."""
    partition: Partition = "staged"
    """Equal slices; a number of dimensions per stage of timesteps; equal slices of timesteps that grow as the square;
    or dimensions in proportion to what the base loses in each chunk's timesteps, measured once it is trained."""
    stage_ends: tuple[int, ...] = PAPER_STAGE_ENDS
    """Exclusive ends of the stages in timesteps."""
    stage_dims: tuple[int, ...] = PAPER_STAGE_DIMS
    """Dimensions of the stages; rescaled in proportion when they do not sum to `latent_dim`."""
    visible: Visible = "prefix"
    """What a timestep sees of the features: the chunks up to its own, as published, or all of them, so that a chunk
    gains nothing by what any other one holds. Then gradients must keep the chunks apart."""

    def layout(self, timesteps: int = 1000, gap: LossCurve | None = None) -> ChunkLayout:
        """The layout that these settings describe.

        Args:
            timesteps: T.
            gap: what the base loses by timestep; the auto partition follows it.

        Raises:
            ChunkError: when they do not add up, or the auto partition is asked for before the base is measured.
        """
        return replace(self._partition(timesteps, gap), visible=self.visible)

    def _partition(self, timesteps: int, gap: LossCurve | None) -> ChunkLayout:
        uniform = ChunkLayout.uniform(chunks=self.count, latent_dim=self.latent_dim, timesteps=timesteps)
        if self.partition == "uniform":
            return uniform
        if self.partition == "quadratic":
            return ChunkLayout.quadratic(chunks=self.count, latent_dim=self.latent_dim, timesteps=timesteps)
        if self.partition == "auto":
            if gap is None:
                raise ChunkError(
                    "The auto partition is known once the base is measured.",
                    remedy="Train the base first, or use another.",
                )
            ranges = zip(uniform.timestep_starts, uniform.timestep_ends, strict=True)
            lost = [gap.lost_between(start, end) for start, end in ranges]
            return ChunkLayout.in_proportion(lost, latent_dim=self.latent_dim, timesteps=timesteps)
        return ChunkLayout.staged(
            chunks=self.count,
            stage_ends=self.stage_ends,
            stage_dims=self.stage_dims,
            latent_dim=self.latent_dim,
            timesteps=timesteps,
        )


@dataclass(frozen=True, kw_only=True)
class ModularityConfig:
    """What keeps a chunk to the attributes that are lost in its own timesteps. Not part of the published method, which
    is the default; `diticli.training.loss_weighting` says why it works."""

    weighting: Weighting = "pdae"
    """Loss weight over timesteps: SNR^0.1 / (1 + SNR) as published, the same for all, or one over the base's error, so
    that each timestep has the same to gain."""
    bottleneck: float = 0.0
    """KL weight, as beta in a beta-VAE, in degrees of freedom of the noise estimate per nat. In training, noise of
    standard deviation 1 is added to the features, and to the loss, for each chunk, bottleneck * |z|^2 / 2 times the
    part of the loss that is one degree of freedom in the chunk's timesteps. It limits the features' signal-to-noise
    ratio to about 1 / (2 bottleneck) - 1. 0: neither noise nor KL term."""
    bottleneck_rise: float = 0.5
    """Share of the steps over which the KL weight rises from 0: from the start it would make the features collapse."""

    def __post_init__(self) -> None:
        if not 0 <= self.bottleneck < math.inf:
            raise ConfigError(
                f"modularity.bottleneck must be zero or more, got {self.bottleneck}.", remedy="Use e.g. 0.032."
            )
        if not 0 <= self.bottleneck_rise <= 1:
            raise ConfigError(
                f"modularity.bottleneck_rise lies in [0, 1], got {self.bottleneck_rise}.", remedy="Use e.g. 0.5."
            )

    @property
    def relative(self) -> bool:
        """Whether losses are given as shares of the base's own, which must be measured for that."""
        return self.weighting != "pdae" or self.bottleneck > 0

    def beta(self, progress: float) -> float:
        """The KL weight when this share of the steps is done."""
        return self.bottleneck * min(1.0, progress / self.bottleneck_rise if self.bottleneck_rise else 1.0)


MODULAR = {
    "chunks.visible": "all",
    "chunks.partition": "uniform",
    "gradient": "detached",
    "modularity.weighting": "gap",
    "modularity.bottleneck": 0.032,
}
"""Settings of `diti train --modular`: chunks act where noise hides what they hold. A higher bottleneck brings them
nearer to that, and lowers transfer rates; long trainings want one (docs/modularity.md)."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Budget and optimizer of one training stage."""

    images: int = 1_000_000
    """Training images seen in all (with repetition)."""
    batch_size: int = 128
    """Global batch, over all processes."""
    learning_rate: float = 1e-4
    """Per 32 images of the global batch: the optimizer gets learning_rate * batch_size / 32."""
    warmup_images: int = 0
    """Linear warm-up of the learning rate; at most a tenth of the stage, so that the peak is reached in short ones."""
    decay: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up."""
    ema_decay: float = 0.9999
    """Exponential moving average of the weights, per step; rises to this value over the first steps."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 switches clipping off."""

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch_size < 1 or not 0 < self.learning_rate < float("inf"):
            raise ConfigError(
                f"A stage needs images, batch_size and learning_rate above zero, got {self.images}, "
                f"{self.batch_size}, {self.learning_rate}.",
                remedy="Change --images (--base-images), --batch-size or --lr.",
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay lies in [0, 1), got {self.ema_decay}.", remedy="Use e.g. 0.999.")

    @property
    def steps(self) -> int:
        """Optimizer steps: the images divided by the batch, rounded up."""
        return -(-self.images // self.batch_size)

    @property
    def warmup_steps(self) -> float:
        """Steps of the warm-up, at most a tenth of all."""
        return min(self.warmup_images / self.batch_size, self.steps / 10)

    @property
    def peak_learning_rate(self) -> float:
        """What the optimizer gets."""
        return self.learning_rate * self.batch_size / 32


@dataclass(frozen=True, kw_only=True)
class SSLConfig:
    """Self-supervised loss of the encoder, beside stage 2's own or alone. The defaults are the official values."""

    method: SSLMethod = "none"
    """SimCLR (contrastive) or SimSiam (no negatives)."""
    weight: float = 0.01
    """Factor of the loss; at 0 nothing of it is computed."""
    start_step: int = 0
    """Steps of stage 2 that go without it."""
    only: bool = False
    """Train the encoder by this loss alone: no base, no shift decoder."""
    temperature: float = 0.5
    """SimCLR: tau."""
    hidden_dim: int = 0
    """Width of the projector's hidden layers; 0: 2048 for SimCLR beside stage 2, else the latent dim."""
    out_dim: int = 0
    """Width of what the loss compares; 0: SimCLR 128 beside stage 2 and 256 alone, SimSiam the latent dim."""
    bottleneck_dim: int = 128
    """SimSiam: hidden width of the predictor."""
    augmentation: Literal["auto", "simclr", "simsiam", "none"] = "auto"
    """How views are made; auto: as the method's name says, none: both views are the image itself."""
    min_crop: float = 1.0
    """Smallest area of the random resized crop, as a share of the image; 1: no crop, as in the official code."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"ssl.weight must be zero or more, got {self.weight}.", remedy="Use e.g. 0.01.")
        if not 0 < self.temperature < math.inf or not 0 < self.min_crop <= 1:
            raise ConfigError(
                f"ssl.temperature must be above zero and ssl.min_crop in (0, 1], got {self.temperature}, "
                f"{self.min_crop}.",
                remedy="Leave them out for the official values.",
            )
        if min(self.start_step, self.hidden_dim, self.out_dim) < 0 or self.bottleneck_dim < 1:
            raise ConfigError(
                f"ssl.start_step, hidden_dim and out_dim must not be negative, ssl.bottleneck_dim must be above zero; "
                f"got {self.start_step}, {self.hidden_dim}, {self.out_dim}, {self.bottleneck_dim}.",
                remedy="Leave them out for the official values.",
            )
        if self.only and not self.active:
            raise ConfigError(
                f"ssl.only trains by the self-supervised loss alone, but there is none: method {self.method}, "
                f"weight {self.weight:g}.",
                remedy="Choose --ssl simclr or --ssl simsiam, with a weight above zero.",
            )
        if self.only and self.start_step:
            raise ConfigError(
                f"ssl.only has nothing else to train before ssl.start_step {self.start_step}.",
                remedy="Leave out --ssl-start-step or --ssl-only.",
            )

    @property
    def active(self) -> bool:
        """Whether there is such a loss."""
        return self.method != "none" and self.weight > 0
