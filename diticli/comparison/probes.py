"""Cache of every entry's probe, so that a comparison goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from diticli.comparison.encoding import FeatureStore
from diticli.comparison.entries import Entry
from diticli.comparison.protocol import Protocol
from diticli.comparison.settings import CompareSettings
from diticli.comparison.split_features import features_under
from diticli.evaluation.kept import content
from diticli.evaluation.scores import to_json
from diticli.files import write_atomically
from diticli.identity import cache_key
from diticli.probing.probe import probe_features
from diticli.probing.report import ProbeReport
from diticli.progress import Reporter
from diticli.reading import read_regular
from diticli.sealed import keep_result, kept_result
from diticli.types import FloatArray

METRIC_DIMS = 1024
"""Features of more dims get no disentanglement metrics: these cost time by dims, attributes and images."""


@dataclass(frozen=True, kw_only=True)
class Probed:
    """An entry's probe.

    Attributes:
        report: `ProbeReport.to_dict()`.
        outputs: name of an attribute -> [n, width] what its model says of the test rows: a logit, a number in the
            label's unit, or a logit per class.
        classes: name of a category -> its classes, in the order of its outputs.
        note: how the features were chosen, where they were.
    """

    report: dict[str, Any]
    outputs: Mapping[str, FloatArray]
    classes: Mapping[str, tuple[str, ...]]
    note: str = ""


class ProbeStore:
    """Probes in one folder, each under a hash of features and protocol.

    Args:
        folder: made when something is written.
        features: of the entries.
        protocol: the same for all.
        settings: seed of probes and bootstraps, and whether to measure more than scores.
    """

    def __init__(self, folder: Path, features: FeatureStore, protocol: Protocol, settings: CompareSettings) -> None:
        self.folder, self.features, self.protocol = folder, features, protocol
        self.seed, self.metrics, self.benchmark = settings.seed, settings.metrics, settings.benchmark > 0

    def key(self, entry: Entry) -> str:
        """Hash (16 hex digits) of everything that the probe depends on."""
        what = "pca" if entry.spec.kind == "pca" else "features"
        facts = [what, entry.dims, self.features.key(entry), self.protocol.digest, self.seed]
        return cache_key("probe", *facts, self._extras(entry))

    def has(self, entry: Entry) -> bool:
        """Whether it is done."""
        return self._path(entry, ".json").is_file()

    def make(self, entry: Entry, reporter: Reporter) -> None:
        """Probe an entry and keep the result, unless that is done.

        Raises:
            DiTiError: as `probe_features` and `pca_features`; DataError when it cannot be written.
        """
        if self.has(entry):
            return
        protocol = self.protocol
        own = features_under(protocol, self.features, entry, seed=self.seed, reporter=reporter)
        report = probe_features(
            own.values,
            protocol.columns,
            protocol.groups,
            rows=own.rows,
            split=protocol.split,
            seed=self.seed,
            meta=own.meta,
            **self._extras(entry),
            reporter=reporter,
        )
        outputs = report.probe.predict(np.asarray(own.values[own.rows[protocol.split.test]], dtype=np.float32))
        self._write(entry, report, outputs, own.note)

    def read(self, entry: Entry) -> Probed:
        """What `make` kept; a damaged file counts as none, and is made again.

        Raises:
            DiTiError: as `make`.
        """
        try:
            return self._read(entry)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            self._path(entry, ".json").unlink(missing_ok=True)
            self.make(entry, self.features.reporter)
            return self._read(entry)

    def _extras(self, entry: Entry) -> dict[str, Any]:
        """What `probe_features` measures beside scores."""
        chunked = entry.spec.kind in ("model", "features") and entry.layout is not None
        atlas = chunked and entry.layout is not None and entry.layout.chunks > 1
        metrics = self.metrics and not self.benchmark and entry.dims <= METRIC_DIMS
        return {"statistics": self.metrics, "metrics": metrics, "atlas": self.metrics and atlas}

    def _write(self, entry: Entry, report: ProbeReport, outputs: FloatArray, note: str) -> None:
        probe, outputs = report.probe, np.ascontiguousarray(outputs)
        data = {
            "entry": entry.name,
            "note": note,
            "probe": to_json(report.to_dict()),
            "outputs": {"names": probe.names, "classes": probe.classes, "content": content(outputs)},
        }
        write_atomically(self._path(entry, ".safetensors"), "scores", save({"outputs": outputs}))
        keep_result(self._path(entry, ".json"), "scores", data, default=to_json)

    def _read(self, entry: Entry) -> Probed:
        data = kept_result(self._path(entry, ".json"))
        outputs = load(read_regular(self._path(entry, ".safetensors")))["outputs"]
        names, classes = (list(map(str, data["outputs"][key])) for key in ("names", "classes"))
        if content(outputs) != data["outputs"]["content"]:
            raise ValueError("the outputs are not those of the report")
        columns = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        return Probed(
            report=dict(data["probe"]),
            outputs={name: outputs[:, own] for name, own in columns.items()},
            classes={name: tuple(classes[i] for i in own) for name, own in columns.items()},
            note=str(data.get("note", "")),
        )

    def _path(self, entry: Entry, suffix: str) -> Path:
        return self.folder / (self.key(entry) + suffix)
