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

from diticli.editing.attribute import move_along
from diticli.editing.engine import ImageSampler, Job, Latents, decode_all, invert_all, model_name, settled
from diticli.editing.inputs import check_source, read_source, resizing, source_digest, source_name
from diticli.editing.mixing import check_chunks
from diticli.editing.pair import pair_jobs, plan_edits, to_decode
from diticli.editing.quality import reconstruction_warnings
from diticli.editing.read_again import read_again, unmoved_warnings
from diticli.editing.results import SIDES, AttributeResult, EditResult, Label, Move, Reconstruction
from diticli.editing.settings import EditSettings, Noise
from diticli.errors import ConfigError
from diticli.pictures.tiles import Pixels, psnr, to_uint8
from diticli.probing.directions import DEFAULT_ALONG
from diticli.reading import quoted

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel
    from diticli.probing.directions import Directions

PREVIEW_STEPS = 8
"""34 dB from the full picture with the shipped model; 6 steps give 21, which looks like noise."""
KEPT_PICTURES, KEPT_BYTES = 128, 2**28
"""Pictures of all visitors whose inversion is kept: the last ones used, fewer where they are large."""
_BYTES_A_PIXEL = 3 * (4 + 4 + 1 + 1)  # x0 and x_T in float32, original and reconstruction in 8 bits
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
        resized: how the file became that, e.g. "712x872 -> centre square -> 32 px."; "" where it was that.
    """

    name: str
    original: Pixels
    reconstruction: Pixels
    psnr: float
    latents: Latents
    resized: str = ""


class Workbench:
    """One model for all visitors; work is done one piece at a time.

    Args:
        model: with a base.
        settings: solver, steps and precision of the full pictures.
        directions: of a probe on this model's features, for attribute edits.
        kept: pictures whose inversion is kept, the last ones used; by default as many as `KEPT_BYTES` hold, at most
            `KEPT_PICTURES`.

    Raises:
        ConfigError: for noise that needs no second picture.
    """

    def __init__(
        self,
        model: DiTiModel,
        *,
        settings: EditSettings | None = None,
        directions: Directions | None = None,
        kept: int | None = None,
    ) -> None:
        self.model = model
        self.settings = settled(model, settings or EditSettings())
        self.directions = directions
        self._sampler: ImageSampler = model.sampler(**self.settings.sampler_kwargs())
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        large = KEPT_BYTES // (_BYTES_A_PIXEL * model.resolution**2)
        self._kept = kept or min(KEPT_PICTURES, max(2, large))
        self._lock = threading.RLock()

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
        check_source(source)
        key = source_digest(source)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return replace(self._pictures[key], name=name or source_name(source))
            image = read_source(source, self.model.resolution, self.model.crop)
            x0 = self.model.preprocess([image])
            latents = invert_all(self.model, self._sampler, x0, self.settings, _asking(stale))
            kept = Reconstruction(0)
            decoded = self._decode([Job(kept, latents.x_T[0], latents.z[0])], self.settings, stale)
            original = to_uint8(x0)[0]
            found = Picture(
                name=name or source_name(source),
                original=original,
                reconstruction=decoded[kept],
                psnr=psnr(decoded[kept], original),
                latents=latents,
                resized=resizing(source, self.model.resolution, self.model.crop).rpartition(": ")[2],
            )
            self._pictures[key] = found
            while len(self._pictures) > self._kept:
                self._pictures.popitem(last=False)
            return found

    def warnings(self, *pictures: Picture) -> list[str]:
        """What spoils edits of these pictures, as `diti edit` says it."""
        return reconstruction_warnings({picture.name: picture.psnr for picture in pictures}, self.settings, self.model)

    def move_warnings(self, picture: Picture, result: AttributeResult) -> list[str]:
        """As `warnings`, of an edit of attributes; also those that it does not show.

        Raises:
            ConfigError: without a probe.
        """
        with self._lock:
            read = read_again(self.model, self._known_directions(), result)
        return [*self.warnings(picture), *unmoved_warnings(result, read, {}, self.model)]

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
    ) -> EditResult:
        """A with B's chunks and B with A's, as `edit_pair` makes them.

        Raises:
            ChunkError: for an empty set, or a chunk that the model lacks.
            ConfigError: for another noise than keep, slerp and swap.
            SupersededError: when `stale` said yes.
        """
        if noise not in _NOISES:
            raise ConfigError(f"There is no noise {quoted(noise)} here.", remedy=f"Choose {', '.join(_NOISES)}.")
        layout, settings = self.model.chunks, replace(self.preview if preview else self.settings, noise=noise)
        x0, z, x_T = (torch.cat(parts) for parts in _parts(a.latents, b.latents))
        edits = plan_edits([tuple(chunks)], alphas, layout)
        jobs = list(pair_jobs(Latents(x0=x0, z=z, x_T=x_T), (0, 1), to_decode(edits, settings), layout, settings))
        decoded = self._decode(jobs[len(SIDES) :], settings, stale)
        kept = (a.reconstruction, b.reconstruction)
        return EditResult(
            names=(a.name, b.name),
            originals=np.stack([a.original, b.original]),
            reconstructions=np.stack(kept),
            edits={edit: decoded.get(edit, kept[SIDES.index(edit.side)]) for edit in edits},
            z=z.numpy(),
            psnr=(a.psnr, b.psnr),
            layout=layout,
            model_hash=self.model.model_hash,
            settings=settings,
            model_name=model_name(self.model),
        )

    def move(
        self,
        picture: Picture,
        amounts: Mapping[str, float],
        chunks: Sequence[int] | None = None,
        *,
        learned: bool = False,
        preview: bool = False,
        stale: Stale | None = None,
    ) -> AttributeResult:
        """The picture with several attributes moved, as `edit_attribute` makes it.

        Args:
            picture: which.
            amounts: attribute -> how far; see `diticli.editing.attribute`.
            chunks: move the dims of these only.
            learned: move only the dims of each attribute's learned mask.
            preview: few steps.
            stale: as in `picture`.

        Returns:
            One edit: of the first attribute that moves, the others moving besides.

        Raises:
            ConfigError: without a probe.
            LabelError: for an attribute that the probe does not know, or a mask that it did not learn.
            SupersededError: when `stale` said yes.
        """
        directions, layout = self._known_directions(), self.model.chunks
        chosen = None if chunks is None else tuple(chunks)
        check_chunks(range(layout.chunks) if chosen is None else chosen, layout)
        steps = [(name, amount) for name, amount in amounts.items() if amount]
        (first, amount), *others = steps or [(directions.attributes[0], 0.0)]
        learned_dims = len(directions.learned_dims(first)) if learned else None
        settings = self.preview if preview else self.settings
        edit, moved = Move(0, first, chosen, amount), picture.reconstruction
        if steps:
            z = move_along(directions, picture.latents.z, steps, chunks=chosen, layout=layout, learned=learned)
            moved = self._decode([Job(edit, picture.latents.x_T[0], z[0])], settings, stale)[edit]
        return AttributeResult(
            names=(picture.name,),
            originals=picture.original[None],
            reconstructions=picture.reconstruction[None],
            edits={edit: moved},
            psnr=(picture.psnr,),
            also=dict(others),
            learned_dims=learned_dims,
            along=DEFAULT_ALONG,
            layout=layout,
            model_hash=self.model.model_hash,
            settings=settings,
            model_name=model_name(self.model),
        )

    def read_attributes(self, pixels: Pixels) -> dict[str, float]:
        """What the probe reads from a picture, uint8 [R, R, 3]: attribute -> its classifier's output.

        Raises:
            ConfigError: without a probe.
        """
        directions = self._known_directions()
        x0 = self.model.preprocess([Image.fromarray(pixels)])
        with self._lock, torch.inference_mode():
            z = self.model.encode(x0).float().cpu().numpy()
        outputs = directions.full.predict(z)[0]
        return dict(zip(directions.attributes, outputs.tolist(), strict=True))

    def by_chunk(self, picture: Picture) -> npt.NDArray[np.float64]:
        """[K] root mean square of each chunk's features."""
        z = picture.latents.z[0].double().numpy()
        layout = self.model.chunks
        return np.array([np.sqrt(np.mean(z[layout.dims_of(chunk)] ** 2)) for chunk in range(layout.chunks)])

    def _known_directions(self) -> Directions:
        if self.directions is None:
            raise ConfigError("No probe is loaded.", remedy="Start with --probe DIR, the output of diti probe.")
        return self.directions

    def _decode(self, jobs: Sequence[Job], settings: EditSettings, stale: Stale | None) -> dict[Label, Pixels]:
        if not jobs:
            return {}
        size = settings.default_batch_size(self.model.resolution, torch.device(self.model.device).type)
        with self._lock:
            decoded = dict(decode_all(self._sampler, jobs, settings, size, _asking(stale)))
        return dict(zip(decoded, to_uint8(torch.stack(list(decoded.values()))), strict=True))


def _parts(a: Latents, b: Latents) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(a.x0, b.x0), (a.z, b.z), (a.x_T, b.x_T)]


def _asking(stale: Stale | None) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if stale is not None and done < total and stale():
            raise SupersededError

    return step
