"""Memory that ran out: whatever failed, one error that names a batch size with which the same command works."""

from __future__ import annotations

import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawing_pipeline import DrawingPipeline, oracle
from PIL import Image
from test_training import tiny

from diticli.data.images import open_images
from diticli.editing.pair import edit_pair
from diticli.editing.results import Edit
from diticli.editing.settings import EditSettings
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode import encode_images
from diticli.errors import DeviceError
from diticli.evaluation.evaluate import evaluate_model
from diticli.evaluation.images import evaluation_faces
from diticli.models import largest_batch as module
from diticli.models.largest_batch import _Counter, batch_fits, free_bytes, largest_batch
from diticli.progress import SilentReporter
from diticli.training.loop import StageTrainer
from diticli.training.plan import make_plan
from diticli.training.run import train

CPU, MIB = torch.device("cpu"), 2**20
MEMORY = 12 * MIB
ERRORS: dict[str, Callable[[], Exception]] = {
    "PyTorch on the CPU": lambda: RuntimeError(
        "[enforce fail at a.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes."
    ),
    "CUDA": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 bytes.\nand more"),
    "NumPy": lambda: MemoryError("Unable to allocate 9 bytes for an array"),
}


class Memory(_Counter):
    """So many bytes of memory; an operator that needs more fails as `error` says."""

    def __init__(self, size: int, error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(CPU)
        self.size, self.error, self.failures = size, error, 0
        monkeypatch.setattr(module, "free_bytes", lambda device: self.size - self.now)

    def _change(self, by: int) -> None:
        if by > 0 and self.now + by > self.size:
            self.failures += 1
            raise self.error()
        super()._change(by)


def named_size(error: DeviceError) -> int:
    found = re.fullmatch(r"Use --batch-size (\d+), which fits by measurement\.", error.remedy or "")
    assert found is not None, error.remedy
    return int(found[1])


def work(count: int) -> None:
    """3 MiB, and 1 MiB for each image."""
    fixed, images = (torch.zeros(n * MIB, dtype=torch.uint8) for n in (3, count))
    del fixed, images


@pytest.mark.parametrize(
    ("free", "below", "size"),
    [(1000, 800, 690), (1000, 100, 99), (13, 400, 6), (6, 400, 2), (4, 400, 1), (3, 400, 0), (99, 2, 1), (99, 1, 0)],
)
def test_the_largest_batch_follows_from_two_small_ones(
    monkeypatch: pytest.MonkeyPatch, free: int, below: int, size: int
) -> None:
    """3 + n MiB within 0.7 of what is free, to two digits; one or two images may take all of it."""
    with Memory(free * MIB, ERRORS["CUDA"], monkeypatch):
        assert largest_batch(work, below, CPU) == size


def test_a_batch_in_which_images_hide_is_not_taken_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 20 images the gradients of the weights, 100 MiB, are more than the maps of 5 MiB an image."""
    tried: list[int] = []

    def step(count: int) -> None:
        tried.append(count)
        maps = torch.zeros(5 * count * MIB, dtype=torch.uint8)
        del maps
        gradients = torch.zeros(100 * MIB, dtype=torch.uint8)
        del gradients

    with Memory(1000 * MIB, ERRORS["CUDA"], monkeypatch) as memory:
        assert largest_batch(step, 800, CPU) == 140  # 0.7 of the memory
        assert max(tried) < 2 * 140
        memory.size, memory.failures = 150 * MIB, 0
        assert largest_batch(step, 800, CPU) == 16


def test_processes_share_a_batch_and_the_memory_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Memory(1000 * MIB, ERRORS["NumPy"], monkeypatch),
        pytest.raises(DeviceError, match="A batch of 800 images") as caught,
        batch_fits(800, work, device=CPU, processes=2),
    ):
        raise MemoryError
    assert named_size(caught.value) == 2 * 340


def test_a_trial_that_fails_otherwise_leaves_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(count: int) -> None:
        raise ValueError("nothing to do with memory")

    with pytest.raises(DeviceError, match="does not fit in memory") as caught, batch_fits(8, broken, device=CPU):
        raise MemoryError
    assert caught.value.remedy == "Try a smaller --batch-size."
    with pytest.raises(RuntimeError, match="another error"), batch_fits(8, broken, device=CPU):
        raise RuntimeError("another error")


def test_a_gpu_is_asked_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments and workspaces are in no count: the size that is named was seen to run."""
    monkeypatch.setattr(module, "free_bytes", lambda device: 2**40)
    tried = []

    def trial(count: int) -> None:
        tried.append(count)
        if count > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    found = largest_batch(trial, 128, torch.device("cuda:1"))
    assert tried[:3] == [2, 2, 4]
    assert 30 < found <= 40
    assert tried[-1] == found


def test_free_memory_of_a_gpu_counts_what_is_kept_for_reuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert free_bytes(torch.device("cuda:1")) == 1300


def test_free_memory_of_the_machine_is_what_ulimit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    monkeypatch.setattr(resource, "getrlimit", lambda what: (used + 300 * MIB, resource.RLIM_INFINITY))
    assert 200 * MIB < free_bytes(CPU) <= 300 * MIB


SHORT = ("base.images=40", "features.images=2", "features.batch_size=2", "checkpoint_every=99")


def test_training_names_a_batch_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Memory(MEMORY, ERRORS["PyTorch on the CPU"], monkeypatch) as memory:
        with pytest.raises(
            DeviceError, match=r"A batch of 40 images does not fit in memory \(DefaultCPU.* 9 bytes"
        ) as caught:
            train(tiny(*SHORT, "base.batch_size=40"), tmp_path / "run")
        size, memory.failures = named_size(caught.value), 0
        assert 4 <= size < 40
        train(tiny(*SHORT, f"base.batch_size={size}"), tmp_path / "run")
        assert memory.failures == 0


def test_a_batch_that_cannot_be_read_is_answered_likewise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise MemoryError("Unable to allocate 9 bytes for an array")

    monkeypatch.setattr("diticli.training.batches.DataOrder.batch", fail)
    with pytest.raises(DeviceError, match=r"A batch of 12 images does not fit in memory \(Unable") as caught:
        train(tiny("base.batch_size=12", "base.images=12"), tmp_path / "run")
    assert named_size(caught.value) == 11


@pytest.mark.parametrize("error", ERRORS)
def test_a_dry_run_names_a_batch_that_fits(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    with Memory(MEMORY, ERRORS[error], monkeypatch) as memory:
        with pytest.raises(DeviceError, match="A batch of 40 images does not fit in memory") as caught:
            make_plan(tiny(*SHORT, "base.batch_size=40"))
        size, memory.failures = named_size(caught.value), 0
        make_plan(tiny(*SHORT, f"base.batch_size={size}"))
        assert memory.failures == 0


@pytest.mark.parametrize(
    "loss", [("ssl.method=simsiam",), ("modularity.bottleneck=0.03", "chunks.visible=all", "gradient=detached")]
)
def test_every_loss_is_measured(monkeypatch: pytest.MonkeyPatch, loss: tuple[str, ...]) -> None:
    real = StageTrainer.train_step

    def fail(self: StageTrainer, inputs: Any) -> None:
        if self.stage.name == "features":
            raise ERRORS["CUDA"]()
        real(self, inputs)

    monkeypatch.setattr(StageTrainer, "train_step", fail)
    with pytest.raises(DeviceError, match="A batch of 8 images does not fit in memory") as caught:
        make_plan(tiny(*loss))
    assert named_size(caught.value) == 7


def test_where_no_batch_fits_another_remedy_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Memory(MIB // 2, ERRORS["CUDA"], monkeypatch),
        pytest.raises(DeviceError, match=r"Not even one image fits in memory \(CUDA out of memory") as caught,
    ):
        make_plan(tiny())
    assert "--resolution" in str(caught.value.remedy)
    assert "batch" not in str(caught.value.remedy)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(40):
        Image.new("RGB", (16, 16), (index, 0, 0)).save(folder / f"{index:02d}.png")
    return folder


@pytest.mark.parametrize("error", ERRORS)
def test_encoding_names_a_batch_that_fits(
    make_pipeline: Any, photos: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    encode, source = BatchEncoder(make_pipeline().encoder, "fp32"), open_images([str(photos)], 16)
    encode_images(encode, source, photos / "whole.npy", batch_size=40)
    with Memory(MIB // 4, ERRORS[error], monkeypatch) as memory:
        with pytest.raises(DeviceError, match="A batch of 40 images does not fit in memory") as caught:
            encode_images(encode, source, photos / "f.npy", batch_size=40)
        size, memory.failures = named_size(caught.value), 0
        encode_images(encode, source, photos / "f.npy", batch_size=size)
        assert memory.failures == 0
        memory.size = 0
        with pytest.raises(DeviceError, match="Not even one image fits in memory") as caught:
            encode_images(encode, source, photos / "g.npy", batch_size=40)
        assert "--device cpu" in str(caught.value.remedy)
    np.testing.assert_allclose(np.load(photos / "f.npy"), np.load(photos / "whole.npy"), atol=1e-5)


@pytest.mark.parametrize("error", ERRORS)
def test_edits_take_the_batches_that_fit(make_pipeline: Any, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    pipeline, images = make_pipeline(), [Image.new("RGB", (16, 16), (shade, 0, 99)) for shade in (10, 200)]
    settings = EditSettings(invert_steps=2, decode_steps=2, batch_size=8)

    def edited() -> dict[Edit, np.ndarray]:
        return dict(edit_pair(pipeline, *images, [(0,), (1, 2)], [0.5, 1.0], settings=settings).edits)

    whole = edited()
    with Memory(MIB, ERRORS[error], monkeypatch) as memory:
        halved = edited()
        assert memory.failures > 0
    assert whole.keys() == halved.keys()
    assert all(np.abs(whole[key].astype(int) - halved[key]).max() <= 1 for key in whole)


@pytest.mark.parametrize("error", ERRORS)
def test_evaluation_takes_the_batches_that_fit(error: str) -> None:
    class Small(DrawingPipeline):
        largest = 0

        def decode(self, x_T: torch.Tensor, z: torch.Tensor, **options: Any) -> torch.Tensor:
            if len(z) > 3:
                raise ERRORS[error]()
            self.largest = max(self.largest, len(z))
            return super().decode(x_T, z, **options)

    faces = evaluation_faces(32, learn=4, pairs=5, reporter=SilentReporter())
    pipeline = Small(faces)
    result = evaluate_model(pipeline, faces, oracle(pipeline), [(6,)], moves=False)  # type: ignore[arg-type]
    assert pipeline.largest == 3
    assert result.swaps[0].truth_psnr == float("inf")
