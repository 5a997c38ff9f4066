"""Transfer rates of exchanged chunks, for each model that can edit, by one attribute classifier for each size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diticli.chunks import ChunkLayout
from diticli.comparison.entries import Entries, Entry
from diticli.comparison.images import ComparedImages
from diticli.comparison.settings import FOLDER_LABELS, QUARTERS, CompareSettings
from diticli.editing.stages import grouped
from diticli.errors import DataError
from diticli.evaluation.attribute_classifier import AttributeClassifier, train_classifier
from diticli.evaluation.evaluate import check_reconstruction, evaluate_model
from diticli.evaluation.images import EvaluationImages, evaluation_faces, evaluation_folder
from diticli.evaluation.kept import KeptArrays
from diticli.evaluation.report import check_readable, classifier_text
from diticli.evaluation.scores import to_json
from diticli.evaluation.settings import EvaluationSettings
from diticli.identity import cache_key, file_digest
from diticli.progress import Reporter
from diticli.sealed import keep_result, kept_result


class SwapStore:
    """Faithfulness of all models that can edit, each kept under a hash of model and settings.

    Args:
        folder: made when something is written.
        images: of the comparison; the built-in faces are judged on faces of other seeds.
        entries: the models.
        settings: how many images.
    """

    def __init__(self, folder: Path, images: ComparedImages, entries: Entries, settings: CompareSettings) -> None:
        self.folder, self.images, self.entries, self.settings = folder, images, entries, settings
        self._classifiers: dict[tuple[Any, ...], tuple[EvaluationImages, AttributeClassifier]] = {}

    def key(self, entry: Entry) -> str:
        """Hash (16 hex digits) of everything that the scores depend on."""
        settings = self.settings
        facts: list[Any] = [
            settings.pairs,
            settings.learn,
            settings.epochs,
            settings.steps,
            settings.seed,
            self._labels(),
        ]
        facts += [settings.value_range] if settings.value_range else []
        return cache_key("swaps", entry.model_hash, entry.crop, self.images.fingerprint(), *facts)

    def _labels(self) -> str | None:
        """Content of the label file: a file that was edited since gives other scores under the same path."""
        labels = self.settings.labels
        if labels is None or labels == FOLDER_LABELS:
            return labels
        try:
            return file_digest(Path(labels))
        except OSError as error:
            raise DataError(f"Cannot read {labels}: {error.strerror}.", remedy="Check --labels.") from error

    def has(self, entry: Entry) -> bool:
        """Whether they are done."""
        return self._path(entry).is_file()

    def make(self, entry: Entry, reporter: Reporter) -> None:
        """Exchange, judge and keep, unless that is done.

        Raises:
            DiTiError: as `evaluate_model` and `evaluation_folder`; DataError when the file cannot be written.
        """
        if self.has(entry):
            return
        pipeline = self.entries.load(entry)
        images, classifier = self._classifier(entry, str(pipeline.device), reporter)
        check_readable(classifier, force=self.settings.force)
        options: dict[str, Any] = {"settings": self._settings(), "moves": False, "reporter": reporter}
        result = evaluate_model(pipeline, images, classifier, chunk_sets(pipeline.chunks), kept=self._kept(), **options)
        for warning in result.warnings:
            reporter.warn(f"{entry.name}: {warning}")
        facts = {"reader": classifier.reliability, "images": images.name, **result.to_dict()}
        keep_result(self._path(entry), "scores", to_json(facts), default=str)

    def read(self, entry: Entry, reporter: Reporter) -> dict[str, Any]:
        """What `make` kept; a damaged file counts as none, and is made again.

        Raises:
            DiTiError: as `make`.
        """
        try:
            return kept_result(self._path(entry))
        except (OSError, ValueError):
            self._path(entry).unlink(missing_ok=True)
            self.make(entry, reporter)
            return kept_result(self._path(entry))

    def _classifier(
        self, entry: Entry, device: str, reporter: Reporter
    ) -> tuple[EvaluationImages, AttributeClassifier]:
        """Learned once for all models that read images of one size."""
        settings = self.settings
        key = entry.resolution, entry.crop, entry.channels, entry.value_range
        if key not in self._classifiers:
            images = self._images(entry, reporter)
            check_reconstruction(self.entries.load(entry), images, self._settings())
            classifier = train_classifier(
                images.learn_NCHW,
                images.labels,
                epochs=settings.epochs,
                seed=settings.seed,
                device=device,
                reporter=reporter,
                kept=self._kept(),
            )
            reporter.note(classifier_text(classifier))
            self._classifiers[key] = images, classifier
        return self._classifiers[key]

    def _images(self, entry: Entry, reporter: Reporter) -> EvaluationImages:
        settings, size = self.settings, entry.resolution
        if settings.labels is None:
            return evaluation_faces(
                size, learn=settings.learn, pairs=settings.pairs, reporter=reporter, channels=entry.channels
            )
        return evaluation_folder(
            settings.data[0],
            Path(settings.labels),
            size,
            learn=settings.learn,
            pairs=settings.pairs,
            crop=entry.crop,
            seed=settings.seed,
            reporter=reporter,
            value_range=settings.value_range or entry.value_range,
            channels=entry.channels,
        )

    def _settings(self) -> EvaluationSettings:
        own = self.settings
        return EvaluationSettings(steps=own.steps, seed=own.seed, force=own.force)

    def _kept(self) -> KeptArrays:
        return KeptArrays(self.folder)

    def _path(self, entry: Entry) -> Path:
        return self.folder / (self.key(entry) + ".json")


def chunk_sets(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """Each quarter of the chunks, and all of them."""
    return list(dict.fromkeys([*grouped(layout, QUARTERS), tuple(range(layout.chunks))]))
