"""What judges the arms of `benchmarks.evidence`: made once per folder, the same for all of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import RidgeCV

from benchmarks.facts import write
from diticli.chunks import ChunkLayout
from diticli.data.faces import FACTORS
from diticli.data.images import FaceImages, load_images
from diticli.data.labels import LabelColumn
from diticli.disentanglement import measure_disentanglement
from diticli.evaluation.attribute_classifier import AttributeClassifier, train_classifier
from diticli.evaluation.attribute_survival import measure_survival
from diticli.evaluation.images import EvaluationImages, evaluation_faces
from diticli.evaluation.scores import to_json
from diticli.evaluation.settings import EvaluationSettings
from diticli.evaluation.swap_effects import SwapEffects, measure_swap_effects
from diticli.models.base_files import load_base
from diticli.models.load import load_pipeline
from diticli.models.pipeline import DiTiPipeline
from diticli.models.pixels import normalise
from diticli.probing.probe import probe_features
from diticli.progress import SilentReporter
from diticli.schedule import NoiseSchedule
from diticli.statistics import spearman
from diticli.targets import Target

PROBED, PROBED_SEED = 4000, 1
FITTED = 3000
"""Of the probed faces, those that a ridge regression of a single chunk is fitted on."""


@dataclass(frozen=True)
class Judges:
    """Readers and faces, none of which any training saw."""

    images: EvaluationImages
    classifier: AttributeClassifier
    lost: dict[str, float]
    """Factor -> timestep at which noise has hidden half of it."""

    @classmethod
    def prepare(cls, folder: Path, base: Path, *, learn: int, pairs: int) -> Judges:
        """Train the readers, or read those that an earlier call left in `folder`."""
        unet, scheduler = load_base(str(base), resolution=None)
        images = evaluation_faces(int(unet.config.sample_size), learn=learn, pairs=pairs, reporter=SilentReporter())
        classifier = _reader(folder, images)
        place = folder / "lost.json"
        if not place.is_file():
            schedule = NoiseSchedule.from_scheduler(scheduler)
            write(place, measure_survival(images.learn_NCHW, images.labels, schedule).to_dict())
        return cls(images, classifier, halves(json.loads(place.read_text())))

    def judge(self, run: Path) -> dict[str, Any]:
        """Scores of a run's model."""
        pipeline = load_pipeline(str(run), "cpu")
        groups = [(chunk,) for chunk in range(pipeline.chunks.chunks)]
        settings = EvaluationSettings(steps=10)
        atlas = measure_swap_effects(pipeline, self.images, self.classifier, groups=groups, settings=settings)
        return {**self._knows(pipeline), **self._does(atlas), "layout": pipeline.chunks.to_dict()}

    def _knows(self, pipeline: DiTiPipeline) -> dict[str, Any]:
        faces = FaceImages(PROBED, PROBED_SEED, pipeline.resolution)
        images = torch.from_numpy(load_images(faces).images).permute(0, 3, 1, 2)
        z = torch.cat([pipeline.encode(normalise(part)) for part in images.split(500)]).float().numpy()
        columns = {f.name: LabelColumn(f.kind, faces.factors()[:, i]) for i, f in enumerate(FACTORS)}
        report = probe_features(z, columns, seed=0)
        found = measure_disentanglement(z, columns, None, layout=pipeline.chunks).to_dict()
        chunks = found.get("chunks") or {}
        return {
            "r2": float(np.mean([a.extras["r2"] for a in report.attributes if a.kind == "number"])),
            "average_precision": float(np.mean([a.value for a in report.attributes if a.kind == "binary"])),
            "probe": {a.name: a.extras.get("r2", a.value) for a in report.attributes},
            "chunk_disentanglement": chunks.get("disentanglement"),
            **chunk_scores(z, faces.factors(), pipeline.chunks),
            "mig": found["dims"]["mig"],
            "disentanglement": found,
            "chunk_power": [
                float(z[:, pipeline.chunks.dims_of(k)].var(axis=0).sum()) for k in range(len(pipeline.chunks.ends))
            ],
        }

    def _does(self, atlas: SwapEffects) -> dict[str, Any]:
        centres = {n: c.value for n, c in atlas.centres.items() if c is not None and n not in atlas.unreadable}
        both = [name for name in centres if name in self.lost]
        acting = [
            any(shares[g].differs and shares[g].value > 0.02 for shares in atlas.shares.values())
            for g in range(len(atlas.groups))
        ]
        several = len(atlas.groups) > 1
        order = None
        if several and len(both) > 2:
            order = float(spearman(np.array([centres[n] for n in both]), np.array([self.lost[n] for n in both])))
        return {
            "together": float(np.mean([share.value for share in atlas.together.values()])),
            "concentration": to_json(atlas.completeness.value) if several else None,
            "selectivity": to_json(atlas.disentanglement.value) if several else None,
            "acting": float(sum(acting)),
            "order": order,
            "centres": centres,
            "atlas": atlas.to_dict(),
        }


def chunk_scores(
    z_ND: npt.NDArray[np.float32], factors_NF: npt.NDArray[np.float32], layout: ChunkLayout
) -> dict[str, Any]:
    """Ridge regression on single chunks: R2 by factor and chunk, and how many chunks predict a factor.

    Returns:
        told_by_chunk: factor -> R2 of each chunk alone on the last faces, at least 0.
        told_in: mean number of chunks that alone reach half of the R2 of the whole features, over the factors of which
            these explain more than half.
    """
    z_ND = (z_ND - z_ND.mean(axis=0)) / (z_ND.std(axis=0) + 1e-6)
    slices = [layout.dims_of(chunk) for chunk in range(layout.chunks)]
    r2_FG = np.array([[_ridge_r2(z_ND[:, d], y_N) for d in (slice(None), *slices)] for y_N in factors_NF.T])
    known = r2_FG[:, 0] > 0.5
    counts_F = (r2_FG[:, 1:] >= r2_FG[:, :1] / 2).sum(axis=1)
    return {
        "told_by_chunk": {f.name: row.round(4).tolist() for f, row in zip(FACTORS, r2_FG[:, 1:], strict=True)},
        "told_in": float(counts_F[known].mean()) if known.any() else None,
    }


def _ridge_r2(z_ND: npt.NDArray[np.float32], y_N: npt.NDArray[np.float32]) -> float:
    fit = RidgeCV(np.logspace(-2, 4, 7)).fit(z_ND[:FITTED], y_N[:FITTED])
    return max(0.0, float(fit.score(z_ND[FITTED:], y_N[FITTED:])))


def halves(lost: dict[str, Any]) -> dict[str, float]:
    """Factor -> timestep at which one half of it is lost, of `SurvivalCurves.to_dict`."""
    return {name: found["value"] for name, found in lost["half"].items() if found}


def _reader(folder: Path, images: EvaluationImages) -> AttributeClassifier:
    place, facts = folder / "reader.safetensors", folder / "reader.json"
    if facts.is_file():
        known = json.loads(facts.read_text())
        classifier = AttributeClassifier([Target(**a) for a in known["attributes"]], images.judge_NCHW.shape[-1])
        classifier.load_state_dict(load_file(place))
        classifier.reliability = known["reliability"]
        return classifier.eval().requires_grad_(False)
    classifier = train_classifier(images.learn_NCHW, images.labels)
    save_file(classifier.state_dict(), place)
    write(
        facts,
        {
            "attributes": [{k: getattr(a, k) for k in ("name", "kind", "mean", "std")} for a in classifier.attributes],
            "reliability": classifier.reliability,
        },
    )
    return classifier
