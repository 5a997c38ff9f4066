"""What can be measured of a model beside the faithfulness of its edits, and how it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli.editing.stages import OVERVIEW_ROWS, grouped
from diticli.evaluation.attribute_classifier import AttributeClassifier
from diticli.evaluation.attribute_survival import SurvivalCurves, measure_survival
from diticli.evaluation.chunk_ablation import FeatureAblation, measure_ablation
from diticli.evaluation.composition import Composition, measure_composition
from diticli.evaluation.decoding import Decoding
from diticli.evaluation.denoising import ModelGap, measure_model_gap
from diticli.evaluation.evidence_tables import chunk_text
from diticli.evaluation.images import EvaluationImages
from diticli.evaluation.kept import KeptArrays
from diticli.evaluation.order import OrderAgreement, compare_order
from diticli.evaluation.realism import Realism, measure_realism
from diticli.evaluation.settings import EvaluationSettings
from diticli.evaluation.swap_effects import SwapEffects, measure_swap_effects
from diticli.progress import Reporter, SilentReporter

if TYPE_CHECKING:
    from diticli.models.model import DiTiModel


GAP_IMAGES = 32
"""The gap is measured on at most so many of the judged images: its standard errors are small, its timesteps many."""


@dataclass(frozen=True, kw_only=True)
class EvidenceRequest:
    """What to measure.

    Attributes:
        atlas: exchange every chunk alone.
        gap: error by timestep with and without features, and the use of every chunk.
        lost: when the noise hides each attribute.
        groups: consecutive chunks go together in so many groups; None: every chunk by itself.
        lost_epochs: passes of the classifier of noisy images.
        composition: edits by nothing, one after another; 0 for none.
        realism: SSIM, LPIPS, FID and so on of reconstructions and of exchanged chunks.
        weights: folder of the networks that these need.
    """

    atlas: bool = False
    gap: bool = False
    lost: bool = False
    groups: int | None = None
    lost_epochs: int = 6
    composition: int = 0
    realism: bool = False
    weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What was measured of one model; None where it was not asked for, or there was nothing to measure.

    Attributes:
        atlas: what each chunk does.
        gap: error by timestep.
        use: how much the loss rises without each chunk.
        lost: when attributes are lost, the same for all models with one noise schedule.
        order: whether chunks act in that order.
        composition: how far images drift when they are edited by nothing.
        realism: how close reconstructions come to their originals, and how real edits look.
    """

    atlas: SwapEffects | None = None
    gap: ModelGap | None = None
    use: FeatureAblation | None = None
    lost: SurvivalCurves | None = None
    order: OrderAgreement | None = None
    composition: Composition | None = None
    realism: Realism | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; what was not measured is left out."""
        return {name: part.to_dict() for name, part in vars(self).items() if part is not None}


def collect_evidence(
    pipelines: Sequence[DiTiModel],
    images: EvaluationImages,
    classifier: AttributeClassifier,
    request: EvidenceRequest,
    *,
    settings: EvaluationSettings | None = None,
    reporter: Reporter | None = None,
    kept: KeptArrays | None = None,
) -> list[Evidence]:
    """Measure what `request` asks for, of each model in turn.

    Args:
        pipelines: of one resolution.
        images: images to learn from and to judge.
        classifier: trained on the former.
        request: what to measure.
        settings: of exchanges; its batch size and seed serve all.
        reporter: receiver of progress.
        kept: where what was made before is found.

    Raises:
        ConfigError: for less than one group, or fewer than two pairs.
        DataError: for fewer than eight judged images.
        ModelError: for an encoder alone.
    """
    settings, reporter = settings or EvaluationSettings(), reporter or SilentReporter()
    found: dict[bytes, SurvivalCurves] = {}
    results = []
    for pipeline in pipelines:
        layout = pipeline.chunks
        options: dict[str, Any] = {"seed": settings.seed, "reporter": reporter}
        groups = grouped(layout, request.groups or layout.chunks)
        parts: dict[str, Any] = {}
        if request.gap:
            some, size = images.judge_NCHW[:GAP_IMAGES], settings.batch_size
            parts["gap"] = measure_model_gap(pipeline, some, batch_size=size, kept=kept, **options)
            parts["use"] = measure_ablation(pipeline, some, groups=groups, batch_size=size, kept=kept, **options)
        if request.composition:
            parts["composition"] = measure_composition(
                pipeline, images.judge_NCHW, request.composition, settings=settings, reporter=reporter, kept=kept
            )
        if request.realism:
            sets = [*grouped(layout, OVERVIEW_ROWS), tuple(range(layout.chunks))]
            decoding = Decoding(pipeline, classifier, settings, SilentReporter(), kept or KeptArrays())
            reporter.note("Comparing reconstructions and edits with the originals.")
            parts["realism"] = measure_realism(
                pipeline, images.judge_NCHW, {chunk_text(s): s for s in sets}, decoding, request.weights
            )
        if request.atlas:
            parts["atlas"] = measure_swap_effects(
                pipeline, images, classifier, groups=groups, settings=settings, reporter=reporter, kept=kept
            )
        if request.lost:
            key = pipeline.schedule.alphas_cumprod.cpu().numpy().tobytes()
            if key not in found:
                found[key] = measure_survival(
                    images.learn_NCHW,
                    images.labels,
                    pipeline.schedule,
                    epochs=request.lost_epochs,
                    device=pipeline.device,
                    kept=kept,
                    **options,
                )
            parts["lost"] = found[key]
        if "atlas" in parts and "lost" in parts:
            parts["order"] = compare_order(parts["atlas"], parts["lost"], seed=settings.seed)
        results.append(Evidence(**parts))
    return results
