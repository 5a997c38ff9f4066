"""Mixing of two images' features and noise: the arithmetic of editing.

Legend of shape suffixes: N batch, D latent dim.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diticli.chunks import ChunkLayout
from diticli.errors import ChunkError, ConfigError

MAX_ALPHAS = 50
ALPHA_LIMIT = 5.0


def slerp(a: torch.Tensor, b: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """Spherical interpolation of each sample, flattened, as in DDIM (arXiv 2010.02502, appendix D.5).

    Args:
        a: [N, ...], the result at alpha 0.
        b: [N, ...], the result at alpha 1.
        alpha: a number, or [N].

    Returns:
        [N, ...]; the straight line between (nearly) parallel vectors, where the angle defines no path.
    """
    weight = torch.as_tensor(alpha, dtype=torch.float64, device=a.device).reshape(-1, 1)
    flat_a, flat_b = a.flatten(1).double(), b.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    theta = torch.arccos(cosine)[:, None]
    sine = torch.sin(theta)
    curved = sine > 1e-6
    divisor = torch.where(curved, sine, 1.0)
    weight_a = torch.where(curved, torch.sin((1 - weight) * theta) / divisor, 1 - weight)
    weight_b = torch.where(curved, torch.sin(weight * theta) / divisor, weight)
    return (weight_a * flat_a + weight_b * flat_b).reshape(a.shape).to(a.dtype)


def mix_chunks(
    z_a: torch.Tensor,
    z_b: torch.Tensor,
    layout: ChunkLayout,
    chunks: Sequence[int],
    alpha: float | torch.Tensor,
) -> torch.Tensor:
    """Features of A, [N, D], with the slices of `chunks` replaced by (1 - alpha) A + alpha B.

    Args:
        z_a: [N, D].
        z_b: [N, D].
        layout: says which dims a chunk owns.
        chunks: chunk numbers.
        alpha: a number, or [N].

    Raises:
        ConfigError: when the features are not as wide as the layout.
        ChunkError: when a chunk lies outside it.
    """
    if z_a.shape != z_b.shape or z_a.shape[-1] != layout.latent_dim:
        raise ConfigError(
            f"Features of shape {list(z_a.shape)} and {list(z_b.shape)} do not fit {layout.latent_dim} dims.",
            remedy="Give features of this model.",
        )
    check_chunks(chunks, layout)
    weight = torch.as_tensor(alpha, dtype=z_a.dtype, device=z_a.device).reshape(-1, 1)
    chosen = torch.from_numpy(layout.dim_mask(chunks)).to(z_a.device)
    return torch.where(chosen, (1 - weight) * z_a + weight * z_b, z_a)


def check_chunks(chunks: Sequence[int], layout: ChunkLayout) -> None:
    """Raise ChunkError for an empty set, or a chunk that the layout lacks."""
    wrong = [chunk for chunk in chunks if not 0 <= chunk < layout.chunks]
    if wrong or not chunks:
        raise ChunkError(
            f"Chunk {wrong[0]} does not exist." if wrong else "An edit needs at least one chunk.",
            remedy=f"This model has the chunks 0-{layout.chunks - 1}.",
        )


def parse_alphas(spec: str) -> tuple[float, ...]:
    """Strengths from "start:stop:count" (both ends included) or a list like "0,0.5,1".

    Rounded to 4 decimals, without repeats.

    Raises:
        ConfigError: for anything else, numbers beyond ±5, or more than 50 of them.
    """
    return parse_numbers(spec, "alpha", ALPHA_LIMIT, remedy="0 is the image itself, 1 has the other's chunks.")


def parse_numbers(spec: str, what: str, limit: float, *, remedy: str) -> tuple[float, ...]:
    """Numbers within ±`limit`, see `parse_alphas`; `what` names one of them in errors, `remedy` says what they mean.

    Raises:
        ConfigError: as `parse_alphas`.
    """
    try:
        if ":" in spec:
            start, stop, number = spec.split(":")
            ends, count = [float(start), float(stop)], int(number)
        else:
            ends = [float(part) for part in spec.split(",")]
            count = len(ends)
    except ValueError as error:
        raise ConfigError(
            f"Cannot read the {what}s {spec!r}.",
            remedy="Write start:stop:count like 0:1:5, or a list like 0,0.5,1.",
        ) from error
    if not 1 <= count <= MAX_ALPHAS:
        raise ConfigError(f"{count} {what}s were asked for.", remedy=f"Ask for 1 to {MAX_ALPHAS}.")
    for value in ends:
        if not abs(value) <= limit:  # also NaN
            raise ConfigError(f"The {what} {value:g} lies outside ±{limit:g}.", remedy=remedy)
    values = np.linspace(ends[0], ends[1], count).tolist() if ":" in spec else ends
    return tuple(dict.fromkeys(round(value, 4) + 0.0 for value in values))  # + 0.0: no -0.0


def chunk_ranges(layout: ChunkLayout, chunks: Sequence[int]) -> str:
    """Chunks as on the command line, e.g. "0-3,8"; `ChunkLayout.parse` reads them."""
    return layout.describe(chunks).split()[1]


def alpha_text(alpha: float) -> str:
    """An alpha with two decimals, or as many as it needs: 0.5 -> "0.50", 0.3333 -> "0.3333"."""
    return f"{alpha:.2f}" if round(alpha, 2) == alpha else f"{alpha:g}"
