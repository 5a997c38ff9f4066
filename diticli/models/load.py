"""Which model a command uses: `--model`, else `$DITI_MODEL`, else the newest run under ./runs, else the shipped one."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diticli._version import __version__
from diticli.data.faces_word import IN_WORDS, is_faces
from diticli.errors import ModelError
from diticli.models.device import resolve_device
from diticli.models.hub import RUNS, SHIPPED, has_shipped, pipeline_folder
from diticli.models.model import DiTiModel
from diticli.models.model_files import read_model
from diticli.models.variables import check_variables
from diticli.reading import read_regular, shortened

if TYPE_CHECKING:
    from diticli.models.pipeline import DiTiPipeline

VARIABLE = "$DITI_MODEL"
TRAINING = "training.json"
"""Copy of the run's config.json and of what QUALITY holds, in the folder of an exported model."""
QUALITY = "quality.json"
"""What a run measured of its model."""
_MAX_PSNR = 1000.0
"""dB; pictures that are equal have no number."""
_MAX_RATE = 10.0
"""1 is all of the partner's attribute."""


@dataclass(frozen=True, kw_only=True)
class Located:
    """A model to load, and why this one.

    Attributes:
        name: a pipeline folder, a run directory, a Hub id, or "shipped".
        reason: e.g. "newest run under ./runs".
    """

    name: str
    reason: str

    def describe(self) -> str:
        """E.g. "runs/demo (newest run under ./runs), trained on built-in faces"."""
        shown = self.reason if self.name == SHIPPED else f"{self.name} ({self.reason})"
        images = self.trained_on
        return f"{shown}, trained on {images}" if images else shown

    @property
    def trained_on(self) -> str:
        """What a model on disk was trained on, where its run says so; else ""."""
        source = self._recorded("config", "data", "source")
        if not isinstance(source, str):
            return ""
        return IN_WORDS if is_faces(source) else shortened(source)

    @property
    def trained_images(self) -> int | None:
        """Images that stage 2 of a model on disk saw, where its run says so."""
        images = self._recorded("config", "features", "images")
        return images if isinstance(images, int) else None

    @property
    def usual_psnr(self) -> float | None:
        """dB of reconstructions of images like those it was trained on, where it was measured: the least of them."""
        value = self._recorded("reconstruction_psnr_db", beside=QUALITY)
        return _decibels(value["least"] if isinstance(value, dict) and "least" in value else value)

    @property
    def usual_range(self) -> tuple[float, float, int] | None:
        """(low, high, images): these dB of the middle half of so many images, where it was measured."""
        value = self._recorded("reconstruction_psnr_db", beside=QUALITY)
        if not isinstance(value, dict):
            return None
        low, high = (_decibels(value.get(key)) for key in ("lower_quartile", "upper_quartile"))
        images = value.get("images")
        return None if low is None or high is None or type(images) is not int else (low, high, images)

    @property
    def transfer_rates(self) -> dict[str, float]:
        """Attribute -> share of the partner's that an exchange of all chunks transfers, where it was measured."""
        found = self._recorded("transfer_rates")
        rates = found.items() if isinstance(found, dict) else ()
        return {name: float(rate) for name, rate in rates if isinstance(rate, int | float) and abs(rate) < _MAX_RATE}

    def _recorded(self, *keys: str, beside: str = "config.json") -> Any:
        """An entry of the record in the folder of a model on disk, or of its run's file `beside` it; or None."""
        if self.name != SHIPPED and not Path(self.name).expanduser().is_dir():
            return None
        try:
            folder = pipeline_folder(self.name)
            record = next(path for path in (folder / TRAINING, folder.parent / beside) if path.is_file())
            found = json.loads(read_regular(record))
            for key in keys:
                found = found[key]
        except (StopIteration, OSError, ValueError, KeyError, TypeError, ModelError, RecursionError):
            return None
        return found


def _decibels(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= _MAX_PSNR else None


def locate(model: str | None, *, runs: Path = RUNS) -> Located:
    """The model to load, and why this one.

    Raises:
        ModelError: when none is named and none can be found.
    """
    if model:
        return Located(name=model, reason=_shipped_reason() if model == SHIPPED else "--model")
    if chosen := os.environ.get("DITI_MODEL"):
        return Located(name=chosen, reason=_shipped_reason() if chosen == SHIPPED else VARIABLE)
    finished, elsewhere = _finished_runs(runs)
    if finished:
        newest = max(finished, key=lambda run: _index(run).stat().st_mtime)
        return Located(name=str(newest), reason=f"newest run under ./{runs}{_owner(newest)}{elsewhere}")
    if has_shipped():
        return Located(name=SHIPPED, reason=_shipped_reason() + elsewhere)
    raise ModelError(
        f"No model is named, there is no finished run under ./{runs}{elsewhere}, and this installation has no shipped "
        "model.",
        remedy="Use --model, set DITI_MODEL, or train one with `diti demo --full`.",
    )


def _index(run: Path) -> Path:
    return run / "model" / "model_index.json"


def _finished_runs(runs: Path) -> tuple[list[Path], str]:
    """The finished runs, and what to say of those that links put elsewhere, which nobody chose by a name.

    `runs` itself may be a link.
    """
    inside: list[Path] = []
    outside: list[Path] = []
    root = runs.resolve()
    for index in sorted(runs.glob("*/model/model_index.json")):
        run = index.parent.parent
        (inside if index.resolve().is_relative_to(root) else outside).append(run)
    text = f"; not {outside[0]}, a link to another place" if outside else ""
    return inside, text


def _owner(run: Path) -> str:
    """Whose run it is, unless it is the user's."""
    owner = _index(run).stat().st_uid
    if owner == os.geteuid():
        return ""
    try:
        return f", of the user {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return f", of the user {owner}"


def _shipped_reason() -> str:
    return f"shipped with diticli {__version__}"


def load_model(model: str | None = None, device: str | None = None) -> DiTiModel:
    """The located model on a device, to run and not to save: without diffusers, whose import takes seconds.

    Raises:
        ModelError: when there is no such model.
        DeviceError: when there is no such device, or what a variable asks for cannot run there.
        ConfigError: when a variable holds an unknown word.
    """
    target = resolve_device(device)
    check_variables(target)
    located = locate(model)
    with _source_named(located):
        loaded = read_model(located.name).to(target)
    _introduce(loaded, located)
    return loaded


def load_pipeline(model: str | None = None, device: str | None = None) -> DiTiPipeline:
    """The located model on a device, as a diffusers pipeline.

    Raises:
        DiTiError: as `load_model`.
    """
    target = resolve_device(device)
    check_variables(target)
    from diticli.models.pipeline import DiTiPipeline, quiet_loading

    located = locate(model)
    with quiet_loading(), _source_named(located):
        pipeline = DiTiPipeline.from_pretrained(located.name)
    _introduce(pipeline, located)
    return pipeline.to(target)


@contextlib.contextmanager
def _source_named(located: Located) -> Iterator[None]:
    """With the variable's name in errors: nobody typed the model's."""
    try:
        yield
    except ModelError as error:
        if located.reason == VARIABLE:
            error.message = f"{VARIABLE}: {error.message}"
        raise


def _introduce(model: DiTiModel, located: Located) -> None:
    model.origin, model.trained_on, model.usual_psnr = located.describe(), located.trained_on, located.usual_psnr
    model.trained_images, model.usual_range = located.trained_images, located.usual_range
    model.transfer_rates = located.transfer_rates
