"""What a training run is made of: a frozen dataclass, checked when it is built.

Its groups are in `diticli.config_groups`; presets and the layers of settings that fill them in `diticli.settings`.
Pure Python.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from diticli.chunks import ChunkLayout
from diticli.config_groups import (
    ChunksConfig,
    DataConfig,
    EncoderConfig,
    LossCurve,
    ModularityConfig,
    SSLConfig,
    StageConfig,
    UNetConfig,
)
from diticli.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
Gradient = Literal["cumulative", "detached", "dual"]
Along = Literal["weight", "pattern"]
"""Direction of an attribute edit: the classifier's weight, as published, or the pattern of the features."""


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
    modularity: ModularityConfig = field(default_factory=ModularityConfig)
    """What keeps chunks apart."""
    base: StageConfig = field(default_factory=StageConfig)
    """Stage 1: the base diffusion model."""
    features: StageConfig = field(default_factory=StageConfig)
    """Stage 2: encoder and shift decoder."""
    ssl: SSLConfig = field(default_factory=SSLConfig)
    """Self-supervised loss in stage 2."""
    base_model: str = ""
    """Folder or Hub id of a pre-trained base; empty: train one."""
    gradient: Gradient = "cumulative"
    """Which slices of the features get gradient at a timestep: all that it sees, its own, or both losses' sum."""
    minutes: float = 0.0
    """Time budget of the run in minutes: the images of both stages are then planned from the speed of its first
    seconds (`diticli.training.budget`), and kept here for a run that goes on. 0: the stages' own images."""
    fit_batch: bool = False
    """Take the largest batch of each stage that fits in memory (`diticli.training.batch_fit`), measured when the run
    begins and kept as the stages' batch_size for a run that goes on."""
    seed: int = 0
    """Seed of weights, data order, timesteps and noise."""
    precision: Precision = "auto"
    """Arithmetic of the forward and backward passes; auto takes bf16 where the device has it."""
    device: str = "auto"
    """`cpu`, `cuda`, or auto."""
    compile: Literal["auto", True, False] = "auto"
    """Compile the training step with torch.compile; auto: for runs of so many steps that it pays (see
    `diticli.models.compiled`), on a GPU that can run the step as a CUDA graph only where that was measured."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    sample_every: int = 1000
    """Steps between sample pictures; 0 switches them off."""

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1, got {getattr(self, name)}.", remedy=f"Use --set {name}=20."
                )
        if not 0 <= self.minutes < math.inf:
            raise ConfigError(f"minutes must be zero or more, got {self.minutes}.", remedy="Use e.g. --minutes 10.")
        self._check_sizes()
        self._check_ssl()
        self._check_visible()
        self.provisional_layout()

    def stage(self, name: str) -> StageConfig:
        """Budget and optimizer of a stage, "base" or "features"."""
        return self.base if name == "base" else self.features

    @property
    def measures_base(self) -> bool:
        """Whether stage 2 needs to know what the base loses by timestep."""
        return not self.ssl.only and (self.chunks.partition == "auto" or self.modularity.relative)

    def layout(self, timesteps: int = 1000, gap: LossCurve | None = None) -> ChunkLayout:
        """The chunk layout; a single chunk where the encoder is trained alone and no dim belongs to a timestep.

        Args:
            timesteps: T.
            gap: what the base loses by timestep, where `measures_base`.

        Raises:
            ChunkError: when the settings do not add up, or `gap` is missing.
        """
        if self.ssl.only:
            return ChunkLayout.uniform(chunks=1, latent_dim=self.chunks.latent_dim, timesteps=timesteps)
        return self.chunks.layout(timesteps, gap)

    def provisional_layout(self, timesteps: int = 1000) -> ChunkLayout:
        """The chunk layout as far as it is known before training: as many chunks and dims as the final one.

        Raises:
            ChunkError: when the settings do not add up.
        """
        if not self.ssl.only and self.chunks.partition == "auto":
            return ChunkLayout.uniform(chunks=self.chunks.count, latent_dim=self.chunks.latent_dim, timesteps=timesteps)
        return self.layout(timesteps)

    def _check_visible(self) -> None:
        if self.chunks.visible == "all" and self.gradient == "cumulative" and self.chunks.count > 1:
            raise ConfigError(
                "With everything visible and cumulative gradients no dim belongs to a timestep; that is PDAE.",
                remedy="Use --gradient detached, or --chunks 1 for PDAE.",
            )

    def _check_ssl(self) -> None:
        if not self.ssl.active:
            return
        if self.data.channels != 3:
            raise ConfigError(
                f"{self.ssl.method} changes colours, and the pictures have {self.data.channels} channel.",
                remedy="Leave out --ssl, or use --channels 3.",
            )
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
                raise ConfigError(f"{name} must be above zero, got {list(numbers)}.", remedy=f"Change --set {name}.")
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
