"""Commands that repeat a comparison, whole or entry by entry."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from diticli._version import __version__
from diticli.comparison.run import Comparison
from diticli.data.images import FaceImages, open_images
from diticli.editing.inputs import image_stems
from diticli.probing.files import REPORT_NAME


def commands(result: Comparison, own: Sequence[str]) -> str:
    """A shell script: the comparison itself, then what makes the same probes one at a time.

    Args:
        result: what was found.
        own: the command line of the comparison.
    """
    settings = result.settings
    lines = [f"# diti {__version__}, in the folder where it was run", shlex.join(own)]
    models = [s for s in result.entries if s.spec.kind in ("model", "features")]
    if not settings.data and settings.labels is None:
        return "\n".join(lines) + "\n"
    lines += ["", "# One entry at a time (the same rows, split and probe, unless an entry lacks images)"]
    labels = settings.labels or "compared-faces/labels.csv"
    if settings.labels is None:
        lines.append(_faces(settings.data[0], max(s.resolution for s in result.entries) or 32))
    options = ["--seed", str(settings.seed)]
    options += ["--groups", str(settings.groups)] if settings.groups else []
    options += ["--split", str(settings.split)] if settings.split else []
    for entry, stem in zip(models, image_stems([s.name for s in models]), strict=True):
        source, features = entry.spec.source, f"{stem}.npy"
        if entry.spec.kind == "model":
            crop = ["--crop", entry.crop] if settings.labels is not None else []
            encode = ["diti", "encode", *settings.data, "-o", features, "--model", source, *crop]
            window = [repr(end) for end in settings.value_range or ()]
            reading = ["--value-range", ",".join(window)] if window else []
            lines.append(shlex.join([*encode, *reading, "--precision", settings.precision]))
        else:
            features = source
        lines.append(shlex.join(["diti", "probe", features, "--labels", labels, *options, "-o", f"probe-{stem}"]))
    lines.append(f"# each probe-NAME/{REPORT_NAME} holds what the table says")
    return "\n".join(lines) + "\n"


def _faces(source: str, resolution: int) -> str:
    faces = open_images(source, resolution)
    assert isinstance(faces, FaceImages)
    _, count, seed = faces.name.split(":")
    return shlex.join(["diti", "faces", "compared-faces", "-n", count, "--seed", seed, "--size", str(resolution)])
