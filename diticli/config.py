"""What a training run is made of: frozen dataclasses, each checked when it is built.

Presets and the layers of settings that fill them are in `diticli.settings`. Pure Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from diticli.chunks import PAPER_STAGE_DIMS, PAPER_STAGE_ENDS, ChunkLayout
from diticli.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they are read."""

    source: str = "faces"
    """Folder, tars or LMDB (see `diticli.data.sources.open_images`), or `faces[:COUNT[:SEED]]`, the built-in data."""
    resolution: int = 64
    """Height and width in pixels after crop and resize."""
    crop: Literal["auto", "center", "celeba"] = "auto"
    """Which square of each picture: the central one, or that of the CelebA literature for its aligned images;
    auto takes the latter for CelebA's LMDB only."""
    faces_count: int = 50_000
    """Images of the built-in data when `source` names no count."""
    horizontal_flip: bool = True
    """Flip half of the training images."""
    workers: int = 0
    """Decoding threads or processes; 0 means one per processor core."""
    memory_limit_mb: int = 4096
    """Data sets that fit decoded into this many megabytes are held in memory, others are streamed."""


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
    """How time-steps and feature dimensions are cut."""

    count: int = 64
    """K, number of chunks; 1 is PDAE."""
    latent_dim: int = 512
    """d, length of the feature vector."""
    partition: Literal["uniform", "staged"] = "staged"
    """Equal slices, or a number of dimensions per stage of time-steps."""
    stage_ends: tuple[int, ...] = PAPER_STAGE_ENDS
    """Exclusive ends of the stages in time-steps."""
    stage_dims: tuple[int, ...] = PAPER_STAGE_DIMS
    """Dimensions of the stages; rescaled in proportion when they do not sum to `latent_dim`."""

    def layout(self, timesteps: int = 1000) -> ChunkLayout:
        """The layout that these settings describe.

        Raises:
            ChunkError: when they do not add up.
        """
        if self.partition == "uniform":
            return ChunkLayout.uniform(chunks=self.count, latent_dim=self.latent_dim, timesteps=timesteps)
        return ChunkLayout.staged(
            chunks=self.count,
            stage_ends=self.stage_ends,
            stage_dims=self.stage_dims,
            latent_dim=self.latent_dim,
            timesteps=timesteps,
        )


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
    """Linear warm-up of the learning rate."""
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
                f"{self.batch_size}, {self.learning_rate}."
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay lies in [0, 1), got {self.ema_decay}.")

    @property
    def steps(self) -> int:
        """Optimizer steps: the images divided by the batch, rounded up."""
        return -(-self.images // self.batch_size)

    @property
    def peak_learning_rate(self) -> float:
        """What the optimizer gets."""
        return self.learning_rate * self.batch_size / 32


@dataclass(frozen=True, kw_only=True)
class SSLConfig:
    """Self-supervised loss of the encoder, beside stage 2's own or alone. The defaults are the official values."""

    method: Literal["none", "simclr", "simsiam"] = "none"
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
            raise ConfigError(f"ssl.weight must be zero or more, got {self.weight}.")
        if not 0 < self.temperature < math.inf or not 0 < self.min_crop <= 1:
            raise ConfigError(
                f"ssl.temperature must be above zero and ssl.min_crop in (0, 1], got {self.temperature}, "
                f"{self.min_crop}."
            )
        if min(self.start_step, self.hidden_dim, self.out_dim) < 0 or self.bottleneck_dim < 1:
            raise ConfigError(
                f"ssl.start_step, hidden_dim and out_dim must not be negative, ssl.bottleneck_dim must be above zero; "
                f"got {self.start_step}, {self.hidden_dim}, {self.out_dim}, {self.bottleneck_dim}."
            )
        if self.only and not self.active:
            raise ConfigError(
                f"ssl.only trains by the self-supervised loss alone, but there is none: method {self.method}, "
                f"weight {self.weight:g}.",
                remedy="Choose --ssl simclr or --ssl simsiam, with a weight above zero.",
            )
        if self.only and self.start_step:
            raise ConfigError(f"ssl.only has nothing else to train before ssl.start_step {self.start_step}.")

    @property
    def active(self) -> bool:
        """Whether there is such a loss."""
        return self.method != "none" and self.weight > 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that determines a run, besides the data itself."""

    preset: str = "celeba64"
    """Name of the preset these settings started from."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Base model, when trained here."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Feature encoder."""
    chunks: ChunksConfig = field(default_factory=ChunksConfig)
    """Chunk layout."""
    base: StageConfig = field(default_factory=StageConfig)
    """Stage 1: the base diffusion model."""
    features: StageConfig = field(default_factory=StageConfig)
    """Stage 2: encoder and shift decoder."""
    ssl: SSLConfig = field(default_factory=SSLConfig)
    """Self-supervised loss in stage 2."""
    base_model: str = ""
    """Folder or Hub id of a pre-trained base; empty: train one."""
    gradient: Literal["cumulative", "detached", "dual"] = "cumulative"
    """Which slices of the features get gradient at a time-step."""
    seed: int = 0
    """Seed of weights, data order, time-steps and noise."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes; auto takes bf16 where the device has it."""
    device: str = "auto"
    """`cpu`, `cuda`, or auto."""
    compile: Literal["auto", True, False] = "auto"
    """Compile the training step with torch.compile; auto: on a GPU, and on a CPU for runs of so many steps that it
    pays (see `diticli.training.compilation`)."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between sample pictures; 0 switches them off."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        self._check_sizes()
        self._check_ssl()
        self.layout()

    def layout(self, timesteps: int = 1000) -> ChunkLayout:
        """The chunk layout; a single chunk where the encoder is trained alone and no dim belongs to a time-step.

        Raises:
            ChunkError: when the settings do not add up.
        """
        if self.ssl.only:
            return ChunkLayout.uniform(chunks=1, latent_dim=self.chunks.latent_dim, timesteps=timesteps)
        return self.chunks.layout(timesteps)

    def _check_ssl(self) -> None:
        if not self.ssl.active:
            return
        if self.ssl.only and self.base_model:
            raise ConfigError(
                f"ssl.only trains without a base, but one is given: {self.base_model!r}.",
                remedy="Leave out --base, or --ssl-only.",
            )
        if self.ssl.start_step >= self.features.steps:
            raise ConfigError(
                f"ssl.start_step {self.ssl.start_step} lies beyond the {self.features.steps} steps of stage 2.",
                remedy="Start earlier, or leave out --ssl.",
            )
        if self.features.batch_size < 2:
            raise ConfigError(
                f"{self.ssl.method} compares images of a batch; features.batch_size is {self.features.batch_size}.",
                remedy="Use --batch-size 2 or more.",
            )

    def _check_sizes(self) -> None:
        sizes = {
            "unet.channels": self.unet.channels,
            "unet.norm_groups": (self.unet.norm_groups,),
            "encoder.widths": self.encoder.widths,
            "encoder.attention_heads": (self.encoder.attention_heads,),
        }
        for name, numbers in sizes.items():
            if not numbers or min(numbers) < 1:
                raise ConfigError(f"{name} must be above zero, got {list(numbers)}.")
        smallest = 2 ** (len(self.unet.channels) - 1)
        halvings = 2 ** len(self.encoder.widths)
        if self.data.resolution < halvings or self.data.resolution % max(smallest, halvings):
            raise ConfigError(
                f"Resolution {self.data.resolution} is not divisible by {max(smallest, halvings)}, which "
                f"{len(self.unet.channels)} UNet levels and {len(self.encoder.widths)} encoder convolutions need.",
                remedy=f"Use a multiple of {max(smallest, halvings)}, or fewer levels.",
            )
        if bad := [c for c in self.unet.channels if c % self.unet.norm_groups]:
            raise ConfigError(
                f"UNet channels {bad} are not divisible by {self.unet.norm_groups} norm groups.",
                remedy="Change --set unet.channels or unet.norm_groups.",
            )
