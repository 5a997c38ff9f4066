"""What the page works with: a model, the visitors' pictures as it holds them, and edits of them.

Nothing here knows of the page. Inversions are kept, so that a change of chunks or strength only decodes.

Legend of shape suffixes: N batch, D latent dim, R resolution.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.editing.engine import ImageSampler, Job, Latents, Reconstruction, decode_all, invert_all
from diticli.editing.inputs import read_source, source_digest
from diticli.editing.pair import Edit, pair_jobs
from diticli.editing.settings import EditSettings, Noise
from diticli.errors import ConfigError
from diticli.pictures.tiles import Pixels, psnr, to_uint8

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel
    from diticli.probing.directions import Directions

PREVIEW_STEPS = 8
"""34 dB from the full picture with the shipped model; 6 steps give 21, which looks like noise."""
KEPT_PICTURES = 128
_NOISES: tuple[Noise, ...] = ("keep", "slerp", "swap")

Stale = Callable[[], bool]


class SupersededError(Exception):
    """A newer change has made this work needless."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as the model holds it.

    Attributes:
        name: what to call it: a file's name, or faces:INDEX.
        original: uint8 [R, R, 3], as the model sees it.
        reconstruction: uint8 [R, R, 3], decoded without a change.
        psnr: of the reconstruction, in dB; infinite when equal.
        latents: features and noise, N = 1.
    """

    name: str
    original: Pixels
    reconstruction: Pixels
    psnr: float
    latents: Latents


class Workbench:
    """One model for all visitors; work is done one piece at a time.

    Args:
        model: with a base.
        settings: solver, steps and precision of the full pictures.
        directions: of a probe on this model's features, for attribute edits.
        kept: pictures whose inversion is kept, the last ones used.

    Raises:
        ConfigError: for noise that needs no second picture.
    """

    def __init__(
        self,
        model: DiTiModel,
        *,
        settings: EditSettings | None = None,
        directions: Directions | None = None,
        kept: int = KEPT_PICTURES,
    ) -> None:
        self.model = model
        self.settings = settings or EditSettings()
        self.directions = directions
        self._sampler: ImageSampler = model.sampler(**self.settings.sampler_kwargs())
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._kept = kept
        self._lock = threading.Lock()

    @property
    def preview(self) -> EditSettings:
        """Few steps, for a picture while the full one is computed."""
        return replace(self.settings, decode_steps=min(PREVIEW_STEPS, self.settings.decode_steps))

    def picture(self, source: str, name: str | None = None, *, stale: Stale | None = None) -> Picture:
        """A picture, inverted once and kept.

        Args:
            source: a file, or faces:INDEX[:SEED].
            name: what to call it; its own name by default.
            stale: asked between steps; ends the work where it says yes.

        Raises:
            DataError: when it cannot be read.
            ConfigError: for a face that cannot be read.
            SupersededError: when `stale` said yes.
        """
        from diticli.editing.inputs import check_source, source_name

        check_source(source)
        key = source_digest(source)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
            image = read_source(source, self.model.resolution, self.model.crop)
            x0 = self.model.preprocess([image])
            latents = invert_all(self.model, self._sampler, x0, self.settings, _asking(stale))
            decoded = self._decode([Job(Reconstruction(0), latents.x_T[0], latents.z[0])], self.settings, stale)
            original = to_uint8(x0)[0]
            found = Picture(
                name=name or source_name(source),
                original=original,
                reconstruction=decoded[0],
                psnr=psnr(decoded[0], original),
                latents=latents,
            )
            self._pictures[key] = found
            while len(self._pictures) > self._kept:
                self._pictures.popitem(last=False)
            return found

    def exchange(
        self,
        a: Picture,
        b: Picture,
        chunks: Sequence[int],
        alphas: Sequence[float],
        noise: Noise = "keep",
        *,
        preview: bool = False,
        stale: Stale | None = None,
    ) -> tuple[Pixels, Pixels]:
        """A with B's chunks and B with A's, uint8 [len(alphas), R, R, 3] each; the pictures of `edit_pair`.

        Raises:
            ChunkError: for an empty set, or a chunk that the model lacks.
            ConfigError: for another noise than keep, slerp and swap.
            SupersededError: when `stale` said yes.
        """
        if noise not in _NOISES:
            raise ConfigError(f"There is no noise {noise!r} here.", remedy=f"Choose {', '.join(_NOISES)}.")
        settings = replace(self.preview if preview else self.settings, noise=noise)
        x0, z, x_T = (torch.cat(parts) for parts in _parts(a.latents, b.latents))
        both = Latents(x0=x0, z=z, x_T=x_T)
        edits = [Edit(side, tuple(chunks), alpha) for side in ("a", "b") for alpha in alphas]
        jobs = list(pair_jobs(both, (0, 1), edits, self.model.chunks, settings))[2:]
        with self._lock:
            decoded = self._decode(jobs, settings, stale)
        return decoded[: len(alphas)], decoded[len(alphas) :]

    def move(
        self,
        picture: Picture,
        amounts: Mapping[str, float],
        chunks: Sequence[int] | None = None,
        *,
        learned: bool = False,
        preview: bool = False,
        stale: Stale | None = None,
    ) -> Pixels:
        """The picture with several attributes moved, uint8 [R, R, 3].

        Args:
            picture: which.
            amounts: attribute -> how far; see `diticli.editing.attribute`.
            chunks: move the dims of these only.
            learned: move only the dims of each attribute's learned mask.
            preview: few steps.
            stale: as in `picture`.

        Raises:
            ConfigError: without a probe.
            LabelError: for an attribute that the probe does not know.
        """
        if self.directions is None:
            raise ConfigError("No probe is loaded.", remedy="Start with --probe DIR, the output of diti probe.")
        z = picture.latents.z
        layout = self.model.chunks
        for attribute, amount in amounts.items():
            if amount:
                z = self.directions.move(
                    z, attribute, amount, dims="learned" if learned else None, chunks=chunks, layout=layout
                )
        if z is picture.latents.z:
            return picture.reconstruction
        with self._lock:
            settings = self.preview if preview else self.settings
            return self._decode([Job(Reconstruction(0), picture.latents.x_T[0], z[0])], settings, stale)[0]

    def read_attributes(self, pixels: Pixels) -> dict[str, float]:
        """What the probe reads from a picture, uint8 [R, R, 3]: attribute -> its classifier's output.

        Raises:
            ConfigError: without a probe.
        """
        if self.directions is None:
            raise ConfigError("No probe is loaded.", remedy="Start with --probe DIR, the output of diti probe.")
        x0 = self.model.preprocess([Image.fromarray(pixels)])
        with self._lock, torch.inference_mode():
            z = self.model.encode(x0).float().cpu().numpy()
        outputs = self.directions.full.predict(z)[0]
        return dict(zip(self.directions.attributes, outputs.tolist(), strict=True))

    def by_chunk(self, picture: Picture) -> npt.NDArray[np.float64]:
        """[K] root mean square of each chunk's features."""
        z = picture.latents.z[0].double().numpy()
        layout = self.model.chunks
        return np.array([np.sqrt(np.mean(z[layout.dims_of(chunk)] ** 2)) for chunk in range(layout.chunks)])

    def _decode(self, jobs: Sequence[Job], settings: EditSettings, stale: Stale | None) -> Pixels:
        size = settings.default_batch_size(self.model.resolution, torch.device(self.model.device).type)
        images = [image for _, image in decode_all(self._sampler, jobs, settings, size, _asking(stale))]
        return to_uint8(torch.stack(images))


def _parts(a: Latents, b: Latents) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(a.x0, b.x0), (a.z, b.z), (a.x_T, b.x_T)]


def _asking(stale: Stale | None) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if stale is not None and done < total and stale():
            raise SupersededError

    return step
