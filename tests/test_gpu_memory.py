"""What a run keeps on a GPU, seen without one: of a stage that is over nothing, of the base its copy alone."""

from __future__ import annotations

import copy
import gc
import tarfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_training import tiny

from diticli.data.images import open_images
from diticli.distributed import Rank
from diticli.models.unet import UNet
from diticli.training import plan, run
from diticli.training.batches import _collate, _Decoded, _start_method
from diticli.training.loop import StageTrainer
from diticli.training.run import train


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Weak references to the trained networks and the optimizer of each stage."""
    found: dict[str, list[Any]] = {}
    real = StageTrainer.__init__

    def init(self: StageTrainer, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        parts = [*self.stage.objective.trained_modules().values(), self.fused, self.parameters[0]]
        found[self.stage.name] = [weakref.ref(part) for part in parts]

    monkeypatch.setattr(StageTrainer, "__init__", init)
    return found


@pytest.mark.parametrize("compiled", [False, True])
def test_nothing_of_stage_1_is_left_in_stage_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: dict[str, list[Any]], compiled: bool
) -> None:
    """Accelerate keeps what it prepared, and the compiler its graphs."""
    left, resets = [], []
    real = run.build_objective

    def build(*args: Any) -> Any:
        left.extend(reference() for reference in made["base"])
        return real(*args)

    monkeypatch.setattr(run, "build_objective", build)
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(None))
    train(tiny("base.images=8", "features.images=8", f"compile={str(compiled).lower()}"), tmp_path / "run")
    assert left == [None] * 3
    assert len(resets) == 2 * compiled


def test_a_dry_run_counts_each_stage_alone(monkeypatch: pytest.MonkeyPatch, made: dict[str, list[Any]]) -> None:
    left, real = [], plan.build_objective

    def build(*args: Any) -> Any:
        gc.collect()
        left.append(made["base"][1]())
        return real(*args)

    monkeypatch.setattr(plan, "build_objective", build)
    plan.make_plan(tiny())
    assert left == [None]


def test_the_base_is_lent_to_a_picture_and_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training computes a copy of it."""
    moves: list[str] = []
    real_to, real_pictures = UNet.to, run.samples.reconstructions
    monkeypatch.setattr(UNet, "to", lambda self, *args: moves.append(str(args[0])) or real_to(self, *args))

    def pictures(*args: Any, **kwargs: Any) -> Any:
        moves.append("picture")
        return real_pictures(*args, **kwargs)

    monkeypatch.setattr(run.samples, "reconstructions", pictures)
    train(tiny("base.images=8", "features.images=8", "sample_every=1"), tmp_path / "run")
    after = moves[moves.index("picture") + 1 :]
    assert after[0] == "cpu"


@pytest.mark.parametrize(
    ("count", "device", "method"), [(1, "cuda", None), (2, "cuda", "forkserver"), (2, "cpu", None)]
)
def test_decoders_are_no_copies_of_a_process_with_nccl(count: int, device: str, method: str | None) -> None:
    assert _start_method(Rank(index=0, count=count), torch.device(device), "images") == method
    assert _start_method(Rank(index=0, count=count), torch.device(device), Path().iterdir()) is None


def test_images_can_be_handed_to_such_a_process(tmp_path: Path) -> None:
    """By pickling them, in tars and folders too."""
    Image.new("RGB", (20, 20), (9, 99, 200)).save(tmp_path / "a.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "a.png", "a.png")
    for name in ("faces:8", str(tmp_path / "a.png"), str(tmp_path / "a.tar")):
        source = open_images(name, 16)
        wanted = source.load(0)
        dataset = copy.deepcopy(_Decoded(source))  # asks what pickling asks
        assert _collate([dataset[0]])[0].permute(0, 2, 3, 1).numpy().tolist() == [wanted.tolist()]
        assert _start_method(Rank(index=0, count=2), torch.device("cuda"), source) == "forkserver"
