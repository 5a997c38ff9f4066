"""`diti probe`: how linearly do cached features tell each attribute?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diticli.commands.options import DeviceOption, JsonOption, SeedOption
from diticli.errors import ConfigError, FeatureFileError

if TYPE_CHECKING:
    from diticli.data.features import FeatureMeta
    from diticli.probing.promask import MaskSettings
    from diticli.probing.report import AttributeReport, ProbeReport

SHORT = {"average_precision": "AP", "pearson_r": "Pearson r", "accuracy": "accuracy"}
FOLDER_LABELS = "folder"
COLUMNS = ["attribute", "kind", "metric", "value", "base rate", "MSE", "R2"]
BUSIEST = 3


def probe(
    features: Annotated[
        Path,
        typer.Argument(
            metavar="FEATS", help="A feature file of `diti encode`, or its folder of shards.", show_default=False
        ),
    ],
    labels: Annotated[
        str,
        typer.Option(
            help="CSV with file names first, CelebA's or CelebAMask-HQ's attribute list, lfw_attributes.txt, "
            "metadata.csv/.jsonl; or the word folder: each image's folder is its category.",
            show_default=False,
        ),
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            help="File name and group (a person, a scene) per line; no group crosses splits.",
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
            help="Also learn which N dims tell each attribute, and score a classifier on these alone; an edit can "
            "be held to them.",
            show_default=False,
        ),
    ] = None,
    mask_steps: Annotated[
        int | None,
        typer.Option(min=10, help="Training steps of --mask-dims. Default: 600.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for report.json, the classifiers and the directions.")
    ] = Path("probe"),
    device: DeviceOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Train a linear probe for every attribute and score it on held-out images.

    Labels are matched by file name. Of the matched rows 70 % train, 15 % choose the regularisation and
    15 % are only scored, unless --split says which are which. Binary attributes give the average
    precision, numbers Pearson's r (and R2, MSE), categories the accuracy.

    The folder also gets directions.safetensors and directions.json: what attribute editing needs, the
    classifiers on standardised features, mean and deviation of each dim, the model and its chunks. In Python:
    diticli.probing.directions.load_directions("probe").move(z, "Smiling", 0.3).

    --mask-dims 16 chooses 16 dims for each attribute with a probabilistic mask (ProMask, arXiv 2105.01571)
    that is trained together with a classifier. The table then has two more scores on the same test rows: of
    a classifier on these 16 dims alone, and of one on the 16 dims of the largest weights, for comparison.

    Example: diti probe feats.npy --labels labels.csv -o probe

    Example: diti probe celeba.npy --labels list_attr_celeba.txt --split list_eval_partition.txt

    Example: diti probe celeba.npy --labels list_attr_celeba.txt --groups identity_CelebA.txt -o probe

    Example: diti probe feats.npy --labels labels.csv --mask-dims 16 -o probe
    """
    from diticli.commands.console import emit_json, reporter, say
    from diticli.data.features import read_features
    from diticli.data.labels import folder_labels, read_groups, read_labels, read_parts
    from diticli.models.device import resolve_device
    from diticli.probing.files import write_report
    from diticli.probing.label_join import join_labels
    from diticli.probing.probe import probe_features
    from diticli.probing.splits import given_split

    loaded = read_features(features)
    meta = _named(features, loaded.meta)
    joined = join_labels(
        meta.files,
        folder_labels(meta.files) if labels == FOLDER_LABELS else read_labels(Path(labels)),
        read_groups(groups) if groups else None,
        read_parts(split) if split else None,
    )
    say(joined.describe())
    report = probe_features(
        loaded.values,
        joined.columns,
        joined.groups,
        rows=joined.rows,
        split=given_split(joined.parts, groups=joined.groups) if joined.parts else None,
        seed=seed,
        meta=meta,
        mask=_mask(mask_dims, mask_steps),
        device=resolve_device(device) if mask_dims else "cpu",
        reporter=reporter(),
    )
    facts = {"features": str(features), "labels": labels, "groups_file": str(groups or "")}
    facts["split_file"] = str(split or "")
    data = write_report(report, out, facts | {"matched": joined.to_dict()})
    say(report.describe_split())
    if as_json:
        emit_json(data)
        return
    _show(report)
    say(f"Wrote {out}: report.json, probe.safetensors, directions.json and directions.safetensors.")


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
            f"{path} does not tell which file each row is: {path.with_suffix('.json').name} is missing.",
            remedy='Make it with `diti encode`, or write {"files": [...]} with one name per row there.',
        )
    return meta


def _show(report: ProbeReport) -> None:
    from diticli.commands.console import say, show_table

    columns = [*COLUMNS, *_mask_columns(report)]
    rows: list[list[str]] = []
    for kind, means in report.means.items():
        alike = [item for item in report.attributes if item.kind == kind]
        rows += [_row(item) for item in sorted(alike, key=lambda item: -item.value)]
        rows += [_mean_row(kind, alike[0].metric, means)]
    rows.sort(key=lambda row: row[0].startswith("mean of"))
    used = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    shown = [[row[i] for i in used] for row in rows]
    show_table("Linear probe, test rows", [columns[i] for i in used], shown)
    for skipped in report.skipped:
        say(f"Not probed: {skipped.name} ({skipped.reason}).")


def _mask_columns(report: ProbeReport) -> list[str]:
    count = next((len(item.masked.dims) for item in report.attributes if item.masked), 0)
    return [f"{count} dims", f"{count} by weight", f"{BUSIEST} busiest chunks"] if count else []


def _row(item: AttributeReport) -> list[str]:
    row = [item.name, item.kind, SHORT[item.metric], *_numbers(item.value, item.base_rate, item.extras)]
    if item.masked is None:
        return row
    return [*row, f"{item.masked.value:.3f}", f"{item.masked.by_weight:.3f}", _busiest(item.masked.per_chunk)]


def _mean_row(kind: str, metric: str, means: Mapping[str, float]) -> list[str]:
    name = f"mean of {means['attributes']:.0f}"
    row = [name, kind, SHORT[metric], *_numbers(means[metric], means["base_rate"], means)]
    if f"masked_{metric}" not in means:
        return row
    return [*row, f"{means[f'masked_{metric}']:.3f}", f"{means[f'by_weight_{metric}']:.3f}", ""]


def _busiest(per_chunk: Sequence[int]) -> str:
    """The chunks that own most of the chosen dims, with how many."""
    order = sorted((chunk for chunk, count in enumerate(per_chunk) if count), key=lambda c: (-per_chunk[c], c))
    return ", ".join(f"{chunk}: {per_chunk[chunk]}" for chunk in order[:BUSIEST])


def _numbers(value: float, base_rate: float, extras: Mapping[str, float]) -> list[str]:
    """Numbers have errors (of the standardised target), the other kinds a base rate."""
    if "r2" in extras:
        return [f"{value:.3f}", "", f"{extras['mse']:.3f}", f"{extras['r2']:.3f}"]
    return [f"{value:.3f}", f"{base_rate:.3f}", "", ""]
