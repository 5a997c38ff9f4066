"""Whether the parts of a pipeline fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diticli.data.decode import CROP_NOTES
from diticli.errors import ModelError

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel


def check_parts(pipeline: DiTiModel) -> None:
    """Refuse parts that do not fit each other.

    Raises:
        ModelError: naming what disagrees.
    """
    if (pipeline.unet is None) != (pipeline.shift_decoder is None):
        raise ModelError(
            "A base and a shift decoder need each other; one of them is missing.", remedy="Give both, or neither."
        )
    widths = {pipeline.chunks.latent_dim, pipeline.encoder.config.latent_dim}
    if pipeline.shift_decoder is not None:
        widths.add(pipeline.shift_decoder.config.latent_dim)
    if len(widths) != 1:
        raise ModelError(f"Layout, encoder and shift decoder disagree on the latent dim: {sorted(widths)}.")
    if pipeline.chunks.timesteps != pipeline.schedule.timesteps:
        raise ModelError(
            f"The layout covers {pipeline.chunks.timesteps} time-steps, the scheduler {pipeline.schedule.timesteps}."
        )
    if pipeline.config.shift_form not in ("score", "posterior"):
        raise ModelError(f"shift_form is 'score' or 'posterior', got {pipeline.config.shift_form!r}.")
    if pipeline.config.crop not in CROP_NOTES:
        raise ModelError(f"crop is one of {', '.join(CROP_NOTES)}, got {pipeline.config.crop!r}.")
