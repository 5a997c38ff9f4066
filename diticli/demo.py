"""`diti demo`: edits by the shipped model at once, then a training of one's own, both measured, and a report.

Quick, the default: the shipped model edits two pairs of faces in seconds; then stage 2 is trained anew on the shipped
base, for as long as the budget of minutes allows, and both models are measured alike. Full: both stages from nothing.
All is measured on faces of a seed that no training saw.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from diticli.config import RunConfig
from diticli.data.faces import write_labels_csv
from diticli.data.images import FaceImages, load_images
from diticli.data.labels import read_labels
from diticli.demo_report import (
    FRESH,
    PIXELS,
    SHIPPED_MODEL,
    UNTRAINED,
    DemoResult,
    Measured,
    strip_of,
    write_demo_report,
)
from diticli.editing.pair import EditResult, EditSettings, edit_pair
from diticli.editing.stages import stages
from diticli.encoding.encode import encode_with
from diticli.errors import ConfigError, ModelError
from diticli.features.read import FeatureRows, read_features
from diticli.files import write_json
from diticli.models.build import build_encoder
from diticli.models.device import global_generators_kept
from diticli.models.encoder import SemanticEncoder
from diticli.models.hub import SHIPPED, has_shipped
from diticli.models.load import load_model
from diticli.models.model import DiTiModel
from diticli.models.pixels import normalise
from diticli.pictures.grids import psnr, save_png
from diticli.probing.files import write_report as write_probe
from diticli.probing.label_join import JoinedLabels, join_labels
from diticli.probing.probe import probe_features
from diticli.probing.report import ProbeReport
from diticli.progress import Reporter, SilentReporter
from diticli.reading import read_regular
from diticli.sampling.defaults import DEFAULT_STEPS
from diticli.training.batches import fold_seed
from diticli.training.budget import TooShortError
from diticli.training.run import train
from diticli.training.rundir import RunDirectory

HELD_OUT_SEED = 1
RECONSTRUCTED = 8
PAIRS = ((0, 1), (2, 3))
_LEAST_TRAINING = 20.0
"""Seconds of stage 2 below which the demo shows nothing."""
_TRIES = 3
_Result = TypeVar("_Result")


def run_demo(
    config: RunConfig,
    out: Path,
    *,
    full: bool = False,
    held_out: int = 2000,
    steps: int = DEFAULT_STEPS,
    reporter: Reporter | None = None,
    started: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> DemoResult:
    """Edit, train, measure and report, into the run directory `out`; a finished run there is measured again.

    Args:
        config: settings of the training, on the built-in faces. Its `minutes` are the budget of the whole demo, or when
            `full` that of the training alone.
        out: run directory; also gets feats.npy, labels.csv, probe/, demo.json and report.html.
        full: train both stages from nothing; else stage 2 on the base of the shipped model.
        held_out: faces to encode and probe.
        steps: of inversion and of decoding.
        reporter: receiver of progress.
        started: when the budget began, by `clock`. Default: now.
        clock: seconds.

    Raises:
        ModelError: when there is no shipped model and not `full`.
        DataError: when there are links in `out`, where results would be written elsewhere.
        DiTiError: as `diticli.training.run.train`.
        TrainingInterrupted: likewise; calling again goes on.
    """
    reporter, started = reporter or SilentReporter(), started or clock()
    if not full and not has_shipped():
        raise ModelError(
            "This installation of diticli has no shipped model to begin with.",
            remedy="Run `diti demo --full`, which trains one from nothing (half an hour on two cores).",
        )
    RunDirectory(out).refuse_links()
    demo = _Demo(config, out, held_out, steps, reporter, clock)
    planned = full or RunDirectory(out).finished or _kept_minutes(out) is not None
    if has_shipped():
        demo.measure(SHIPPED_MODEL, SHIPPED, early=True, started=None if planned else started)
    measured = clock()
    if RunDirectory(out).finished:
        reporter.note(f"{out} is trained already; measuring it again.")
    else:
        chosen = config if full else _within_budget(config, out, measured - started, demo.seconds)
        if full:
            demo.timed("train", lambda: train(chosen, out, reporter=reporter, clock=clock))
        else:
            demo.timed("train", lambda: demo.train(chosen))
    demo.baselines([UNTRAINED, PIXELS] if full else [UNTRAINED])
    demo.measure(FRESH, str(out), early=False)
    return demo.finish()


def _within_budget(config: RunConfig, out: Path, spent: float, seconds: dict[str, float]) -> RunConfig:
    """Stage 2 on the shipped base, for the minutes that are left when the fresh model takes as long to measure as the
    shipped one did, at least `_LEAST_TRAINING`; or as a run in `out` was planned.
    """
    # Fewer faces than a long training wants: drawing them all would take a tenth of the time.
    config = replace(config, base_model=SHIPPED, data=replace(config.data, faces_count=10_000))
    if (kept := _kept_minutes(out)) is not None:
        return replace(config, minutes=kept)
    left = 60 * config.minutes - spent - _measuring(sum(seconds.values()))
    return replace(config, minutes=round(max(left, _LEAST_TRAINING) / 60, 2))


def _kept_minutes(out: Path) -> float | None:
    """As the run in `out` was planned, where there is one."""
    try:
        return float(json.loads(read_regular(out / "config.json"))["config"]["minutes"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _measuring(seconds: float) -> float:
    """Seconds to set aside for a model when measuring the shipped one takes `seconds`."""
    return 1.2 * seconds + 2.0


class _Demo:
    """What a demo collects on its way."""

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        held_out: int,
        steps: int,
        reporter: Reporter,
        clock: Callable[[], float],
    ) -> None:
        self.config, self.out, self.steps, self.reporter = config, out, steps, reporter
        self.clock = clock
        self.device = None if config.device == "auto" else config.device
        self.faces = FaceImages(held_out, HELD_OUT_SEED, config.data.resolution)
        self.images = load_images(self.faces, reporter=reporter).images
        self.labels = _labels(self.faces)
        self.seconds: dict[str, float] = {}
        self.models: dict[str, Measured] = {}
        self.probes: dict[str, ProbeReport] = {}
        self.pictures: tuple[Path, ...] = ()

    def timed(self, name: str, work: Callable[[], _Result]) -> _Result:
        """Do it, and keep how long it took."""
        began = self.clock()
        done = work()
        self.seconds[name] = self.clock() - began
        return done

    def measure(self, name: str, source: str, *, early: bool, started: float | None = None) -> None:
        """Edits first, then probes and reconstructions.

        Args:
            name: of the model.
            source: where it is.
            early: before there is a run directory.
            started: when the budget of minutes began, which then is refused at once where it is too short.
        """
        model = self.timed(f"load the {name}", lambda: load_model(source, self.device))
        if started is not None:
            seconds, spent = self._seconds_to_measure(model), self.clock() - started
            self._check_minutes(spent, seconds)
        edits = self.timed(f"edit by the {name}", lambda: self._edits(model, early=early))
        self.probes[name] = self.timed(f"probe the {name}", lambda: self._probe(model, keep=not early))
        quality = self.timed(f"reconstruct by the {name}", lambda: self._reconstruction_psnr(model))
        self.models[name] = Measured(
            model=model.model_id,
            chunks=model.chunks.chunks,
            dims=model.chunks.latent_dim,
            psnr=quality,
            edits=edits,
            trained_images=model.trained_images,
        )

    def _check_minutes(self, spent: float, seconds: float) -> None:
        """`seconds`: estimate for one model. Later nothing is refused any more: a busy machine takes longer than asked.

        Raises:
            ConfigError: when even half of the estimate leaves no time for a training.
        """
        minutes = self.config.minutes
        if 60 * minutes - spent - seconds < _LEAST_TRAINING:
            measuring = spent + seconds + _measuring(seconds)
            raise ConfigError(
                f"{minutes:g} minutes are too short on this machine, as busy as it is now: measuring two models takes "
                f"about {measuring:.0f} s.",
                remedy=f"Give --minutes {(measuring + _LEAST_TRAINING) / 60 + 0.1:.1f} or more, or a smaller "
                "--held-out.",
            )

    def train(self, config: RunConfig) -> None:
        """Within the minutes; where they do not do for ten steps, which is seen only now, in a few more."""
        try:
            train(config, self.out, reporter=self.reporter, clock=self.clock)
        except TooShortError as error:
            self.reporter.note(
                f"The machine is busy: the training takes {error.minutes:.1f} min, {config.minutes:g} min were left."
            )
            train(replace(config, minutes=error.minutes), self.out, reporter=self.reporter, clock=self.clock)

    def _seconds_to_measure(self, model: DiTiModel) -> float:
        """An estimate, from a few timed steps; fitting the probe is not in it."""
        x0 = self._first_images()
        z = model.encode(x0)
        model.decode(x0, z, steps=2)  # the first call also prepares

        def seconds(work: Callable[[], object]) -> float:
            began = self.clock()
            work()
            return self.clock() - began

        # The best of a few: on a busy machine a single one may have waited.
        encoding = min(seconds(lambda: model.encode(x0)) for _ in range(_TRIES)) / len(x0)
        step = min(seconds(lambda: model.decode(x0, z, steps=2)) for _ in range(_TRIES)) / 2 / len(x0)
        edited = len(PAIRS) * (4 + 2 * len(_sets(model)))  # two to invert, two reconstructions, and the edits
        return encoding * len(self.images) + step * self.steps * (edited + 2 * len(x0))

    def _first_images(self) -> torch.Tensor:
        return normalise(torch.from_numpy(self.images[:RECONSTRUCTED]).permute(0, 3, 1, 2))

    def _edits(self, model: DiTiModel, *, early: bool) -> tuple[EditResult, ...]:
        """Each pair with each stage of the chunks exchanged, and all of them; `early`: shown at once."""
        sets = _sets(model)
        settings = EditSettings(invert_steps=self.steps, decode_steps=self.steps)
        done = []
        for a, b in PAIRS:
            first, second = (Image.fromarray(self.faces.load(i)) for i in (a, b))
            names = (f"face {a}", f"face {b}")
            done.append(
                edit_pair(model, first, second, sets, (1.0,), settings=settings, names=names, reporter=self.reporter)
            )
            if early:
                self._show(done[-1])
        return tuple(done)

    def _show(self, edit: EditResult) -> None:
        """Write a picture beside the run directory, which training has yet to make."""
        path = self.out.with_name(f"{self.out.name}-edit-{len(self.pictures) + 1}.png")
        self.pictures = (*self.pictures, save_png(strip_of(edit), path))
        self.reporter.note(f"Look: the shipped model exchanged chunks between two faces, {path}")

    def _probe(self, model: DiTiModel, *, keep: bool) -> ProbeReport:
        """`keep`: also leave the features, their labels and the probe in the run directory."""
        if not keep:
            return self._probed(self._encoded(model.encode))
        path, labels = self.out / "feats.npy", self.out / "labels.csv"
        encode_with(model, self.faces, path, batch_size=256, resume=False, reporter=self.reporter)
        features = read_features(path)
        report = self._probed(features.values, meta=features.meta)
        write_labels_csv(labels, HELD_OUT_SEED, range(len(self.faces)))
        write_probe(report, self.out / "probe", {"features": str(path), "labels": str(labels)})
        return report

    @torch.no_grad()
    def _encoded(self, encode: Callable[[torch.Tensor], torch.Tensor]) -> npt.NDArray[np.float32]:
        batches = torch.from_numpy(self.images).permute(0, 3, 1, 2).split(256)
        return np.concatenate([encode(normalise(batch)).float().cpu().numpy() for batch in batches])

    def _probed(self, values: FeatureRows, **options: Any) -> ProbeReport:
        return probe_features(
            values,
            self.labels.columns,
            rows=self.labels.rows,
            seed=self.config.seed,
            reporter=self.reporter,
            **options,
        )

    def baselines(self, names: list[str]) -> None:
        """The same probe on features that took no training."""
        for name in names:
            if name == PIXELS:
                values = (self.images.reshape(len(self.images), -1) / 255).astype(np.float32)
            else:
                values = self._encoded(self._untrained_encoder())
            self.probes[name] = self.timed(f"probe the {name}", partial(self._probed, values))

    def _untrained_encoder(self) -> SemanticEncoder:
        """The very encoder that the training began with."""
        with global_generators_kept(torch.device("cpu")):
            torch.manual_seed(fold_seed(self.config.seed, "features", "weights"))
            return build_encoder(self.config).eval()

    def _reconstruction_psnr(self, model: DiTiModel) -> float:
        x0 = self._first_images()
        z = model.encode(x0)

        def count(step: int, total: int) -> None:
            self.reporter.advance()

        self.reporter.start(f"Reconstructing {len(x0)} faces", 2 * self.steps, unit="steps")
        x_T = model.invert(x0, z, steps=self.steps, callback=count)
        back = model.decode(x_T, z, steps=self.steps, callback=count).cpu()
        self.reporter.finish()
        return psnr(back, x0)

    def finish(self) -> DemoResult:
        """The figures, as files and as the report."""
        order = [name for name in (SHIPPED_MODEL, FRESH, UNTRAINED, PIXELS) if name in self.probes]
        result = DemoResult(
            run=self.out,
            report=self.out / "report.html",
            pictures=self.pictures,
            models=self.models,
            scores={name: _scores(self.probes[name]) for name in order},
            means={name: _means(self.probes[name]) for name in order},
            held_out=len(self.faces),
            steps=self.steps,
            seconds=self.seconds,
        )
        write_json(self.out / "demo.json", result.to_dict())
        write_demo_report(result)
        return result


def _sets(model: DiTiModel) -> list[tuple[int, ...]]:
    """Each stage of the chunks, and all of them."""
    return list(dict.fromkeys([*stages(model.chunks), tuple(range(model.chunks.chunks))]))


def _labels(faces: FaceImages) -> JoinedLabels:
    """The true factors of the faces."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "labels.csv")
        write_labels_csv(path, HELD_OUT_SEED, range(len(faces)))
        return join_labels([faces.file_name(i) for i in range(len(faces))], read_labels(path), None)


def _scores(report: ProbeReport) -> dict[str, float]:
    return {a.name: a.extras["r2"] if a.kind == "number" else a.value for a in report.attributes}


def _means(report: ProbeReport) -> dict[str, float]:
    return {
        "r2": report.means["number"]["r2"],
        "average_precision": report.means["binary"]["average_precision"],
    }
