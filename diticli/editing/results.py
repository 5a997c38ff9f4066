"""Results of edits: pictures by what was done to them, and how they were made.

They draw nothing themselves; `diticli.editing.contact_sheet` lays them out.

Legend of shape suffixes: N images, D latent dim, R resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from diticli.chunks import ChunkLayout
from diticli.config import Along
from diticli.editing.mixing import alpha_text
from diticli.editing.settings import EditSettings, Noise
from diticli.pictures.tiles import Pixels

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = get_args(Side)
Chunks = tuple[int, ...] | None


class Reconstruction(NamedTuple):
    """Image number `image` decoded from its own features and this noise: "keep" is its own, inferred."""

    image: int
    noise: Noise = "keep"


class Edit(NamedTuple):
    """One counterfactual: image `side` with `chunks` moved by `alpha` towards the other image."""

    side: Side
    chunks: tuple[int, ...]
    alpha: float


class Move(NamedTuple):
    """One edit: image number `image` with `attribute` moved by `amount`, in `chunks` only unless that is None."""

    image: int
    attribute: str
    chunks: Chunks
    amount: float


Label = Reconstruction | Edit | Move
"""What a decoded picture is."""


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """Two images, their reconstructions, and their counterfactuals.

    Attributes:
        names: what to call A and B.
        originals: uint8 [2, R, R, 3], A then B, as the model saw them.
        reconstructions: uint8 [2, R, R, 3], decoded without a change.
        edits: the counterfactuals, uint8 [R, R, 3] each.
        z: float32 [2, D] features.
        psnr: of the reconstructions against the originals, in dB; infinite when equal.
        layout: chunks of the model.
        model_hash: fingerprint of the model.
        model_name: what it was loaded as; "" where it was not.
        settings: how they were made.
    """

    names: tuple[str, str]
    originals: Pixels
    reconstructions: Pixels
    edits: Mapping[Edit, Pixels]
    z: npt.NDArray[np.float32]
    psnr: tuple[float, float]
    layout: ChunkLayout
    model_hash: str
    settings: EditSettings
    model_name: str = ""

    @property
    def chunk_sets(self) -> tuple[tuple[int, ...], ...]:
        """The sets of chunks that were exchanged, in the order asked for."""
        return tuple(dict.fromkeys(edit.chunks for edit in self.edits))

    @property
    def alphas(self) -> tuple[float, ...]:
        """The strengths, in the order asked for."""
        return tuple(dict.fromkeys(edit.alpha for edit in self.edits))

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            "diti:chunks": " | ".join(self.layout.describe(chunks) for chunks in self.chunk_sets),
            "diti:alphas": ",".join(alpha_text(alpha) for alpha in self.alphas),
            **self.settings.describe(self.layout.timesteps),
            "diti:psnr_db": ", ".join(f"{value:.2f}" for value in self.psnr),
        }


@dataclass(frozen=True, kw_only=True)
class AttributeResult:
    """Images, their reconstructions, and their edits.

    Attributes:
        names: [N] what to call the images.
        originals: uint8 [N, R, R, 3], as the model saw them.
        reconstructions: uint8 [N, R, R, 3], decoded without a change.
        edits: uint8 [R, R, 3] each.
        psnr: [N] of the reconstructions, in dB.
        learned_dims: how many dims of a learned mask moved; None for all.
        along: which direction, see `Directions.move`.
        layout: chunks of the model.
        model_hash: fingerprint of the model.
        model_name: what it was loaded as; "" where it was not.
        settings: how they were made.
        also: attribute -> amount by which every edit moved besides.
    """

    names: tuple[str, ...]
    originals: Pixels
    reconstructions: Pixels
    edits: Mapping[Move, Pixels]
    psnr: tuple[float, ...]
    learned_dims: int | None
    along: Along
    layout: ChunkLayout
    model_hash: str
    settings: EditSettings
    model_name: str = ""
    also: Mapping[str, float] = field(default_factory=dict)

    @property
    def zero_is_reconstruction(self) -> bool:
        """Whether an edit by 0 is its image's reconstruction: nothing else moves, and the noise is the image's own."""
        return self.settings.noise == "keep" and not self.also

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes, in the order asked for."""
        return tuple(dict.fromkeys(move.attribute for move in self.edits))

    @property
    def chunk_sets(self) -> tuple[Chunks, ...]:
        """The sets of chunks that moved; None stands for all of them."""
        return tuple(dict.fromkeys(move.chunks for move in self.edits))

    @property
    def amounts(self) -> tuple[float, ...]:
        """The amounts, in the order asked for."""
        return tuple(dict.fromkeys(move.amount for move in self.edits))

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        sets = (self.layout.describe(chunks) if chunks else "all chunks" for chunks in self.chunk_sets)
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            "diti:attributes": " | ".join(self.attributes),
            "diti:amounts": ",".join(alpha_text(amount) for amount in self.amounts),
            **(
                {"diti:also": ", ".join(f"{name} {amount:+g}" for name, amount in self.also.items())}
                if self.also
                else {}
            ),
            "diti:chunks": " | ".join(sets),
            "diti:along": self.along,
            "diti:dims": "all" if self.learned_dims is None else f"{self.learned_dims} learned",
            **self.settings.describe(self.layout.timesteps),
            "diti:psnr_db": ", ".join(f"{value:.2f}" for value in self.psnr),
        }


@dataclass(frozen=True, kw_only=True)
class ReconstructionResult:
    """Images and what their features give back.

    Attributes:
        names: [N] what to call the images.
        originals: uint8 [N, R, R, 3], as the model saw them.
        pictures: uint8 [N, R, R, 3] for each kind of noise.
        psnr: [N] in dB against the originals, for each kind of noise.
        model_hash: fingerprint of the model.
        model_name: what it was loaded as; "" where it was not.
        timesteps: T of the model.
        settings: how they were made; its `noise` says nothing here.
    """

    names: tuple[str, ...]
    originals: Pixels
    pictures: Mapping[Noise, Pixels]
    psnr: Mapping[Noise, tuple[float, ...]]
    model_hash: str
    timesteps: int
    settings: EditSettings
    model_name: str = ""

    def to_metadata(self) -> dict[str, str]:
        """Text that lets a picture be made again; PNG text chunks hold it."""
        values = (f"{noise} " + ", ".join(f"{value:.2f}" for value in self.psnr[noise]) for noise in self.pictures)
        return {
            "diti:model": self.model_hash,
            "diti:images": " | ".join(self.names),
            **self.settings.describe(self.timesteps),
            "diti:noise": f"{', '.join(self.pictures)} (seed {self.settings.seed})",
            "diti:psnr_db": " | ".join(values),
        }


def decibels(value: float) -> str:
    """A PSNR with one decimal; "exact" when it is infinite."""
    return f"{value:.1f} dB" if value < 1000 else "exact"
