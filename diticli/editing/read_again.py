"""Whether an attribute edit reaches the picture: it is encoded again, and the probe reads it anew.

Features move exactly as asked; the pictures decoded from them may not, where the model reads an attribute in pictures
but does not draw it by its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.data.faces_word import IN_WORDS
from diticli.editing.attribute import move_along
from diticli.editing.engine import EditablePipeline
from diticli.editing.quality import KnownModel
from diticli.editing.results import AttributeResult, Move
from diticli.pictures.tiles import pixels_of
from diticli.probing.directions import Directions
from diticli.probing.read_scores import ProbeScore, is_chance, score_of
from diticli.reading import printable, shortened

LEAST_SHARE = 0.2
"""Of what was asked of the features; below it an edit does not show its attribute.

The shipped model on six built-in faces, each of the 13 factors moved by -0.6 and by 0.6: smile and freckles, whose
transfer rates are 0.05 and 0.02, had at most 0.09 in the mean of the faces and 0.17 in a single one; all others had at
least 0.44 in the mean, in the better of the two directions."""


class ReadAgain(NamedTuple):
    """Change of what the probe reads, in standard deviations of what it reads in the images it was trained on."""

    asked: float
    found: float


def read_again(pipeline: EditablePipeline, directions: Directions, result: AttributeResult) -> dict[Move, ReadAgain]:
    """How far each attribute moved in the features, and how far in the pictures beside the reconstructions.

    Empty where the noise changes as well, and for a probe without patterns.

    Args:
        pipeline: that made the pictures.
        directions: along which it did.
        result: the pictures.
    """
    moves = [move for move in result.edits if move.amount]
    if not moves or result.settings.noise != "keep" or directions.patterns is None:
        return {}
    pictures = [*result.reconstructions, *(result.edits[move] for move in moves)]
    z = pipeline.encode(pipeline.preprocess([Image.fromarray(pixels_of(picture)) for picture in pictures]))
    own, found = z[: len(result.names)], z[len(result.names) :]
    read = {}
    for move, z_1D in zip(moves, found.split(1), strict=True):
        step = move_along(
            directions,
            torch.zeros_like(z_1D),
            [(move.attribute, move.amount), *result.also.items()],
            chunks=move.chunks,
            layout=result.layout,
            learned=result.learned_dims is not None,
            along=result.along,
        )
        asked, got = _outputs(directions, move.attribute, torch.cat([step, z_1D - own[move.image]]))
        read[move] = ReadAgain(float(asked), float(got))
    return read


def reading_facts(read: Mapping[Move, ReadAgain], names: Sequence[str]) -> list[dict[str, Any]]:
    """JSON form; `names`: of the images."""
    return [
        {**move._asdict(), "image": names[move.image], "asked_sd": round(asked, 3), "found_sd": round(found, 3)}
        for move, (asked, found) in read.items()
    ]


def unmoved_warnings(
    result: AttributeResult, read: Mapping[Move, ReadAgain], scores: Mapping[str, ProbeScore], model: KnownModel
) -> list[str]:
    """A warning for each attribute that the probe reads, and that an image does not show more or less of.

    Args:
        result: the pictures.
        read: of `read_again`.
        scores: of the probe.
        model: made the pictures.
    """
    warnings = []
    for attribute in result.attributes:
        score = score_of(scores, attribute)
        best = {
            image: max((_share(read[move]) for move in read if move[:2] == (image, attribute)), default=1.0)
            for image in range(len(result.names))
        }
        still = [image for image, share in best.items() if share < LEAST_SHARE]
        if not still or (score is not None and is_chance(score)):
            continue
        furthest = max((move for move in read if move[:2] == (still[0], attribute)), key=lambda move: abs(move.amount))
        (asked, found), name = read[furthest], shortened(printable(attribute))
        others = f" and {len(still) - 1} other{'s' * (len(still) > 2)}" if len(still) > 1 else ""
        warnings.append(
            f"{name} is read{f' ({score.short()})' if score else ''} but hardly moves in "
            f"{result.names[still[0]]}{others}: {furthest.amount:+g} asked for {asked:+.1f} sd of what the probe "
            f"reads, the picture encoded again has {found:+.1f} sd. {_cause(attribute, model)} What else changes is "
            f"not {name}."
        )
    return warnings


def _cause(attribute: str, model: KnownModel) -> str:
    rate = model.transfer_rates.get(attribute)
    if rate is None or rate >= LEAST_SHARE or model.trained_on != IN_WORDS:
        return "The model does not draw it by its features, or the picture has it already."
    return f"In {IN_WORDS} too an exchange of all chunks moves it by {rate:.0%} only."


def _outputs(directions: Directions, attribute: str, steps_BD: torch.Tensor) -> npt.NDArray[Any]:
    """[B] change of the probe's output, in standard deviations of its own, for a change of the features."""
    probe, row = directions.full, directions.full.row_of(attribute)
    assert directions.patterns is not None
    weights = probe.weights[row].astype(np.float64)
    # The pattern is the covariance of the standardised features with this output (Haufe et al., NeuroImage 2014,
    # eq. 6): its product with the weights is the output's variance.
    variance = max(float(weights @ directions.patterns[row]), np.finfo(np.float64).tiny)
    return (steps_BD.double().cpu().numpy() / probe.std) @ weights / variance**0.5


def _share(moved: ReadAgain) -> float:
    return moved.found / moved.asked if moved.asked else 0.0
