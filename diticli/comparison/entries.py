"""Entries of a comparison: their dims, size and weights, and how each turns images into features.

Legend of shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from diticli.chunks import ChunkLayout
from diticli.comparison.base_choice import Place
from diticli.comparison.entry_specs import EntrySpec
from diticli.config import Precision
from diticli.config_groups import Crop, ValueRange
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode import Encode
from diticli.errors import ConfigError
from diticli.features.manifest import FeatureMeta
from diticli.features.read import read_features
from diticli.models.base_features import (
    BaseFeatures,
    base_hash,
    block_width,
    block_widths,
    candidate_timesteps,
    check_timesteps,
    describe_features,
)
from diticli.models.device import global_generators_kept
from diticli.models.encoder import SemanticEncoder
from diticli.models.identity import weights_digest
from diticli.models.load import load_pipeline
from diticli.models.pipeline import DiTiPipeline
from diticli.progress import Reporter

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a comparison: a model, a feature file or a baseline.

    Attributes:
        spec: as it was named.
        dims: d of its features.
        resolution: of the images it reads; 0 where features are given.
        crop: which square of a picture it reads.
        channels: of the images it reads, 3 for RGB, 1 for grey.
        value_range: black and white of pictures of more than 8 bits, as its model was trained; None: not known.
        model_hash: of its weights, "" where unknown or without any.
        layout: of its chunks, where it has some.
        edits: whether it can invert and decode images.
        places: of features of the base; validation images choose one of several.
    """

    spec: EntrySpec
    dims: int
    resolution: int = 0
    crop: Crop = "center"
    channels: int = 3
    value_range: ValueRange | None = None
    model_hash: str = ""
    layout: ChunkLayout | None = None
    edits: bool = False
    places: tuple[Place, ...] = ()

    @property
    def name(self) -> str:
        """Of the entry."""
        return self.spec.name

    def describe(self) -> str:
        """What it is, in a few words."""
        kind = self.spec.kind
        if kind in ("pixels", "pca"):
            what = "raw pixels" if kind == "pixels" else "PCA of the training rows' pixels"
            return f"{what}, {self.resolution}x{self.resolution}"
        if kind == "features":
            return f"features of {self.spec.source}"
        if kind == "base":
            if len(self.places) > 1:
                return f"frozen base, its best block and timestep (validation), {self.resolution} px"
            (place,) = self.places
            return f"frozen base, {place.block} block at t = {place.timestep}, {self.resolution} px"
        if kind == "untrained":
            return f"encoder before training, {self.resolution} px"
        if self.layout is None or not self.edits:
            return f"encoder alone, {self.resolution} px"
        method = "PDAE (K = 1)" if self.layout.chunks == 1 else f"DiTi (K = {self.layout.chunks})"
        return f"{method}, {self.resolution} px"


class Entries:
    """All entries, loaded once to see what they are.

    Args:
        specs: in the order of the table.
        pixel_side: larger images are reduced to so many pixels a side for raw pixels and PCA.
        device: where models go.

    Attributes:
        all: the entries with their facts.

    Raises:
        ModelError: for a run that does not exist, has not finished, or is damaged.
        FeatureFileError: for features that cannot be read.
        ConfigError: for an untrained encoder without a model that shows its architecture, and for features of a base
            without a model that has one, or that it does not have.
    """

    def __init__(self, specs: Sequence[EntrySpec], *, pixel_side: int, device: torch.device) -> None:
        self._device, self._pixel_side = device, pixel_side
        self._template: SemanticEncoder | None = None
        self._reading: dict[str, Any] = {}
        self._base: Entry | None = None
        self._wants_base = any(c.kind == "base" for c in specs)
        found = {c.name: self._look_at(c) for c in specs if c.kind in ("model", "features")}
        found |= {c.name: self._built_in(c, next(iter(found.values()), None)) for c in specs if not c.source}
        self.all = tuple(found[spec.name] for spec in specs)

    def encode(self, entry: Entry, precision: Precision, reporter: Reporter) -> tuple[Encode, FeatureMeta]:
        """What turns images into the entry's features, and what the metadata says of it.

        PCA has none of its own: this gives the pixels it is made of.
        """
        kind = entry.spec.kind
        if kind in ("pixels", "pca"):
            return _pixels, self.meta(entry, "fp32")
        if kind == "base":
            assert self._base is not None
            model = self.load(self._base)
            features = BaseFeatures(
                model.denoisers()[0],
                model.schedule,
                entry.spec.base,
                timesteps=_distinct(place.timestep for place in entry.places),
                blocks=_distinct(place.block for place in entry.places),
                precision=precision,
            )
            return features, self.meta(entry, features.precision)
        encoder = self._untrained(entry.spec.seed) if kind == "untrained" else self.load(entry).encoder
        batch_encoder = BatchEncoder(encoder.to(self._device), precision, reporter=reporter)
        return batch_encoder, self.meta(entry, batch_encoder.precision)

    def meta(self, entry: Entry, precision: str) -> FeatureMeta:
        """Metadata of its features, without names."""
        image = {"resolution": entry.resolution, "crop": entry.crop, "range": [-1, 1]}
        image |= {} if entry.channels == 3 else {"channels": entry.channels}
        if entry.spec.kind in ("pixels", "pca"):
            image["range"] = [0, 1]
        if entry.spec.kind == "base":
            image |= describe_features(
                _distinct(place.timestep for place in entry.places), _distinct(place.block for place in entry.places)
            )
        chunks = entry.layout if entry.spec.kind == "model" else None
        return FeatureMeta(
            files=(),
            chunk_ends=chunks.ends if chunks else (),
            timestep_ends=chunks.timestep_ends if chunks else (),
            visible=chunks.visible if chunks else "prefix",
            model=entry.spec.source or entry.name,
            model_hash=entry.model_hash,
            preprocessing=image | {"precision": precision},
        )

    def _look_at(self, spec: EntrySpec) -> Entry:
        if spec.kind == "features":
            features = read_features(Path(spec.source))
            meta = features.meta
            layout = meta.layout if meta else None
            model_hash = meta.model_hash if meta else ""
            return Entry(spec=spec, dims=features.values.shape[1], layout=layout, model_hash=model_hash)
        pipeline = load_pipeline(spec.source, str(self._device))
        if self._template is None:
            self._template, self._reading = pipeline.encoder.to("cpu"), pipeline.reading
        found = Entry(
            spec=spec,
            dims=pipeline.chunks.latent_dim,
            resolution=pipeline.resolution,
            **pipeline.reading,
            model_hash=pipeline.model_hash,
            layout=pipeline.chunks,
            edits=pipeline.unet is not None,
        )
        if self._base is None and self._wants_base and pipeline.unet is not None:
            self._base = found
        return found

    def _of_base(self, spec: EntrySpec) -> Entry:
        """Features of the frozen base of the first model that has one."""
        if self._base is None:
            raise ConfigError(
                "No model with a frozen base is named, whose features could be compared.",
                remedy="Name a run that is no encoder alone, or leave base out of --baselines.",
            )
        model = self.load(self._base)
        unet, timesteps, of_base = model.denoisers()[0], model.schedule.timesteps, spec.base
        if of_base.timestep is None:
            chosen, widths = candidate_timesteps(timesteps), block_widths(unet)
        else:
            chosen, widths = (of_base.timestep,), {of_base.block: block_width(unet, of_base.block)}
        check_timesteps(chosen, timesteps)
        return replace(
            self._base,
            spec=spec,
            dims=max(widths.values()),
            model_hash=base_hash(unet, model.schedule),
            layout=None,
            edits=False,
            places=tuple(Place(t, block, width) for t in chosen for block, width in widths.items()),
        )

    def _built_in(self, spec: EntrySpec, first: Entry | None) -> Entry:
        if spec.kind == "base":
            return self._of_base(spec)
        config: Any = None if self._template is None else self._template.config
        if spec.kind == "untrained":
            if config is None:
                raise ConfigError(
                    "An untrained encoder needs a model that shows its architecture, and only features are named.",
                    remedy="Name a run as well, or give --baselines pixels,pca.",
                )
            weights = weights_digest({"encoder": self._untrained(spec.seed)}, "untrained")
            size, width = int(config.sample_size), int(config.latent_dim)
            return Entry(spec=spec, dims=width, resolution=size, model_hash=weights, **self._reading)
        side = min(self._pixel_side, int(config.sample_size)) if config else self._pixel_side
        dims = self._reading.get("channels", 3) * side**2
        if spec.kind == "pca" and first is not None:
            dims = min(dims, first.dims)
        return Entry(spec=spec, dims=dims, resolution=side, **self._reading)

    @property
    def value_range(self) -> ValueRange | None:
        """Black and white of pictures of more than 8 bits, as the first model that has some was trained."""
        return next((entry.value_range for entry in self.all if entry.value_range is not None), None)

    def load(self, entry: Entry) -> DiTiPipeline:
        """The model of an entry, on the device."""
        return load_pipeline(entry.spec.source, str(self._device))

    def _untrained(self, seed: int) -> SemanticEncoder:
        """Weights as they are drawn before training."""
        assert self._template is not None
        with global_generators_kept(self._device):
            torch.manual_seed(seed)
            encoder = SemanticEncoder(**self._template.config)
        return encoder.eval()


def describe_sizes(entries: Sequence[Entry]) -> str:
    """One line that says who reads which size, where models differ; else ""."""
    sizes = {s.name: (s.resolution, s.crop, s.channels) for s in entries if s.spec.kind == "model"}
    if len(set(sizes.values())) < 2:
        return ""
    listed = ", ".join(
        f"{name} {size} px ({crop} crop{', grey' if channels == 1 else ''})"
        for name, (size, crop, channels) in sizes.items()
    )
    return f"Each model reads the images in its own way: {listed}."


def _distinct(values: Iterable[_T]) -> tuple[_T, ...]:
    return tuple(dict.fromkeys(values))


def _pixels(images_BCHW: torch.Tensor) -> torch.Tensor:
    return images_BCHW.float().div(255).flatten(1)
