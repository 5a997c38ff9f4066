"""What a training run is made of: frozen dataclasses, presets, and how the layers of settings merge.

Order of precedence: preset < `--config FILE` < command-line options < `--set key=value`. Unknown keys are
errors that name the nearest known one. Pure Python: the command line builds and checks a config without torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from diticli.chunks import PAPER_STAGE_DIMS, PAPER_STAGE_ENDS, ChunkLayout
from diticli.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Images and how they are read."""

    source: str = "faces"
    """A folder, or `faces[:COUNT[:SEED]]` for the built-in data."""
    resolution: int = 64
    """Height and width in pixels after centre-crop and resize."""
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
    compile: bool = False
    """Compile the training step with torch.compile."""
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
        self.chunks.layout()

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


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("diticli") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def build_config(
    preset: str,
    *,
    file: Path | None = None,
    options: Mapping[str, Any] | None = None,
    assignments: tuple[str, ...] = (),
) -> RunConfig:
    """Merge a preset, a TOML or JSON file, options (dotted keys) and `key=value` assignments.

    Raises:
        ConfigError: for an unknown preset or key, an unreadable file, or an impossible value.
    """
    if preset not in preset_names():
        raise ConfigError(f"There is no preset {preset!r}.", remedy=f"Choose one of: {', '.join(preset_names())}.")
    text = (resources.files("diticli") / "presets" / f"{preset}.toml").read_text()
    merged: dict[str, Any] = _merge({"preset": preset}, tomllib.loads(text))
    if file is not None:
        merged = _merge(merged, read_settings(file))
    for key, value in (options or {}).items():
        merged = _merge(merged, _nest(key, value))
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ConfigError(f"--set {assignment!r} has no '='.", remedy="Write --set features.batch_size=64.")
        merged = _merge(merged, _nest(key.strip(), _literal(value.strip())))
    return from_dict(RunConfig, merged)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """JSON form, read back by `from_dict(RunConfig, ...)`."""
    result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return result


def from_dict(cls: type[Any], data: Mapping[str, Any], prefix: str = "") -> Any:
    """Build a config dataclass from nested dictionaries, checking every key and type.

    Raises:
        ConfigError: naming the key and what it should be.
    """
    hints = get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"Unknown setting {prefix + key!r}.",
                remedy=f"Did you mean {prefix + near[0]!r}?" if near else f"Known here: {', '.join(known)}.",
            )
    values = {key: _convert(hints[key], value, prefix + key) for key, value in data.items()}
    return cls(**values)


def _convert(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a group of settings, got {value!r}.")
        return from_dict(cast(type, kind), value, prefix=f"{key}.")
    origin = get_origin(kind)
    if origin is Literal:
        if value not in get_args(kind):
            raise ConfigError(f"{key} is one of {', '.join(get_args(kind))}; got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or not all(_is_int(v) for v in value):
            raise ConfigError(f"{key} is a list of whole numbers, got {value!r}.")
        return tuple(value)
    if origin in (Union, types.UnionType):
        return value
    if kind is float and _is_int(value):
        return float(value)
    if kind is int and not _is_int(value):
        raise ConfigError(f"{key} is a whole number, got {value!r}.")
    if not isinstance(value, kind):
        raise ConfigError(f"{key} is a {kind.__name__}, got {value!r}.")
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_settings(file: Path) -> dict[str, Any]:
    """Settings of a TOML or JSON file (a run's config.json keeps them under "config").

    Raises:
        ConfigError: when it cannot be read.
    """
    try:
        text = file.read_text()
        data = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        settings: dict[str, Any] = data.get("config", data) if isinstance(data, dict) else data
        if not isinstance(settings, dict):
            raise ValueError("it holds no group of settings")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Cannot read the settings in {file}: {error}.", remedy="Give a TOML or JSON file."
        ) from error
    return settings


def _nest(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _literal(text: str) -> Any:
    """A TOML value; what is not one is a plain string. Commas make a list."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if "," in text:
            return [_literal(part) for part in text.split(",")]
        return text


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
