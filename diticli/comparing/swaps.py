"""What exchanged chunks carry over, for each model that can edit, told by one reader for all models of a size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diticli.chunks import ChunkLayout
from diticli.comparing.images import ComparedImages
from diticli.comparing.lineup import Lineup, Subject
from diticli.comparing.settings import FOLDER_LABELS, CompareSettings
from diticli.data.decode import Crop
from diticli.editing.stages import grouped
from diticli.errors import DataError
from diticli.identity import cache_key, file_digest
from diticli.judging.evaluation import EvaluationSettings, evaluate_model
from diticli.judging.images import JudgedImages, judged_faces, judged_folder
from diticli.judging.reader import AttributeReader, train_reader
from diticli.judging.scores import to_json
from diticli.pictures.files import write_atomically
from diticli.progress import Reporter

PARTS = 4


class SwapStore:
    """Faithfulness of all models that can edit, each kept under a hash of model and settings.

    Args:
        folder: made when something is written.
        images: of the comparison; the built-in faces are judged on faces of other seeds.
        lineup: the models.
        settings: how many images.
    """

    def __init__(self, folder: Path, images: ComparedImages, lineup: Lineup, settings: CompareSettings) -> None:
        self.folder, self.images, self.lineup, self.settings = folder, images, lineup, settings
        self._readers: dict[tuple[int, Crop], tuple[JudgedImages, AttributeReader]] = {}

    def key(self, subject: Subject) -> str:
        """Hash (16 hex digits) of everything that the scores depend on."""
        settings = self.settings
        facts = [settings.pairs, settings.learn, settings.epochs, settings.steps, settings.seed, self._labels()]
        return cache_key("swaps", subject.model_hash, subject.crop, self.images.fingerprint(), *facts)

    def _labels(self) -> str | None:
        """Content of the label file: a file that was edited since gives other scores under the same path."""
        labels = self.settings.labels
        if labels is None or labels == FOLDER_LABELS:
            return labels
        try:
            return file_digest(Path(labels))
        except OSError as error:
            raise DataError(f"Cannot read {labels}: {error.strerror}.", remedy="Check --labels.") from error

    def has(self, subject: Subject) -> bool:
        """Whether they are done."""
        return self._path(subject).is_file()

    def make(self, subject: Subject, reporter: Reporter) -> None:
        """Exchange, judge and keep, unless that is done.

        Raises:
            DiTiError: as `evaluate_model` and `judged_folder`; DataError when the file cannot be written.
        """
        if self.has(subject):
            return
        pipeline = self.lineup.load(subject)
        judged, reader = self._reader(subject, str(pipeline.device), reporter)
        settings = EvaluationSettings(steps=self.settings.steps, seed=self.settings.seed)
        result = evaluate_model(
            pipeline, judged, reader, chunk_sets(pipeline.chunks), settings=settings, moves=False, reporter=reporter
        )
        facts = {"reader": reader.reliability, "images": judged.name, **to_json(result)}
        text = json.dumps(to_json(facts), indent=1, allow_nan=False, default=str) + "\n"
        write_atomically(self._path(subject), "scores", lambda beside: beside.write_text(text, encoding="utf-8"))

    def read(self, subject: Subject) -> dict[str, Any] | None:
        """What `make` kept; None where that is missing or damaged."""
        try:
            found: dict[str, Any] = json.loads(self._path(subject).read_bytes())
        except (OSError, ValueError):
            return None
        return found

    def _reader(self, subject: Subject, device: str, reporter: Reporter) -> tuple[JudgedImages, AttributeReader]:
        """Learned once for all models that read images of one size."""
        key, settings = (subject.resolution, subject.crop), self.settings
        if key not in self._readers:
            judged = self._images(subject, reporter)
            self._readers[key] = (
                judged,
                train_reader(
                    judged.learn_NCHW,
                    judged.labels,
                    epochs=settings.epochs,
                    seed=settings.seed,
                    device=device,
                    reporter=reporter,
                ),
            )
        return self._readers[key]

    def _images(self, subject: Subject, reporter: Reporter) -> JudgedImages:
        settings, size = self.settings, subject.resolution
        if settings.labels is None:
            return judged_faces(size, learn=settings.learn, pairs=settings.pairs, reporter=reporter)
        return judged_folder(
            settings.data[0],
            Path(settings.labels),
            size,
            learn=settings.learn,
            pairs=settings.pairs,
            crop=subject.crop,
            seed=settings.seed,
            reporter=reporter,
        )

    def _path(self, subject: Subject) -> Path:
        return self.folder / (self.key(subject) + ".json")


def chunk_sets(layout: ChunkLayout) -> list[tuple[int, ...]]:
    """Each quarter of the chunks, and all of them."""
    return list(dict.fromkeys([*grouped(layout, PARTS), tuple(range(layout.chunks))]))
