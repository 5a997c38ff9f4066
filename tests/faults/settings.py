"""The smallest run that has everything, and what it leaves, to compare two runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from .processes import run

IMAGES = 37
"""Divisible by no batch and no number of processes."""
SETTINGS = (
    "data.resolution=16",
    "unet.channels=8,16",
    "unet.norm_groups=4",
    "unet.attention_sizes=[8]",
    "encoder.widths=32,32",
    "encoder.attention_size=8",
    "chunks.count=4",
    "chunks.partition=uniform",
    "chunks.latent_dim=16",
    "base.images=40",
    "base.batch_size=8",
    "base.warmup_images=16",
    "features.images=64",
    "features.batch_size=8",
    "log_every=1",
    "checkpoint_every=1",
    "sample_every=0",
    "compile=false",
)


def train_command(out: Path, *more: str, data: object = f"faces:{IMAGES}") -> list[str]:
    """Arguments of `diti train` for a run of seconds; `more` are assignments that win."""
    given = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["train", "--data", str(data), "--out", str(out), "--device", "cpu", "--precision", "fp32", *given]


def encode_command(source: object, out: Path, model: Path) -> list[str]:
    """Arguments of `diti encode`, exact in any batch."""
    options = ["--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--workers", "1"]
    return ["encode", str(source), "-o", str(out), "--model", str(model), *options]


def losses(run: Path) -> dict[tuple[str, int], float]:
    """Loss by stage and step; a step told twice is an error."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(line["stage"], line["step"]): line["loss"] for line in lines}
    assert len(found) == len(lines), "a step is told twice"
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights of a finished run."""
    files = sorted((run / "model").glob("*/*.safetensors"))
    return {f"{file.parent.name}.{name}": value for file in files for name, value in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def checkpoints(run: Path) -> dict[str, str]:
    """Every complete checkpoint's files, by relative name, with their checksums."""
    folders = [path.parent for path in (run / "checkpoints").glob("step-*/state.json")]
    files = [file for folder in folders for file in folder.iterdir()]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def draw_photos(folder: Path, count: int = IMAGES) -> Path:
    """Different small pictures."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return folder


@dataclass
class Bench:
    """What all faults of a session are measured against, made once.

    Args:
        root: an empty folder.
    """

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def folder(self) -> Path:
        """A new folder for one try."""
        return Path(mkdtemp(dir=self.root))

    @cached_property
    def run(self) -> Path:
        """A run that nothing disturbed."""
        out = self.root / "undisturbed"
        ended = run(train_command(out), self.root / "undisturbed.log")
        assert ended.status == 0, ended.text
        self.seconds["train"] = ended.seconds
        return out

    @cached_property
    def faces(self) -> str:
        """Enough images that encoding takes a while."""
        return "faces:400"

    @cached_property
    def features(self) -> Path:
        """Features that nothing disturbed."""
        out = self.root / "undisturbed.npy"
        ended = run(encode_command(self.faces, out, self.run), self.root / "encode.log")
        assert ended.status == 0, ended.text
        self.seconds["encode"] = ended.seconds
        return out
