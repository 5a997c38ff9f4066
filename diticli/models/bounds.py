"""Bounds on every count in a model's config, checked before anything is built from it.

A config of a few hundred bytes may name any number of blocks, levels or timesteps. These bounds lie far above every
published pixel-space model and far below what would keep a machine busy for minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diticli.chunks import MAX_DIMS, MAX_TIMESTEPS
from diticli.errors import ConfigError
from diticli.reading import quoted

MAX_SIDE = 2048
"""Pixels, height or width."""
MAX_WIDTH = 16_384
"""Channels of a block."""
MAX_LEVELS = 12
MAX_LAYERS = 32
"""Residual blocks of a level."""

_UNET = {
    "in_channels": MAX_WIDTH,
    "out_channels": MAX_WIDTH,
    "layers_per_block": MAX_LAYERS,
    "norm_num_groups": MAX_WIDTH,
    "attn_norm_num_groups": MAX_WIDTH,
    "attention_head_dim": MAX_WIDTH,
    "attention_heads": MAX_WIDTH,
    "time_embedding_dim": 4 * MAX_WIDTH,
    "num_train_timesteps": MAX_TIMESTEPS,
}
_NUMBERS = ("dropout", "norm_eps", "mid_block_scale_factor", "freq_shift")
_MAX_NUMBER = 1e6


def count_problem(name: str, value: Any, most: int, least: int = 1) -> str | None:
    """Why `value` is no count between `least` and `most`; None when it is one."""
    if type(value) is not int:
        return f"{name} is no whole number, but {quoted(value)}"
    return None if least <= value <= most else f"{name} is {quoted(value)}, not within {least:,} to {most:,}"


def unet_problem(config: Mapping[str, Any]) -> str | None:
    """Which count of a `UNet2DModel` config with all its entries lies out of bounds; None when none does.

    Entries that are None are left to their defaults.
    """
    return next((problem for problem in _unet_problems(config) if problem), None)


def _unet_problems(config: Mapping[str, Any]) -> Iterator[str | None]:
    for key in ("block_out_channels", "down_block_types", "up_block_types"):
        yield _levels_problem(key, config[key])
    for width in config["block_out_channels"]:
        yield count_problem("a width in block_out_channels", width, MAX_WIDTH)
    size = config["sample_size"]
    for side in size[:2] if isinstance(size, list | tuple) else [size]:
        yield None if side is None else count_problem("sample_size", side, MAX_SIDE)
    for key, most in _UNET.items():
        yield None if config.get(key) is None else count_problem(key, config[key], most)
    for key in _NUMBERS:
        yield _number_problem(key, config[key])


def scheduler_problem(config: Mapping[str, Any]) -> str | None:
    """Which number of a scheduler's config lies out of bounds; None when none does."""
    problems = [
        count_problem("num_train_timesteps", config["num_train_timesteps"], MAX_TIMESTEPS),
        *(_number_problem(key, config[key], most=1.0) for key in ("beta_start", "beta_end")),
    ]
    betas = config.get("trained_betas")
    if betas is not None:
        if not isinstance(betas, list | tuple) or len(betas) > MAX_TIMESTEPS:
            problems.append(f"trained_betas is no list of at most {MAX_TIMESTEPS:,} numbers")
        else:
            problems += [_number_problem("one of trained_betas", beta, most=1.0) for beta in betas]
    return next((problem for problem in problems if problem), None)


def check_encoder_counts(
    *,
    sample_size: Any,
    in_channels: Any,
    widths: Any,
    latent_dim: Any,
    attention_size: Any,
    attention_heads: Any,
    norm_num_groups: Any,
) -> None:
    """Refuse the config of an encoder with a count that is out of bounds.

    Raises:
        ConfigError: naming it.
    """
    problem = _levels_problem("widths", widths)
    counts: Sequence[tuple[str, Any, int, int]] = (
        ("sample_size", sample_size, MAX_SIDE, 1),
        ("in_channels", in_channels, MAX_WIDTH, 1),
        ("latent_dim", latent_dim, MAX_DIMS, 1),
        ("attention_size", attention_size, MAX_SIDE, 0),
        ("attention_heads", attention_heads, MAX_WIDTH, 1),
        ("norm_num_groups", norm_num_groups, MAX_WIDTH, 1),
        *(("a width", width, MAX_WIDTH, 1) for width in ([] if problem else widths)),
    )
    problem = problem or next((found for one in counts if (found := count_problem(*one))), None)
    if problem:
        raise ConfigError(f"This encoder cannot be built: {problem}.", remedy="If a file says so, copy it again.")


def check_latent_dim(latent_dim: Any) -> None:
    """Refuse a number of feature dimensions that is out of bounds.

    Raises:
        ConfigError: saying so.
    """
    if problem := count_problem("latent_dim", latent_dim, MAX_DIMS):
        raise ConfigError(f"This model cannot be built: {problem}.", remedy="If a file says so, copy it again.")


def _levels_problem(name: str, value: Any) -> str | None:
    if not isinstance(value, list | tuple):
        return f"{name} is no list, but {quoted(value)}"
    return None if 1 <= len(value) <= MAX_LEVELS else f"{name} has {len(value):,} entries, not 1 to {MAX_LEVELS}"


def _number_problem(name: str, value: Any, most: float = _MAX_NUMBER) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{name} is no number, but {quoted(value)}"
    return None if 0 <= value <= most else f"{name} is {quoted(value)}, not within 0 to {most:g}"
