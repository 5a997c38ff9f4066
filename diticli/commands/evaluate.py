"""`diti evaluate`: how faithful are a model's edits?"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diticli.commands.options import DeviceOption, JsonOption, SeedOption
from diticli.errors import ConfigError

if TYPE_CHECKING:
    from diticli.chunks import ChunkLayout
    from diticli.judging.evaluation import Faithfulness

FACES = "faces"
OVERVIEW_ROWS = 4


class AlongChoice(StrEnum):
    """Choices of --along."""

    WEIGHT = "weight"
    PATTERN = "pattern"


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Run directories, pipeline folders or Hub ids, judged alike. Default: as --model elsewhere.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str, typer.Option(help="Images that training did not see: faces (the truth is known), or a folder, tars, LMDB.")
    ] = FACES,
    labels: Annotated[
        Path | None, typer.Option(help="Their labels, as for `diti probe`; not for faces.", show_default=False)
    ] = None,
    chunks: Annotated[
        list[str] | None,
        typer.Option(
            help="Chunks to exchange, e.g. 0-3; repeat for more rows. Default: each quarter of the chunks, and all.",
            show_default=False,
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(min=4, help="Pairs of images to edit, both ways.")] = 64,
    learn: Annotated[
        int, typer.Option(min=200, help="Images that the reader and the attribute directions learn from.")
    ] = 12_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the reader over them.")] = 4,
    amount: Annotated[float, typer.Option(min=0.01, max=10, help="How far to move along an attribute.")] = 0.3,
    along: Annotated[
        AlongChoice,
        typer.Option(help="The pattern of its features, or the weight of the attribute's classifier, as published."),
    ] = AlongChoice.PATTERN,
    moves: Annotated[bool, typer.Option("--moves/--no-moves", help="Also move along every attribute.")] = True,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of inversion and decoding. Default: 20.", show_default=False)
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html, evaluation.json and the pictures.")
    ] = Path("evaluation"),
    seed: SeedOption = 0,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge edits by a reader that knows nothing of the model.

    A small network learns to read the attributes from images alone. Then pairs of held-out images exchange
    chunks, and images move along attribute directions, and it says which attributes followed, which others
    changed too, and how far pixels drifted that should not have changed (where the truth is known).

    Example: diti evaluate runs/demo

    Example: diti evaluate runs/demo runs/pdae --chunks 0-3 --chunks 4-15 -o evaluation

    Example: diti evaluate runs/celeba --data celeba/ --labels list_attr_celeba.txt --pairs 200
    """
    from diticli.commands.console import emit_json, reporter, say
    from diticli.judging.evaluation import EvaluationSettings, evaluate_model
    from diticli.judging.images import judged_faces, judged_folder
    from diticli.judging.reader import train_reader
    from diticli.judging.report import write_evaluation
    from diticli.models.locate import load_model
    from diticli.sampling import DEFAULT_STEPS

    if (data == FACES) != (labels is None):
        raise ConfigError(
            "The built-in faces bring their own labels." if data == FACES else f"The labels of {data} are missing.",
            remedy="Give --data and --labels together, or neither.",
        )
    names: list[str | None] = [*models] if models else [None]
    pipelines = [load_model(name, device) for name in names]
    first = pipelines[0]
    if odd := [p.model_id for p in pipelines if (p.resolution, p.crop) != (first.resolution, first.crop)]:
        raise ConfigError(
            f"{odd[0]} was trained on other squares than {first.model_id}.", remedy="Evaluate it by itself."
        )
    progress, side = reporter(), first.resolution
    judged = (
        judged_faces(side, learn=learn, pairs=pairs, reporter=progress)
        if labels is None
        else judged_folder(data, labels, side, learn=learn, pairs=pairs, crop=first.crop, seed=seed, reporter=progress)
    )
    chosen = [[p.chunks.parse(spec) for spec in chunks] if chunks else _quarters_and_all(p.chunks) for p in pipelines]
    judge = train_reader(
        judged.learn_NCHW, judged.labels, epochs=epochs, seed=seed, device=first.device, reporter=progress
    )
    settings = EvaluationSettings(amount=amount, along=along.value, seed=seed, steps=steps or DEFAULT_STEPS)
    results = [
        evaluate_model(p, judged, judge, sets, settings=settings, moves=moves, reporter=progress)
        for p, sets in zip(pipelines, chosen, strict=True)
    ]
    written = write_evaluation(results, judge, judged, out)
    if as_json:
        emit_json(written)
        return
    for result in results:
        _show(result)
    say(f"Wrote {out / 'report.html'} and {out / 'evaluation.json'}.")


def _quarters_and_all(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """All chunks in (up to) four consecutive sets, and all at once."""
    rows = min(OVERVIEW_ROWS, layout.chunks)
    cuts = [layout.chunks * row // rows for row in range(rows + 1)]
    parts = [tuple(range(low, high)) for low, high in pairwise(cuts)]
    return list(dict.fromkeys([*parts, tuple(range(layout.chunks))]))


def _show(result: Faithfulness) -> None:
    from diticli.commands.console import say, show_table
    from diticli.judging.report import move_table, swap_table

    say(f"{result.model}: reconstruction {result.reconstruction_psnr:.1f} dB over {result.images} images")
    for title, (columns, rows) in (
        ("Exchanged chunks: share of each difference carried over", swap_table(result)),
        (f"Moved along an attribute by {result.facts['amount']:g}, in standard deviations", move_table(result)),
    ):
        if rows:
            show_table(title, columns, [[_text(cell) for cell in row] for row in rows])


def _text(cell: str | int | float | None) -> str:
    return "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)
