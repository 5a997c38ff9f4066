"""What was measured, in `~/.cache/diti/tune/` (`$XDG_CACHE_HOME`): one JSON file for each site and environment.

The environment is all that may change a result: the GPU and its driver, the libraries, our own kernels. A file's name
is a digest of site and environment, and the file repeats both, so that another environment finds nothing, and a file
that was damaged or put there by others is seen.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

import diti_kernels
import torch
from diti_kernels.sites import Site

from diticli.files import replacing
from diticli.models import attention
from diticli.progress import Reporter
from diticli.reading import parse_json, read_regular

FORMAT = 1
LARGEST_FILE = 1 << 16
Outcome = Literal["right", "wrong", "failed"]
REFERENCE = "reference"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found at one site."""

    site: Site
    way: str
    """The way that was tried beside the reference: "triton" or "xformers"."""
    choice: str
    """The way to take: `way` or "reference"."""
    outcome: Outcome
    """Of `way`: its value and all gradients agree with the reference; they do not; or it could not run."""
    detail: str
    """The largest error, and what is allowed; or why it could not run."""
    reference_ms: float | None = None
    way_ms: float | None = None
    """Median time of a call with its gradients, None unless it was right."""
    cost_s: float | None = None
    """Time that the way takes once, such as that of compiling."""

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the reference."""
        return self.reference_ms / self.way_ms if self.reference_ms and self.way_ms else None

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Verdict:
        """From `to_dict`.

        Raises:
            ValueError, TypeError: when it is something else.
        """
        verdict = cls(**{**fields, "site": Site.from_dict(fields["site"])})
        texts = (verdict.way, verdict.choice, verdict.detail)
        if any(type(text) is not str for text in texts) or verdict.outcome not in get_args(Outcome):
            raise ValueError("its fields are of other types")
        if verdict.choice != REFERENCE and (verdict.choice != verdict.way or verdict.outcome != "right"):
            raise ValueError("its choice does not follow from what was found")
        for time in (verdict.reference_ms, verdict.way_ms, verdict.cost_s):
            if time is not None and not (type(time) in (int, float) and math.isfinite(time) and time > 0):
                raise ValueError("its times are no times")
        return verdict

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {**asdict(self), "site": self.site._asdict()}


def tune_folder() -> Path:
    """Where verdicts are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diti" / "tune"


@functools.cache
def environment(device: torch.device) -> dict[str, str]:
    """All that a verdict depends on besides its site."""
    found = {"device": device.type, "torch": torch.__version__, "sources": sources_digest()}
    for package in ("triton", "xformers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}", "driver": _driver()}
    return found


def sources_digest() -> str:
    """Of the code of all operations."""
    root = Path(diti_kernels.__path__[0])
    digest = hashlib.sha256()
    for path in (*sorted(root.rglob("*.py")), Path(attention.__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _driver() -> str:
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        return f"CUDA {torch.version.cuda}"


class TuningCache:
    """The verdicts for one environment.

    Args:
        facts: `environment(device)`.
        reporter: told, once a file, of files that are damaged, and of a folder that cannot be written.
    """

    def __init__(self, facts: Mapping[str, str], reporter: Reporter) -> None:
        self.facts, self.reporter, self.folder = dict(facts), reporter, tune_folder()

    def path(self, site: Site) -> Path:
        """The file of a site."""
        key = json.dumps([FORMAT, self.facts, site._asdict()], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self, site: Site) -> Verdict | None:
        """The verdict on a site, None where there is none that can be used."""
        path = self.path(site)
        found = self._parse(path)
        if found is not None and found[1].site == site and found[0] == self.facts:
            return found[1]
        if found is not None:
            self._ignore(path, "it is about something else than its name says")
        return None

    def write(self, verdict: Verdict) -> None:
        """Keep a verdict; where that is impossible, it is said."""
        path = self.path(verdict.site)
        text = json.dumps({"format": FORMAT, "environment": self.facts, **verdict.to_dict()}, indent=1, allow_nan=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, durable=False) as file:
                file.write(text.encode() + b"\n")
        except OSError as error:
            self.reporter.warn(f"What was measured cannot be kept in {path.parent}: {error.strerror or error}.")

    def all(self) -> tuple[list[Verdict], int]:
        """The verdicts of this environment, by name of their site, and the number of those of others."""
        found, others = [], 0
        for path in self._files():
            parsed = self._parse(path)
            if parsed is not None and parsed[0] == self.facts and self.path(parsed[1].site) == path:
                found.append(parsed[1])
            elif parsed is not None:
                others += 1
        return sorted(found, key=lambda verdict: verdict.site.name), others

    def _files(self) -> Iterator[Path]:
        try:
            yield from sorted(self.folder.glob("*.json"))
        except OSError:
            return

    def _parse(self, path: Path) -> tuple[dict[str, str], Verdict] | None:
        try:
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError("it is too large")
            content = parse_json(read_regular(path))
            if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
                raise ValueError("it is of another version or program")
            facts = content.pop("environment")
            return dict(facts), Verdict.from_dict(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self._ignore(path, (str(error).splitlines() or [type(error).__name__])[0][:120])
            return None

    def _ignore(self, path: Path, why: str) -> None:
        self.reporter.warn(f"Ignored {path}, kept measurements that cannot be used ({why}). It may be deleted.")
