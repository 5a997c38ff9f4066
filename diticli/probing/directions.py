"""Attribute directions: where to move features so that a picture smiles more, all or in some chunks only.

directions = load_directions(Path("probe"))                      # what `diti probe ... -o probe` left
directions.check_model(pipeline.model_hash)
z = directions.move(pipeline.encode(x0), "Smiling", 0.3, dims="learned")

Method: Yue et al., ICLR 2024 (arXiv 2401.11430), section 5, after Preechakul et al., CVPR 2022 (Diff-AE): on
standardised features z' = (z - mean) / std, move by amount * sqrt(d) * w / ||w|| along a linear classifier's
weight w, then undo the standardisation. A move by 1 is one standard deviation in the root mean square of all d
dimensions; a direction that is held to fewer dimensions is as long, so each of these moves further.

A weight is a filter: where features are correlated it also points along what must be subtracted to read the
attribute. `along="pattern"` moves along the covariance of features and classifier output instead, which is how
features change where the attribute does (Haufe et al., NeuroImage 2014, eq. 6).

On disk `directions.safetensors` holds the numbers, and `directions.json` says what they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diticli._version import __version__
from diticli.chunks import ChunkLayout
from diticli.config import Along
from diticli.errors import ChunkError, ConfigError, FeatureFileError, LabelError, ModelError
from diticli.files import write_atomically
from diticli.probing.linear_probe import LinearProbe, checked_probe
from diticli.reading import parse_json, quoted, read_regular, shortened
from diticli.types import FloatArray

Dims = Sequence[int] | Literal["learned"]
DEFAULT_ALONG: Along = "pattern"
"""Patterns move their own attribute further and others less, measured on the built-in faces (`diti evaluate`)."""

TENSORS_NAME = "directions.safetensors"
FACTS_NAME = "directions.json"
FORMAT = "diti-directions/1"
_FULL = ("weights", "bias", "mean", "std")
_MASKED = ("weights", "bias")
_REMEDY = "Make them with `diti probe ... -o DIR`."
_NO_WEIGHT = 1e-6
MAX_AMOUNT = 10.0
"""Beyond it the average dimension would lie ten standard deviations off, where no decoder has seen any."""


@dataclass(frozen=True, kw_only=True)
class Directions:
    """Directions of all attributes of a probe.

    An attribute is named as in the labels, a class of a category as "attribute=class". A positive amount moves
    towards 1, towards larger numbers, or towards the class.

    Attributes:
        full: classifiers on all dimensions, with the standardisation.
        masked: classifiers on the dimensions that `--mask-dims` chose (weights are 0 elsewhere), or None.
        chosen: these dimensions, ascending, by attribute.
        patterns: float32 [A, d] covariance of each standardised feature with each row's output in `full`, or None.
        layout: chunks of the model, or None when unknown.
        model: id of the model whose features these are; "" when unknown.
    """

    full: LinearProbe
    masked: LinearProbe | None = None
    chosen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    patterns: FloatArray | None = None
    layout: ChunkLayout | None = None
    model: str = ""

    @property
    def attributes(self) -> tuple[str, ...]:
        """What can be moved."""
        return self.full.labels

    @property
    def latent_dim(self) -> int:
        """d."""
        return len(self.full.mean)

    def named(self, attribute: str) -> str:
        """An attribute as the labels spell it; capitals and small letters may differ.

        Raises:
            LabelError: for an unknown attribute.
        """
        return self.attributes[self.full.row_of(attribute)]

    def check_model(self, model_hash: str, model: str = "") -> None:
        """Refuse a model other than the one whose features were probed; unknown hashes pass.

        Raises:
            ModelError: when both hashes are known and differ.
        """
        own = self.full.model_hash
        if own and model_hash and own != model_hash:
            raise ModelError(
                f"These directions belong to the features of another model: {self.model or 'unnamed'} "
                f"(hash {own}), not {model or 'this one'} (hash {model_hash}).",
                remedy="Run `diti encode` with this model and `diti probe` on its features.",
            )

    def learned_dims(self, attribute: str) -> tuple[int, ...]:
        """Dimensions chosen for an attribute, ascending; all classes of a category share them.

        Raises:
            LabelError: for an unknown attribute, or when the probe learned no masks.
        """
        row = self.full.row_of(attribute)
        if self.masked is None:
            raise LabelError("This probe chose no dimensions.", remedy="Run `diti probe` with --mask-dims N.")
        return self.chosen[self.full.names[row]]

    def vector(
        self,
        attribute: str,
        *,
        dims: Dims | None = None,
        chunks: Sequence[int] | None = None,
        layout: ChunkLayout | None = None,
        along: Along = DEFAULT_ALONG,
    ) -> FloatArray:
        """The move of amount 1 in standardised features: float32 [d] of length sqrt(d).

        Args:
            attribute: one of `attributes`.
            dims: "learned" takes the classifier of the learned mask; indices keep only these weights of the full
                classifier; None keeps all.
            chunks: also keep only the dimensions of these chunks.
            layout: the chunks' dimensions; None takes the layout of the probed features.
            along: "weight" as in the paper, or "pattern"; with learned dims the pattern keeps these dims.

        Raises:
            LabelError: for an unknown attribute, or learned dims that there are not.
            ConfigError: for dims outside 0..d-1, or when no dimension with a weight is left, or patterns
                that there are not.
            ChunkError: for chunks outside the layout, without a layout, or with one of another width.
        """
        weights = self._start(attribute, dims, along).astype(np.float64)
        floor = _NO_WEIGHT * np.linalg.norm(weights)
        if isinstance(dims, str):
            dims = self.learned_dims(attribute)
        if dims is not None:
            weights = np.where(self._dim_mask(dims), weights, 0.0)
        if chunks is not None:
            weights = np.where(self._chunk_mask(chunks, layout or self.layout), weights, 0.0)
        length = np.linalg.norm(weights)
        if not length > floor:
            raise ConfigError(
                f"No dimension that predicts {quoted(attribute)} is left{_where(dims, chunks)}.",
                remedy="Allow more chunks or dims.",
            )
        return np.asarray(weights * (math.sqrt(self.latent_dim) / length), dtype=np.float32)

    def move(
        self,
        z_BD: torch.Tensor | npt.NDArray[Any],
        attribute: str,
        amount: float | torch.Tensor | npt.NDArray[Any],
        *,
        dims: Dims | None = None,
        chunks: Sequence[int] | None = None,
        layout: ChunkLayout | None = None,
        along: Along = DEFAULT_ALONG,
    ) -> torch.Tensor:
        """Move features along an attribute.

        Args:
            z_BD: [B, d] features as the encoder gives them (not standardised), any floating dtype and device; or an
                array, as a feature file holds them.
            attribute: one of `attributes`.
            amount: how far, for all rows or [B] one for each; -`MAX_AMOUNT`..`MAX_AMOUNT`. The official sampler
                uses -0.3..0.3.
            dims: see `vector`.
            chunks: see `vector`.
            layout: see `vector`.
            along: see `vector`.

        Returns:
            [B, d], a tensor of the dtype and on the device of `z_BD`; dimensions that do not move keep their bits.

        Raises:
            LabelError, ConfigError, ChunkError: as `vector`.
            ConfigError: for features of another width, or amounts out of range or of another number.
        """
        z_BD = z_BD if isinstance(z_BD, torch.Tensor) else _as_tensor(z_BD)
        if z_BD.dim() != 2 or z_BD.shape[1] != self.latent_dim:
            raise ConfigError(
                f"Features of shape {list(z_BD.shape)} cannot move along directions of {self.latent_dim} dims.",
                remedy="Give [B, d] features of the model that was probed.",
            )
        amounts = _checked_amounts(amount, len(z_BD))
        vector = self.vector(attribute, dims=dims, chunks=chunks, layout=layout, along=along)
        # ((z - mean) / std + v) * std + mean = z + v * std, which moves nothing by rounding
        step = torch.from_numpy(vector * self.full.std).to(z_BD.device)
        return (z_BD.float() + amounts.to(z_BD.device)[:, None] * step).to(z_BD.dtype)

    def _start(self, attribute: str, dims: Dims | None, along: Along) -> FloatArray:
        """The unrestricted direction [d]."""
        row = self.full.row_of(attribute)
        if along not in ("weight", "pattern"):
            raise ConfigError(f"A move cannot go along {quoted(along)}.", remedy="Use weight or pattern.")
        if along == "weight":
            return self.masked.weights[row] if isinstance(dims, str) and self.masked else self.full.weights[row]
        if self.patterns is None:
            raise ConfigError("These directions have no patterns.", remedy="Run `diti probe` again.")
        return self.patterns[row]

    def _dim_mask(self, dims: Sequence[int]) -> npt.NDArray[np.bool_]:
        outside = [dim for dim in dims if not 0 <= dim < self.latent_dim]
        if outside:
            raise ConfigError(
                f"Dimension {outside[0]} does not exist: the features have {self.latent_dim}.",
                remedy=f"Use dims within 0-{self.latent_dim - 1}.",
            )
        return np.isin(np.arange(self.latent_dim), list(dims))

    def _chunk_mask(self, chunks: Sequence[int], layout: ChunkLayout | None) -> npt.NDArray[np.bool_]:
        if layout is None:
            raise ChunkError("The chunks of these features are unknown.", remedy="Probe features of `diti encode`.")
        if layout.latent_dim != self.latent_dim:
            raise ChunkError(
                f"A layout of {layout.latent_dim} dims does not fit directions of {self.latent_dim}.",
                remedy="Use the layout of the model that was probed.",
            )
        outside = [chunk for chunk in chunks if not 0 <= chunk < layout.chunks]
        if outside:
            raise ChunkError(
                f"Chunk {outside[0]} does not exist: this model has {layout.chunks} chunks.",
                remedy=f"Use chunks within 0-{layout.chunks - 1}.",
            )
        return layout.dim_mask(chunks)


def save_directions(directions: Directions, folder: Path | str) -> None:
    """Write `directions.safetensors` and `directions.json` into `folder`, made when missing.

    Raises:
        DataError: when they cannot be written.
    """
    write_parts(Path(folder), **vars(directions))


def load_directions(folder: Path | str) -> Directions:
    """Read the directions that `diti probe ... -o FOLDER` left.

    Raises:
        FeatureFileError: when they are missing, damaged, or the two files are not of one probe.
    """
    return Directions(**read_parts(Path(folder)))


def _as_tensor(values: Any) -> torch.Tensor:
    try:
        return torch.from_numpy(np.array(values))
    except TypeError as error:
        raise ConfigError(
            f"Features should be numbers, got {type(values).__name__}.", remedy="Give a tensor or a NumPy array [B, d]."
        ) from error


def _checked_amounts(amount: float | torch.Tensor | npt.NDArray[Any], count: int) -> torch.Tensor:
    amounts = torch.as_tensor(amount, dtype=torch.float32).reshape(-1)
    if len(amounts) not in (1, count):
        raise ConfigError(f"{len(amounts)} amounts for {count} rows.", remedy="Give one, or one for each row.")
    bad = amounts[~(amounts.abs() <= MAX_AMOUNT)]
    if len(bad):
        raise ConfigError(
            f"The amount {float(bad[0]):g} is out of range.",
            remedy=f"Use -{MAX_AMOUNT:g} to {MAX_AMOUNT:g}; start with 0.3.",
        )
    return amounts


def _where(dims: Dims | None, chunks: Sequence[int] | None) -> str:
    chosen = "" if dims is None else f" in dims {list(dims)}"
    return chosen + (f" in chunks {list(chunks)}" if chunks is not None else "")


def write_parts(
    folder: Path,
    *,
    full: LinearProbe,
    masked: LinearProbe | None,
    chosen: Mapping[str, tuple[int, ...]],
    patterns: npt.NDArray[np.float32] | None,
    layout: ChunkLayout | None,
    model: str,
) -> None:
    """Write both files, each by a rename. The second knows the hash of the first, so a mixture is noticed.

    Raises:
        DataError: when they cannot be written.
    """
    tensors = {key: getattr(full, key) for key in _FULL}
    if masked is not None:
        tensors |= {f"masked_{key}": getattr(masked, key) for key in _MASKED}
    if patterns is not None:
        tensors["patterns"] = patterns
    data = save({key: np.ascontiguousarray(value, dtype=np.float32) for key, value in tensors.items()})
    facts = {
        "format": FORMAT,
        "version": __version__,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
        "model": model,
        "model_hash": full.model_hash,
        "latent_dim": len(full.mean),
        "chunks": layout.to_dict() if layout else None,
        "rows": [
            {"attribute": name, "kind": kind, "class": cls, "towards": _towards(name, kind, cls)}
            for name, kind, cls in zip(full.names, full.kinds, full.classes, strict=True)
        ],
        "chosen_dims": {name: list(dims) for name, dims in chosen.items()},
    }
    text = json.dumps(facts, indent=1) + "\n"
    write_atomically(folder / TENSORS_NAME, "directions", data)
    write_atomically(folder / FACTS_NAME, "directions", text)


def read_parts(folder: Path) -> dict[str, Any]:
    """Read what `write_parts` wrote, by its arguments.

    Raises:
        FeatureFileError: when it is missing, damaged, or of two probes.
    """
    try:
        facts = parse_json(read_regular(folder / FACTS_NAME))
        data = read_regular(folder / TENSORS_NAME)
        return _parts(facts, data)
    except OSError as error:
        reason = error.strerror or error
        raise FeatureFileError(f"There are no directions in {folder} ({reason}).", remedy=_REMEDY) from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FeatureFileError(
            f"The directions in {folder} are damaged ({shortened(error)}).", remedy=_REMEDY
        ) from error


def _towards(name: str, kind: str, class_name: str) -> str:
    """What a positive amount means."""
    return {"binary": f"{name} = 1", "number": f"larger {name}", "category": f"{name} = {class_name}"}[kind]


def _parts(facts: dict[str, Any], data: bytes) -> dict[str, Any]:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {quoted(facts['format'])} is not {FORMAT!r}")
    if hashlib.sha256(data).hexdigest() != facts["tensors_sha256"]:
        raise ValueError(f"{TENSORS_NAME} and {FACTS_NAME} are not of one probe")
    tensors = load(data)
    common: dict[str, Any] = {
        "mean": tensors["mean"],
        "std": tensors["std"],
        "names": tuple(str(row["attribute"]) for row in facts["rows"]),
        "kinds": tuple(str(row["kind"]) for row in facts["rows"]),
        "classes": tuple(str(row["class"]) for row in facts["rows"]),
        "model_hash": str(facts["model_hash"]),
    }
    masked = None
    if "masked_weights" in tensors:
        masked = checked_probe(**common, **{key: tensors[f"masked_{key}"] for key in _MASKED})
    full = checked_probe(**common, **{key: tensors[key] for key in _MASKED})
    patterns = tensors.get("patterns")
    if patterns is not None and patterns.shape != full.weights.shape:
        raise ValueError("the patterns do not fit the weights")
    if patterns is not None and not (patterns.dtype == np.float32 and np.isfinite(patterns).all()):
        raise ValueError("the patterns are no finite float32")
    layout = ChunkLayout.from_dict(facts["chunks"]) if facts["chunks"] else None
    if layout is not None and layout.latent_dim != len(full.mean):
        raise ValueError(f"the chunks are of {layout.latent_dim} dimensions, the weights of {len(full.mean)}")
    return {
        "full": full,
        "patterns": patterns,
        "masked": masked,
        "chosen": {str(name): _chosen(dims, len(full.mean)) for name, dims in facts["chosen_dims"].items()},
        "layout": layout,
        "model": str(facts["model"]),
    }


def _chosen(values: Any, count: int) -> tuple[int, ...]:
    """Chosen dimensions: whole numbers below `count` that rise."""
    if not all(type(value) is int for value in values):
        raise TypeError(f"chosen dimensions are no whole numbers: {quoted(values)}")
    if any(low >= high for low, high in pairwise((-1, *values, count))):
        raise ValueError(f"chosen dimensions do not rise within 0 to {count - 1}: {quoted(values)}")
    return tuple(values)
