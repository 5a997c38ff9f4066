"""`diti probe`: how well does a linear model predict each attribute from cached features, and from which chunks?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diticli.commands.options import DeviceOption, JsonOption, SeedOption
from diticli.commands.outputs import OverwriteOption, check_folder, this_command
from diticli.comparison.settings import FOLDER_LABELS
from diticli.errors import ConfigError, FeatureFileError

if TYPE_CHECKING:
    from diticli.features.read import FeatureMeta, Features
    from diticli.probing.promask import MaskSettings
    from diticli.probing.report import ProbeReport

REPORT = "report.json"
OUTPUTS = ("probe.safetensors", "directions.json", "directions.safetensors")


def probe(
    features: Annotated[
        Path,
        typer.Argument(
            metavar="FEATS", help="A feature file of `diti encode`, or its folder of shards.", show_default=False
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            help="A table with a column of file names (CSV, JSON, Parquet), CelebA's or CelebAMask-HQ's attribute "
            "list, lfw_attributes.txt, metadata.csv/.jsonl; or the word folder: each image's folder is its category. "
            "Without labels only statistics of the features are shown.",
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="File name and group (a person, a scene) per line, or a table with both; no group crosses splits.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            help="File name and part (0, 1, 2 or train, val, test) per line, e.g. list_eval_partition.txt. "
            "Default: a random split.",
            show_default=False,
        ),
    ] = None,
    mask_dims: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Also learn which N dims predict each attribute, and score a classifier on these alone; an edit can "
            "be held to them.",
            show_default=False,
        ),
    ] = None,
    mask_steps: Annotated[
        int | None,
        typer.Option(min=10, help="Training steps of --mask-dims. Default: 600.", show_default=False),
    ] = None,
    metrics: Annotated[
        bool,
        typer.Option(
            "--metrics",
            help="Also score disentanglement, attributes as factors, dims and chunks as units: DCI, MIG, SAP, "
            "FactorVAE, modularity, explicitness, TAD, InfoMEC.",
        ),
    ] = False,
    atlas: Annotated[
        bool,
        typer.Option(
            "--atlas",
            help="Also probe chunks: attributes predicted from each chunk alone, all others, and chunks 0 to k.",
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.json, classifiers, directions and heatmaps.")
    ] = Path("probe"),
    overwrite: OverwriteOption = False,
    device: DeviceOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a linear probe for every attribute and score it on held-out images.

    Labels are matched by file name; the column that names the images is found by its header (file_name, filename,
    image_id, path, ...) and its cells, and is said. Of the matched rows 70 % train, 15 % choose the regularisation and
    15 % are only scored, unless --split says which are which. Binary attributes give the average
    precision, numbers Pearson's r (and R2, MSE), categories the accuracy. Intervals are bootstrap 95 %
    intervals over the scored images, or over their groups where --groups is given (1,000 resamples); report.json
    has those of all metrics.

    The folder also gets directions.safetensors and directions.json: what attribute editing needs, the
    classifiers on standardised features, mean and deviation of each dim, the model and its chunks. In Python:
    diticli.probing.directions.load_directions("probe").move(z, "Smiling", 0.3).

    --mask-dims 16 chooses 16 dims for each attribute with a probabilistic mask (ProMask, arXiv 2105.01571)
    that is trained together with a classifier. The table then has two more scores on the same test rows: of
    a classifier on these 16 dims alone, and of one on the 16 dims of the largest weights, for comparison.

    --atlas reads every attribute from each chunk alone, from all but it, and from chunks 0 to k, with linear
    models in closed form, and writes three heatmaps over the timesteps. Each attribute gets the timestep that is
    the centre of what chunks 0 to k gain with each k. It takes about as long as the probe itself; --metrics fits
    boosted trees and takes longer.

    Example: diti probe feats.npy --labels labels.csv -o probe

    Example: diti probe feats.npy --labels labels.csv --atlas --metrics -o probe

    Example: diti probe feats.npy

    Example: diti probe celeba.npy --labels list_attr_celeba.txt --split list_eval_partition.txt

    Example: diti probe celeba.npy --labels list_attr_celeba.txt --groups identity_CelebA.txt -o probe

    Example: diti probe feats.npy --labels labels.csv --mask-dims 16 -o probe
    """
    from diticli.commands.console import emit_json, reporter, say
    from diticli.data.labels import folder_labels, read_groups, read_labels, read_parts
    from diticli.data.splits import given_split
    from diticli.features.read import read_features
    from diticli.models.device import resolve_device
    from diticli.pictures.metadata import made_by, provenance
    from diticli.probing.files import write_report
    from diticli.probing.label_join import identity_note, join_labels
    from diticli.probing.probe import probe_features

    mask = _mask(mask_dims, mask_steps)
    check_folder(out, REPORT, ("attributes", "statistics"), OUTPUTS, overwrite=overwrite)
    loaded = read_features(features)
    if labels is None:
        _check_alone(
            {"--groups": groups, "--split": split, "--mask-dims": mask, "--metrics": metrics, "--atlas": atlas}
        )
        _statistics(features, loaded, out, as_json)
        return
    meta = _named(features, loaded.meta)
    joined = join_labels(
        meta.files,
        folder_labels(meta.files) if labels == FOLDER_LABELS else read_labels(Path(labels), meta.files),
        read_groups(groups, meta.files) if groups else None,
        read_parts(split, meta.files) if split else None,
    )
    if meta.model:
        say(f"Features of model {meta.model}.")
    _repeat_warnings(meta)
    say(joined.describe())
    for note in joined.notes:
        say(note)
    report = probe_features(
        loaded.values,
        joined.columns,
        joined.groups,
        rows=joined.rows,
        split=given_split(joined.parts, groups=joined.groups) if joined.parts else None,
        seed=seed,
        meta=meta,
        mask=mask,
        device=resolve_device(device) if mask_dims else "cpu",
        statistics=True,
        metrics=metrics,
        atlas=atlas,
        reporter=reporter(),
    )
    facts = {"features": str(features), "labels": labels, "groups_file": str(groups or "")}
    facts["split_file"] = str(split or "")
    together = "" if groups or split else identity_note(meta.files, list(joined.columns))
    facts["identity_hint"] = together
    facts["command"] = this_command()
    with made_by(provenance(meta.model, facts["command"])):
        data = write_report(report, out, facts | {"warnings": list(meta.warnings), "matched": joined.to_dict()})
    say(report.describe_split())
    if together:
        say(together)
    if as_json:
        emit_json(data)
        return
    _show(report, out / REPORT)
    pictures = ", heatmaps" if report.atlas else ""
    say(f"Wrote {out}: report.json, probe.safetensors, directions.json and directions.safetensors{pictures}.")


def _statistics(path: Path, loaded: Features, out: Path, as_json: bool) -> None:
    """Statistics that need no labels."""
    from diticli.commands.console import emit_json, say
    from diticli.commands.probe_tables import show_statistics
    from diticli.disentanglement import measure_statistics
    from diticli.probing.files import write_statistics
    from diticli.probing.probe import layout_of

    layout = layout_of(loaded.meta)
    if loaded.meta:
        _repeat_warnings(loaded.meta)
    statistics = measure_statistics(loaded.values, layout)
    warnings = list(loaded.meta.warnings) if loaded.meta else []
    data = write_statistics(statistics, layout, out, {"features": str(path), "warnings": warnings})
    if as_json:
        emit_json(data)
        return
    show_statistics(statistics, layout)
    say(f"Wrote {out}: report.json. Give --labels for what the features hold.")


def _repeat_warnings(meta: FeatureMeta) -> None:
    """What `diti encode` said of these features."""
    from diticli.commands.console import reporter

    for warning in meta.warnings:
        reporter().warn(warning)


def _show(report: ProbeReport, where: Path) -> None:
    from diticli.commands.console import say
    from diticli.commands.probe_tables import describe_statistics, show_atlas, show_disentanglement, show_scores

    show_scores(report, where)
    if report.disentanglement:
        show_disentanglement(report.disentanglement)
    if report.atlas:
        show_atlas(report.atlas)
    if report.statistics:
        say(describe_statistics(report.statistics))


def _check_alone(given: Mapping[str, object]) -> None:
    useless = [name for name, value in given.items() if value]
    if useless:
        raise ConfigError(f"{useless[0]} is of no use without labels.", remedy="Add --labels FILE.")


def _mask(dims: int | None, steps: int | None) -> MaskSettings | None:
    from diticli.probing.promask import MaskSettings

    if dims is None:
        if steps is not None:
            raise ConfigError("--mask-steps is of no use without a mask.", remedy="Add --mask-dims N.")
        return None
    return MaskSettings(dims=dims) if steps is None else MaskSettings(dims=dims, steps=steps)


def _named(path: Path, meta: FeatureMeta | None) -> FeatureMeta:
    if meta is None:
        raise FeatureFileError(
            f"{path} does not say which file each row is: {path.with_suffix('.json').name} is missing.",
            remedy='Make it with `diti encode`, or write {"files": [...]} with one name per row there.',
        )
    return meta
