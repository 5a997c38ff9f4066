"""`cuda:1` stays `cuda:1`: which GPU is asked, trained on and captured on, with two mocked GPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import tiny

from diticli.config import RunConfig
from diticli.errors import DeviceError
from diticli.models import compiled
from diticli.models.compiled import StepGraph
from diticli.models.device import gpu_convolutions, resolve_device, resolve_precision
from diticli.settings import build_config
from diticli.training import accelerator as training
from diticli.training.rundir import gpu_name, identity


class TwoGPUs:
    """What `torch.cuda` is asked with two GPUs; GPU 1 alone computes in bf16.

    Attributes:
        current: index of the current GPU.
        events: what a capture did, with the GPU that was current.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.events = 0, []
        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "is_bf16_supported": lambda including_emulation=True: self.current == 1,
            "device": self.device,
            "set_device": self.set_device,
            "Stream": self.stream,
            "current_stream": lambda device=None: self.stream(device),
            "stream": self.on_stream,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.events.append(("replay", self.current))),
            "graph": self.graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    @contextlib.contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, torch.device(device).index or 0
        yield
        self.current = before

    def set_device(self, device: Any) -> None:
        self.current = torch.device(device).index

    def stream(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(device=device, wait_stream=lambda other: None)

    @contextlib.contextmanager
    def on_stream(self, stream: SimpleNamespace) -> Iterator[None]:
        self.events.append(("warm-up", self.current, stream))
        yield

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
        self.events.append(("capture", self.current, stream, capture_error_mode))
        yield


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> TwoGPUs:
    return TwoGPUs(monkeypatch)


def config(device: str, *more: str) -> RunConfig:
    return build_config("faces32", assignments=(f"device={device}", "compile=false", *more))


def test_the_gpu_that_is_named_is_kept(gpus: TwoGPUs) -> None:
    assert training.resolve(config("cuda:1")).device == "cuda:1"
    assert training.resolve(config("cuda")).device == "cuda"
    with pytest.raises(DeviceError, match="no cuda:2"):
        training.resolve(config("cuda:2"))


def test_precision_is_asked_of_the_gpu_that_is_named(gpus: TwoGPUs) -> None:
    assert resolve_precision("auto", resolve_device("cuda:1")) == "bf16"
    assert resolve_precision("auto", resolve_device("cuda:0")) == "fp32"
    with pytest.raises(DeviceError, match="bf16"):
        resolve_precision("bf16", resolve_device("cuda:0"))
    assert gpus.current == 0


def test_the_number_of_a_gpu_is_no_part_of_a_run(gpus: TwoGPUs, tmp_path: Path) -> None:
    """A run may go on on another GPU, but not on a CPU; runs of before wrote `cuda`."""
    one, other, old, cpu = (config(name, "precision=fp32") for name in ("cuda:0", "cuda:1", "cuda", "cpu"))
    keys = [identity(settings, {}, "base", 8) for settings in (one, other, old, cpu)]
    assert keys[0] == keys[1] == keys[2] != keys[3]


class FakeAccelerator:
    """Of one or several processes; its state knows the current GPU alone."""

    def __init__(self, processes: int) -> None:
        self.state, self.num_processes = SimpleNamespace(device=torch.device("cuda")), processes


def test_training_takes_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    partial = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(training, "PartialState", lambda: partial)
    alone = FakeAccelerator(1)
    training._take_gpu(alone, torch.device("cuda:1"))
    assert alone.state.device == partial.device == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="cuda:1 is one GPU, and 2 processes") as caught:
        training._take_gpu(FakeAccelerator(2), torch.device("cuda:1"))
    assert "--device cuda" in caught.value.remedy


class Remote(torch.Tensor):
    """A tensor that says it lies on GPU 1."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:1")


def test_a_graph_is_captured_on_the_device_of_its_inputs(gpus: TwoGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one kept side stream of that device, while other threads may allocate pinned memory."""
    monkeypatch.setattr(StepGraph, "_sides", {})
    inputs = torch.zeros(3).as_subclass(Remote)
    for _ in range(2):
        graph = StepGraph(lambda x: 2 * x, inputs)
    captures = [event for event in gpus.events if event[0] == "capture"]
    warm_ups = [event for event in gpus.events if event[0] == "warm-up"]
    assert [event[1] for event in captures + warm_ups] == [1] * 4
    assert len({id(event[2]) for event in captures + warm_ups}) == 1
    assert captures[0][2].device == torch.device("cuda:1")
    assert {event[3] for event in captures} == {"thread_local"}
    graph(inputs)
    assert gpus.events[-1] == ("replay", 1)
    assert gpus.current == 0
    assert list(compiled.StepGraph._sides) == [torch.device("cuda:1")]


def test_fp32_of_a_gpu_is_float32_and_long_work_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default is TF32 in convolutions, and cuDNN's guess; both are given back."""
    cudnn = torch.backends.cudnn

    def flags() -> tuple[bool, bool]:
        return cudnn.allow_tf32, cudnn.benchmark

    monkeypatch.setattr(cudnn, "allow_tf32", True)
    monkeypatch.setattr(cudnn, "benchmark", False)
    before = flags()
    with gpu_convolutions(torch.device("cuda:1"), torch.float32, timed=True):
        assert flags() == (False, True)
        with gpu_convolutions(torch.device("cuda:1"), torch.float32):
            assert flags() == (False, True)
        assert flags() == (False, True)
    with gpu_convolutions(torch.device("cuda"), torch.bfloat16):
        assert flags() == before
    with gpu_convolutions(torch.device("cpu"), torch.float32, timed=True):
        assert flags() == before
    with pytest.raises(KeyError), gpu_convolutions(torch.device("cuda"), torch.float32):
        raise KeyError
    assert flags() == before


class Spy:
    """In place of `gpu_convolutions`: keeps what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
        self.asked: list[tuple[torch.dtype, bool]] = []
        for module in modules:
            monkeypatch.setattr(module, "gpu_convolutions", self)

    @contextlib.contextmanager
    def __call__(self, device: torch.device, dtype: torch.dtype, *, timed: bool = False) -> Iterator[None]:
        self.asked.append((dtype, timed))
        yield


def test_everything_that_says_fp32_asks_for_it(make_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from diticli.encoding import batch_encoder
    from diticli.models import frozen, model

    spy, pipeline = Spy(monkeypatch, batch_encoder, frozen, model), make_pipeline()
    images = torch.zeros(2, 3, 16, 16)
    z = pipeline.encode(images)
    assert spy.asked == [(torch.float32, False)]
    encoder = batch_encoder.BatchEncoder(pipeline.encoder, "fp32")
    for count in (2, 2, 1):
        encoder(images[:count].to(torch.uint8))
    assert spy.asked[1:] == [(torch.float32, True), (torch.float32, True), (torch.float32, False)], (
        "full batches repeat"
    )
    spy.asked.clear()
    pipeline.sampler(precision="fp32").decode(images, z, steps=2)
    assert set(spy.asked) == {(torch.float32, False)}


def test_training_asks_for_float32_and_for_the_fastest_convolutions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diticli.training import plan, run

    spy = Spy(monkeypatch, run, plan)
    plan.make_plan(tiny())
    run.train(tiny("base.images=8", "features.images=8"), tmp_path / "run")
    assert spy.asked == [(torch.float32, True)] * 2


def test_a_run_names_the_gpu_that_its_noise_depends_on(gpus: TwoGPUs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"NVIDIA X of {device}")
    assert gpu_name("cuda:1") == {"gpu": "NVIDIA X of cuda:1"}
    assert gpu_name("cpu") == {}
