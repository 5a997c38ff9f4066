"""The whole path on built-in data: train, encode held-out faces, probe, edit, and a report that shows it.

Everything in the report is measured by this run, on faces of a seed that training never saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.analysis.encode import encode_with
from diticli.config import RunConfig
from diticli.data.faces import FACTORS, write_labels_csv
from diticli.data.features import FeatureRows, read_features
from diticli.data.images import FaceImages, load_images
from diticli.data.labels import read_labels
from diticli.editing.pair import EditResult, EditSettings, edit_pair
from diticli.editing.pictures import edit_strip
from diticli.models.build import build_encoder
from diticli.models.locate import load_pipeline
from diticli.models.pipeline import DiTiPipeline, normalise
from diticli.pictures.charts import bar_table_chart
from diticli.pictures.grids import save_png
from diticli.pictures.report import Section, write_report
from diticli.probing.files import write_report as write_probe
from diticli.probing.label_join import join_labels
from diticli.probing.probe import probe_features
from diticli.probing.report import ProbeReport
from diticli.progress import Reporter, SilentReporter
from diticli.sampling.defaults import DEFAULT_STEPS
from diticli.schedule import psnr
from diticli.training.batches import fold_seed
from diticli.training.checkpoint import write_json
from diticli.training.run import train
from diticli.training.rundir import RunDirectory, versions

HELD_OUT_SEED = 1
RECONSTRUCTED = 64
PAIRS = ((0, 1), (2, 3))
PIXELS, UNTRAINED, TRAINED = "raw pixels", "untrained encoder", "trained encoder"
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured, on held-out faces."""

    model: Path
    report: Path
    scores: dict[str, dict[str, float]]
    """Features -> factor -> R2 (numbers) or average precision (binary factors)."""
    means: dict[str, dict[str, float]]
    """Features -> mean R2 over the numbers, mean average precision over the binary factors."""
    psnr: float
    """dB of reconstructions through inversion and decoding, over all pixels of all reconstructed faces."""
    edit_steps: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {**vars(self), "model": str(self.model), "report": str(self.report), "versions": versions()}


def run_demo(
    config: RunConfig, out: Path, *, held_out: int = 4000, steps: int = DEFAULT_STEPS, reporter: Reporter | None = None
) -> DemoResult:
    """Run everything into the run directory `out`; a finished model there is used as it is.

    Args:
        config: settings of the training, on the built-in faces.
        out: run directory; also gets feats.npy, labels.csv, probe/, demo.json and report.html.
        held_out: faces to encode and probe.
        steps: of inversion and of decoding.
        reporter: receiver of progress.

    Raises:
        DiTiError: as `diticli.training.run.train`.
        TrainingInterrupted: likewise; calling again goes on.
    """
    reporter = reporter or SilentReporter()
    seconds: dict[str, float] = {}
    if RunDirectory(out).finished:
        reporter.note(f"{out} is trained already; measuring it again.")
    else:
        _timed(seconds, "train", lambda: train(config, out, reporter=reporter))
    pipeline = load_pipeline(str(out), None if config.device == "auto" else config.device)
    faces = FaceImages(held_out, HELD_OUT_SEED, pipeline.resolution)
    probes = _timed(seconds, "probe", lambda: _probe_all(pipeline, config, faces, out, seconds, reporter))
    quality = _timed(seconds, "reconstruct", lambda: _reconstruction_psnr(pipeline, faces, steps, reporter))
    edits = _timed(seconds, "edit", lambda: _edit_pairs(pipeline, faces, steps, reporter))
    scores = {name: _scores(report) for name, report in probes.items()}
    result = DemoResult(
        model=RunDirectory(out).model,
        report=out / "report.html",
        scores=scores,
        means={name: _means(report) for name, report in probes.items()},
        psnr=quality,
        edit_steps=steps,
        seconds=seconds,
    )
    write_json(out / "demo.json", result.to_dict())
    write_report(result.report, title="diti demo", sections=_sections(result, config, pipeline, edits, out, held_out))
    return result


def _timed(seconds: dict[str, float], name: str, work: Callable[[], _Result]) -> _Result:
    started = time.perf_counter()
    done = work()
    seconds[name] = time.perf_counter() - started
    return done


def _probe_all(
    pipeline: DiTiPipeline,
    config: RunConfig,
    faces: FaceImages,
    out: Path,
    seconds: dict[str, float],
    reporter: Reporter,
) -> dict[str, ProbeReport]:
    """The same probe on trained features, on those of the encoder before training, and on raw pixels."""
    path = out / "feats.npy"
    encoded = encode_with(pipeline, faces, path, batch_size=256, reporter=reporter)
    seconds["encode"] = encoded.seconds
    labels = out / "labels.csv"
    write_labels_csv(labels, HELD_OUT_SEED, range(len(faces)))
    features = read_features(path)
    joined = join_labels(features.meta.files if features.meta else (), read_labels(labels), None)
    images = load_images(faces, reporter=reporter).images
    values: dict[str, FeatureRows] = {
        PIXELS: (images.reshape(len(images), -1) / 255).astype(np.float32),
        UNTRAINED: _untrained_features(pipeline, config, images),
        TRAINED: features.values,
    }
    reports = {
        name: probe_features(
            v,
            joined.columns,
            rows=joined.rows,
            seed=config.seed,
            meta=features.meta if name == TRAINED else None,
            reporter=reporter,
        )
        for name, v in values.items()
    }
    write_probe(reports[TRAINED], out / "probe", {"features": str(path), "labels": str(labels)})
    return reports


@torch.no_grad()
def _untrained_features(
    pipeline: DiTiPipeline, config: RunConfig, images_NHWC: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Features of the very encoder that training started from."""
    torch.manual_seed(fold_seed(config.seed, "features", "weights"))
    encoder = build_encoder(config).to(pipeline.device).eval()
    batches = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).split(256)
    parts = [encoder(normalise(batch.to(pipeline.device))).float().cpu().numpy() for batch in batches]
    return np.concatenate(parts)


def _reconstruction_psnr(pipeline: DiTiPipeline, faces: FaceImages, steps: int, reporter: Reporter) -> float:
    images = np.stack([faces.load(i) for i in range(min(RECONSTRUCTED, len(faces)))])
    x0 = normalise(torch.from_numpy(images).permute(0, 3, 1, 2))
    z = pipeline.encode(x0)

    def count(step: int, total: int) -> None:
        reporter.advance()

    reporter.start(f"Reconstructing {len(x0)} faces", 2 * steps, unit="steps")
    x_T = pipeline.invert(x0, z, steps=steps, callback=count)
    back = pipeline.decode(x_T, z, steps=steps, callback=count).cpu()
    reporter.finish()
    return psnr(float((back - x0).square().mean()))


def _edit_pairs(pipeline: DiTiPipeline, faces: FaceImages, steps: int, reporter: Reporter) -> list[EditResult]:
    """Each pair with a quarter of the chunks exchanged at a time, and with all of them."""
    chunks = range(pipeline.chunks.chunks)
    parts = [tuple(int(c) for c in part) for part in np.array_split(chunks, 4) if len(part)]
    settings = EditSettings(invert_steps=steps, decode_steps=steps)
    results = []
    for a, b in PAIRS:
        first, second = (Image.fromarray(faces.load(i)) for i in (a, b))
        results.append(
            edit_pair(
                pipeline,
                first,
                second,
                [*parts, tuple(chunks)],
                (0.5, 1.0),
                settings=settings,
                names=(f"face {a}", f"face {b}"),
                reporter=reporter,
            )
        )
    return results


def _scores(report: ProbeReport) -> dict[str, float]:
    return {a.name: a.extras["r2"] if a.kind == "number" else a.value for a in report.attributes}


def _means(report: ProbeReport) -> dict[str, float]:
    return {
        "r2": report.means["number"]["r2"],
        "average_precision": report.means["binary"]["average_precision"],
    }


def _sections(
    result: DemoResult,
    config: RunConfig,
    pipeline: DiTiPipeline,
    edits: list[EditResult],
    out: Path,
    held_out: int,
) -> list[Section]:
    samples = RunDirectory(out).samples
    names = [factor.name for factor in FACTORS]
    series = {kind: [result.scores[kind][n] for n in names] for kind in (PIXELS, UNTRAINED, TRAINED)}
    bars = bar_table_chart(samples / "probe.png", names, series, title="R2 (numbers), average precision (binary)")
    strips = [save_png(edit_strip(edit), out / f"edit-{i}.png") for i, edit in enumerate(edits)]
    return [
        _training_section(result, config, pipeline),
        Section(
            title="The base model",
            text="Faces drawn by the frozen diffusion model of stage 1, from noise alone.",
            picture=_newest(samples, "base-0*.png"),
        ),
        Section(
            title="What the features hold",
            text=f"Linear probes on {held_out:,} faces that training never saw: 70 % train the probe, 15 % choose its "
            "regularisation, 15 % are scored. The factors run from coarse to fine. R2 for the numbers, average "
            "precision for the binary factors (0.5 is chance). The same probe on raw pixels, and on the encoder "
            "before training, tells what training added.",
            picture=bars,
            table=_probe_table(result),
        ),
        Section(
            title="Reconstruction",
            text=f"{min(RECONSTRUCTED, held_out)} held-out faces through inversion and decoding, {result.edit_steps} "
            f"steps each way: {result.psnr:.1f} dB. The picture shows training faces: originals, what the features "
            "alone give back from random noise, and with the inferred noise.",
            picture=_newest(samples, "features-0*.png"),
        ),
        *(
            Section(
                title=f"Counterfactuals, pair {i + 1}",
                text="Some chunks of one face are replaced by the other's, a quarter of the time-steps at a time and "
                "then all of them; the noise stays its own.",
                picture=strip,
            )
            for i, strip in enumerate(strips)
        ),
        Section(
            title="Loss by time-step",
            text="Training loss of stage 2, averaged since the last sample picture.",
            picture=samples / "features-loss-by-timestep.png",
        ),
        Section(
            title="Go on",
            text="The commands below find this model by themselves.",
            code="diti encode faces:1000:2 -o feats.npy\nditi faces photos -n 1000 --seed 2\n"
            "diti probe feats.npy --labels photos/labels.csv -o probe\n"
            "diti edit photos/000000.png photos/000001.png --chunks 0-3 -o edit.png\n"
            "diti train --data ./your-photos --dry-run",
        ),
    ]


def _training_section(result: DemoResult, config: RunConfig, pipeline: DiTiPipeline) -> Section:
    seconds = result.seconds
    rows: list[list[str | int | float | None]] = [
        ["built-in faces", f"{config.data.resolution} px, factors {len(FACTORS)}"],
        ["stage 1, base", f"{config.base.images:,} images, batch {config.base.batch_size}"],
        ["stage 2, features", f"{config.features.images:,} images, batch {config.features.batch_size}"],
        [
            "features",
            f"{pipeline.chunks.latent_dim} dims in {pipeline.chunks.chunks} chunks, {config.gradient}",
        ],
        ["device", f"{pipeline.device}"],
    ]
    rows += [[f"seconds to {name}", f"{value:.1f}"] for name, value in seconds.items()]
    return Section(
        title="The run",
        text="A small diffusion model was trained on cartoon faces with 13 known factors; then an encoder and a shift "
        "decoder learned what that model loses at each range of time-steps (DiTi, arXiv 2401.11430).",
        table=(["", ""], rows),
    )


def _probe_table(result: DemoResult) -> tuple[list[str], list[list[str | int | float | None]]]:
    kinds = (PIXELS, UNTRAINED, TRAINED)
    columns = ["factor", "what it changes", "score", *kinds]
    rows: list[list[str | int | float | None]] = [
        [
            f.name,
            f.description,
            "R2" if f.kind == "number" else "AP",
            *(result.scores[k][f.name] for k in kinds),
        ]
        for f in FACTORS
    ]
    for metric, label in (("r2", "R2"), ("average_precision", "AP")):
        rows.append([f"mean {label}", "", label, *(result.means[k][metric] for k in kinds)])
    return columns, rows


def _newest(folder: Path, pattern: str) -> Path | None:
    found = sorted(folder.glob(pattern))
    return found[-1] if found else None
