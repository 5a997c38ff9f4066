"""The run directory: its files, and whether a new run may use it.

runs/NAME/config.json      everything resolved, with versions
          base/            stage 1 result (diffusers layout)
          kernels.json     the ways of operations that were fastest when the run began, on a GPU
          gap.json         what the base loses by timestep, where the run needs to know
          quality.json     PSNR of reconstructions, when the last picture was drawn
          model/           the finished `DiTiPipeline`
          checkpoints/     exact resume; the last one stays, for a run that is extended
          extending.json   only while a finished run is extended
          metrics.jsonl    one line per log interval
          tensorboard/
          samples/*.png
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from diticli._version import __version__
from diticli.config import RunConfig
from diticli.errors import ConfigError, DataError
from diticli.files import LOCK_NAME, is_leftover, publish_folder, refuse_links, remove_leftovers, write_json
from diticli.reading import quoted, read_regular, shortened
from diticli.settings import to_dict
from diticli.training.checkpoint import list_checkpoints
from diticli.training.failures import write_error

_FILES = ("config.json", "extending.json", "gap.json", "kernels.json", "metrics.jsonl", "quality.json", "skipped.txt")
_PUBLISHED = ("base", "model")
_FILLED = ("checkpoints", "samples", "tensorboard", "probe")
"""Folders whose files are written one by one; the last by `diti demo`."""
_BEGINNING = {LOCK_NAME, ".config.json.partial"}
"""What a run of this or an earlier version may leave that was killed before its first file; see `is_leftover`."""
# Settings that change how a run proceeds but not what it computes. (What follows of minutes and fit_batch is compared.)
_FREE = {
    "log_every",
    "checkpoint_every",
    "sample_every",
    "data.workers",
    "data.memory_limit_mb",
    "minutes",
    "fit_batch",
}

# Settings that runs of earlier versions lack, and what those runs did.
_LATER: dict[str, tuple[Any, ...]] = {"data.channels": (3,), "data.value_range": (None, [0.0, 65535.0])}

_DIGESTS = ("sha256", "content")
_EXTENSIBLE = "features.images"
"""The setting that may grow when a run is finished."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    root: Path

    @property
    def base(self) -> Path:
        """Stage 1 result."""
        return self.root / "base"

    @property
    def gap(self) -> Path:
        """What the base loses by timestep."""
        return self.root / "gap.json"

    @property
    def kernels(self) -> Path:
        """How operations run, by stage."""
        return self.root / "kernels.json"

    @property
    def quality(self) -> Path:
        """How well the features give images back, when the last picture was drawn."""
        return self.root / "quality.json"

    @property
    def model(self) -> Path:
        """The finished pipeline."""
        return self.root / "model"

    @property
    def checkpoints(self) -> Path:
        """Exact resume."""
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        """Pictures."""
        return self.root / "samples"

    @property
    def finished(self) -> bool:
        """Whether the run has its model, and is not being extended."""
        return self._has_model and not self._extending.exists()

    @property
    def _has_model(self) -> bool:
        return (self.model / "model_index.json").is_file()

    @property
    def _extending(self) -> Path:
        return self.root / "extending.json"

    @property
    def trained(self) -> tuple[Path, ...]:
        """Folders of what was trained."""
        return self.base, self.model, self.checkpoints

    @property
    def begun(self) -> bool:
        """Whether anything was trained: without a checkpoint or a result, new settings may replace the old ones."""
        return self.base.exists() or self.model.exists() or any(self.checkpoints.glob("step-*"))

    def compiled_as_begun(self, asked: RunConfig, resolved: RunConfig) -> RunConfig:
        """The resolved settings; where compiling was left to us, as it was decided when the run began."""
        if asked.compile != "auto" or not (self.root / "config.json").is_file():
            return resolved
        saved = _read_config(self.root / "config.json")["config"].get("compile")
        return replace(resolved, compile=saved) if isinstance(saved, bool) else resolved

    def open(self, config: RunConfig, fingerprint: dict[str, Any]) -> bool:
        """Create the directory or take it up again; returns whether there was a run of these settings.

        Raises:
            ConfigError: when it holds a run of other settings, finished or not, or other files.
            DataError: when it cannot be written, or the images changed since the run began.
        """
        self.refuse_other_files()
        path = self.root / "config.json"
        resumed, longer = path.is_file(), False
        if resumed:
            saved = _read_config(path)  # one that is damaged, or no run's at all, is never written over
            try:
                longer = self._compare(saved, config, fingerprint)
            except (ConfigError, DataError):
                if self.begun:
                    raise
                self._clear()
                resumed = False
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.root)
            remove_leftovers(self.checkpoints)
            if not resumed:
                made_with = versions() | gpu_name(config.device)
                write_json(path, {"config": to_dict(config), "data": fingerprint, "versions": made_with})
            if longer:  # the mark first: with it alone, the earlier command makes the run what it was
                write_json(self._extending, {_EXTENSIBLE: config.features.images})
                write_json(path, _extended(saved, config))
            self.samples.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(
                f"Cannot write in {self.root}: {error.strerror}.", remedy="Choose another --out."
            ) from error
        return resumed

    def refuse_other_files(self) -> None:
        """Make sure that the directory is a run, or that nothing is there.

        Raises:
            ConfigError: when it holds other files.
            DataError: when it is a file, or cannot be read.
        """
        try:
            names = {path.name for path in self.root.iterdir()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"Cannot use {self.root}: {error.strerror}.", remedy="Choose another --out.") from error
        if not all(name in _BEGINNING or is_leftover(name) for name in names) and "config.json" not in names:
            raise ConfigError(f"{self.root} exists and is not a run.", remedy="Choose another --out.")

    def refuse_links(self) -> None:
        """Make sure that whatever the run writes stays in its directory, which may be a link itself.

        Raises:
            DataError: naming the first link.
        """
        refuse_links(self.root, (*_FILES, *_PUBLISHED), below=_FILLED)

    def _clear(self) -> None:
        """Remove what a run left that made no step."""
        for name in ("samples", "tensorboard"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for path in (
            self.gap,
            self.kernels,
            self.quality,
            self.root / "metrics.jsonl",
            *self.root.glob("skipped*.txt"),
        ):
            path.unlink(missing_ok=True)

    def _compare(self, saved: dict[str, Any], config: RunConfig, fingerprint: dict[str, Any]) -> bool:
        """Make sure that the settings and images are those of the run; returns whether only its end lies further on.

        Raises:
            ConfigError, DataError: as `open`.
        """
        old, new = _settings(saved["config"]), _settings(to_dict(config))
        data = json.loads(json.dumps(fingerprint))
        same_images = not _differences(saved["data"], data)
        if same_images and data.get("kind") != "faces":  # the same images may lie elsewhere
            old["data.source"] = new.get("data.source")
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        longer = changed == [_EXTENSIBLE] and self._has_model and old[_EXTENSIBLE] < new[_EXTENSIBLE]
        if longer and not any(self.checkpoints.glob("step-*")):
            raise ConfigError(
                f"{self.root} is finished and cannot go on to {new[_EXTENSIBLE]:,} images: its last checkpoint is "
                "gone; runs of earlier versions kept none.",
                remedy=f"Choose another --out for a new run; --base BASE saves its stage 1, with {self.base} for BASE.",
            )
        if changed and not longer:
            listed = _listed(changed, old, new)
            finished = "holds a finished run that" if self.finished else ""
            raise ConfigError(
                f"{self.root} {finished} was started with other settings: {listed}.".replace("  ", " "),
                remedy="Choose another --out. A finished run goes on only with more --images, all else the same."
                if self.finished
                else "Give the same settings to go on, or another --out for a new run.",
            )
        if facts := _differences(saved["data"], data):
            what = "base" if saved["data"].get("base") != fingerprint.get("base") else "images"
            raise DataError(
                f"The {what} changed since {self.root} was started: {facts}.",
                remedy=f"Restore the {what} to go on, or choose another --out.",
            )
        return longer

    def publish(self, target: Path, save: Callable[[Path], None]) -> None:
        """Let `save` fill a folder beside `target`, then rename it into place.

        Raises:
            CheckpointError: when it cannot be written; the checkpoints stay.
        """
        try:
            publish_folder(target, save, replace=True)
        except (OSError, SafetensorError) as error:
            raise write_error(target, error) from error

    def discard_checkpoints(self) -> None:
        """Remove the checkpoints of a stage whose result is published; of the last stage one stays, to be extended."""
        if not self._has_model:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            return
        self._extending.unlink(missing_ok=True)
        for path in list_checkpoints(self.checkpoints)[:-1]:
            shutil.rmtree(path, ignore_errors=True)


def identity(config: RunConfig, fingerprint: dict[str, Any], stage: str, images: int) -> str:
    """Hash of all that a checkpoint of `stage` depends on; `images` of the fingerprint's were used."""
    settings = _settings(to_dict(config))
    text = json.dumps([stage, settings, fingerprint, images], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"diticli": __version__, "python": platform.python_version()}
    for package in ("torch", "diffusers", "accelerate", "triton", "xformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def gpu_name(device: str) -> dict[str, str]:
    """Under "gpu" the model of the GPU, on which random numbers depend; nothing elsewhere."""
    import torch

    return (
        {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") and torch.cuda.is_available() else {}
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved: dict[str, Any] = json.loads(read_regular(path))
        _flat(saved["config"])
        saved["data"].items()
        first = saved.get("began_with", {}).get(_EXTENSIBLE, 1)
        if not isinstance(saved["config"]["data"]["source"], str) or type(first) is not int or first < 1:
            raise ValueError("it names no images, or a number of them that cannot be")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({shortened(repr(error))}).", remedy="Choose another --out.") from error
    return saved


def identity_of_run(run: RunDirectory, config: RunConfig, stage: str, images: int) -> str:
    """`identity` with the images as they were where and when the run began: they may have been copied since."""
    saved = _read_config(run.root / "config.json")
    first = saved.get("began_with", {}).get(_EXTENSIBLE, config.features.images)
    began = replace(
        config,
        data=replace(config.data, source=saved["config"]["data"]["source"]),
        features=replace(config.features, images=first),
    )
    return identity(began, saved["data"], stage, images)


def _extended(saved: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """config.json with the new end; checkpoints stay those of the run as it began."""
    earlier = saved["config"]["features"]["images"]
    return {
        **saved,
        "config": {
            **saved["config"],
            "features": {**saved["config"]["features"], "images": config.features.images},
        },
        "began_with": saved.get("began_with", {_EXTENSIBLE: earlier}),
    }


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """What a result depends on, flat; which of several GPUs computes it is no part of that."""
    settings = {key: value for key, value in _flat(config).items() if key not in _FREE}
    settings = {key: value for key, value in settings.items() if value not in _LATER.get(key, ())}
    return settings | {"device": str(settings.get("device", "")).split(":")[0]}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The facts of two fingerprints that differ; digests say that files differ, not how.

    Where both know the content, places and dates do not count. Runs of earlier versions knew no content.
    """
    ignored = {"sha256", "roots"} if "content" in old and "content" in new else {"content"}
    changed = [key for key in sorted((old.keys() | new.keys()) - ignored) if old.get(key) != new.get(key)]
    facts = _listed([key for key in changed if key not in _DIGESTS], old, new)
    what = "names, sizes or content" if "content" in changed else "names, sizes or dates"
    return facts or (f"{what} of files differ" if changed else "")


def _listed(keys: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first of these entries, as they were and as they are."""
    return "; ".join(f"{shortened(k)} was {quoted(old.get(k))}, now {quoted(new.get(k))}" for k in keys[:4])


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
