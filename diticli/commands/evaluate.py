"""`diti evaluate`: how faithful are a model's edits?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diticli.commands.failure import keeps
from diticli.commands.options import DeviceOption, JsonOption, SeedOption, ValueRangeOption
from diticli.commands.outputs import OverwriteOption, check_folder, this_command
from diticli.config import Along
from diticli.config_groups import parse_value_range
from diticli.data.faces_word import WORD, is_faces
from diticli.errors import ConfigError

KEPT = "kept"


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
    ] = WORD,
    labels: Annotated[
        Path | None, typer.Option(help="Their labels, as for `diti probe`; not for faces.", show_default=False)
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File name and group (a person, a scene) per line, as for `diti probe`; no group is both learned from "
            "and judged.",
            show_default=False,
        ),
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
        int, typer.Option(min=200, help="Images that the attribute classifier and the attribute directions learn from.")
    ] = 12_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the classifier over them.")] = 4,
    amount: Annotated[float, typer.Option(min=0.01, max=10, help="How far to move along an attribute.")] = 0.3,
    along: Annotated[
        Along,
        typer.Option(help="The pattern of its features, or the weight of the attribute's classifier, as published."),
    ] = "pattern",
    moves: Annotated[bool, typer.Option("--moves/--no-moves", help="Also move along every attribute.")] = True,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of inversion and decoding. Default: 20.", show_default=False)
    ] = None,
    atlas: Annotated[
        bool,
        typer.Option(
            "--atlas/--no-atlas",
            help="Also exchange every chunk alone: which chunk changes which attribute, where in time, how modularly. "
            "One decoding of all pairs a chunk.",
        ),
    ] = False,
    gap: Annotated[
        bool,
        typer.Option(
            "--gap/--no-gap",
            help="Also the error of the predicted image by timestep with and without features, and how much the loss "
            "rises without each chunk; warns of ignored ones. On at most 32 images: a minute or two on a CPU.",
        ),
    ] = False,
    lost: Annotated[
        bool,
        typer.Option(
            "--lost/--no-lost",
            help="Also the half-life of each attribute under noise, by a classifier of noisy --learn images, which "
            "learns half as long again as the other; with --atlas, whether chunks act in that order. Some minutes on a "
            "CPU.",
        ),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="--atlas, --gap and --lost.")] = False,
    composition: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="Also edit every image by nothing so many times, one after another: how far it drifts.",
        ),
    ] = 0,
    realism: Annotated[
        bool,
        typer.Option(
            "--realism",
            help="Also SSIM of reconstructions and, with torchmetrics (extra `metrics`) and the networks they need, "
            "MS-SSIM, LPIPS, FID and KID of reconstructions and edits. Downloads nothing.",
        ),
    ] = False,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the networks behind LPIPS and FID of --realism. Default: the cache of PyTorch.",
            show_default=False,
        ),
    ] = None,
    chunk_groups: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Take the chunks in so many consecutive groups in --atlas and --gap. Default: every chunk by itself.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Judge even by bad reconstructions, or by a classifier that can read no attribute at all."
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.html, evaluation.json and the pictures.")
    ] = Path("evaluation"),
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    value_range: ValueRangeOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure whether edits do what they should, with an attribute classifier that is independent of the model.

    A small network learns the attributes from images alone. Then pairs of held-out images exchange chunks, and
    images move along attribute directions. The table has the transfer rate: the share of the partner's attribute that
    an exchange transfers (0 is nothing, 1 is all), what else changed, and how far pixels changed that should not have
    (where the truth is known). Attributes that the classifier cannot read are not judged.

    The classifier and everything that was decoded stay in OUT/kept: after an interruption, the same command goes on
    from there.

    Example: diti evaluate shipped

    Example: diti evaluate runs/demo

    Example: diti evaluate runs/demo --full --pairs 32 --steps 10

    Example: diti evaluate runs/demo runs/detached --chunks 0-3 --chunks 4-15 -o evaluation

    Example: diti evaluate runs/celeba --data celeba/ --labels list_attr_celeba.txt --pairs 200
    """
    from diticli.commands.console import emit_json, reporter, say, say_model
    from diticli.commands.evaluate_view import quarters_and_all, say_reader, show_evidence, show_faithfulness
    from diticli.evaluation.attribute_classifier import train_classifier
    from diticli.evaluation.evaluate import check_reconstruction, evaluate_model
    from diticli.evaluation.evidence import EvidenceRequest, collect_evidence
    from diticli.evaluation.images import evaluation_faces, evaluation_folder
    from diticli.evaluation.kept import KeptArrays
    from diticli.evaluation.report import check_readable, write_evaluation
    from diticli.evaluation.settings import EvaluationSettings
    from diticli.files import refuse_links
    from diticli.models.load import load_model
    from diticli.pictures.metadata import made_by, provenance
    from diticli.sampling import DEFAULT_STEPS

    if is_faces(data) and data != WORD:
        raise ConfigError(f"Evaluation draws faces of its own, not {data!r}.", remedy="Write --data faces.")
    if (data == WORD) != (labels is None):
        raise ConfigError(
            "The built-in faces bring their own labels." if data == WORD else f"The labels of {data} are missing.",
            remedy="Give --data and --labels together, or neither.",
        )
    if groups and groups.isdecimal() and not Path(groups).exists():
        say("--groups is called --chunk-groups here now: --groups names a file of people, as elsewhere.")
        chunk_groups, groups = chunk_groups or max(1, int(groups)), None
    if groups and labels is None:
        raise ConfigError("The built-in faces have no groups.", remedy="Leave out --groups.")
    refuse_links(out, below=(KEPT,))
    check_folder(out, "evaluation.json", ("models",), ("report.html",), overwrite=overwrite)
    names: list[str | None] = [*models] if models else [None]
    pipelines = [load_model(name, device) for name in names]
    for pipeline in pipelines:
        if value_range is not None:
            pipeline.value_range = parse_value_range(value_range)
        say_model(pipeline)
    first = pipelines[0]
    if odd := [p.model_id for p in pipelines if (p.resolution, p.reading) != (first.resolution, first.reading)]:
        raise ConfigError(
            f"{odd[0]} was trained on other squares than {first.model_id}.", remedy="Evaluate it by itself."
        )
    progress, side = reporter(), first.resolution
    images = (
        evaluation_faces(side, learn=learn, pairs=pairs, channels=first.channels, reporter=progress)
        if labels is None
        else evaluation_folder(
            data,
            labels,
            side,
            learn=learn,
            pairs=pairs,
            seed=seed,
            reporter=progress,
            groups=Path(groups) if groups else None,
            **first.reading,
        )
    )
    chosen = [[p.chunks.parse(spec) for spec in chunks] if chunks else quarters_and_all(p.chunks) for p in pipelines]
    settings = EvaluationSettings(amount=amount, along=along, seed=seed, steps=steps or DEFAULT_STEPS, force=force)
    for pipeline in pipelines:
        check_reconstruction(pipeline, images, settings)
    kept = KeptArrays(out / KEPT)
    keeps(out / KEPT)
    judge = train_classifier(
        images.learn_NCHW, images.labels, epochs=epochs, seed=seed, device=first.device, reporter=progress, kept=kept
    )
    say_reader(judge)
    check_readable(judge, force=force)
    results = [
        evaluate_model(p, images, judge, sets, settings=settings, moves=moves, reporter=progress, kept=kept)
        for p, sets in zip(pipelines, chosen, strict=True)
    ]
    for result in results:
        for warning in result.warnings:
            progress.warn(f"{result.model}: {warning}")
    request = EvidenceRequest(
        atlas=atlas or full,
        gap=gap or full,
        lost=lost or full,
        groups=chunk_groups,
        lost_epochs=-(-3 * epochs // 2),
        composition=composition,
        realism=realism,
        weights=weights,
    )
    evidence = collect_evidence(pipelines, images, judge, request, settings=settings, reporter=progress, kept=kept)
    found = [(one, p.chunks) for one, p in zip(evidence, pipelines, strict=True)]
    command = this_command(*(() if models else [first.model_id]))
    with made_by(provenance("; ".join(p.known_as for p in pipelines), command)):
        written = write_evaluation(results, judge, images, out, evidence=found, command=command)
    if as_json:
        emit_json(written)
        return
    for result, measured in zip(results, evidence, strict=True):
        show_faithfulness(result)
        show_evidence(result.model, measured)
    say(f"Wrote {out / 'report.html'} and {out / 'evaluation.json'}.")
