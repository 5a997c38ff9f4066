"""Tiny models shared by the tests.

Nothing here imports diffusers at the top: it imports Triton, whose interpreter tests/ops/conftest.py must be
able to choose first.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import CHUNKS, LATENT_DIM, SIZE, UNET_SHAPES, perturb, tiny_unet_config

from diticli.chunks import ChunkLayout

torch.set_num_threads(1)  # on tensors this small, threads mostly wait for one another
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the commands that tests start, as well
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of these commands compiles all of diticli anew
sys.dont_write_bytecode = False
os.fsync = lambda _: None  # no test cuts the power: waiting for the disk was a tenth of a training's time


@pytest.fixture(scope="session", autouse=True)
def nothing_frozen_at_exit() -> Iterator[None]:
    """See `little_to_collect`."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """What is imported by now is no garbage: going through it was a quarter of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: how often Python collects by itself depends on what was left the last time


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves the one it found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="session")
def layout() -> ChunkLayout:
    """Four chunks of four dims."""
    return ChunkLayout.uniform(chunks=CHUNKS, latent_dim=LATENT_DIM)


@pytest.fixture(scope="session")
def make_unet() -> Callable[..., Any]:
    """(shape name or kinds, **config) -> a frozen base in eval mode with nothing left at zero."""
    from diticli.models.unet import UNet

    def make(shape: str = "DA", **others: Any) -> Any:
        arguments = dict(UNET_SHAPES.get(shape, {"kinds": shape})) | others
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            unet = perturb(UNet(**tiny_unet_config(**arguments)), 0.05)
        return unet.requires_grad_(False).eval()

    return make


@pytest.fixture(scope="session")
def make_pipeline(make_unet: Callable[..., Any], layout: ChunkLayout) -> Callable[..., Any]:
    """(**overrides) -> a tiny `DiTiPipeline` with random weights."""
    from diffusers import DDIMScheduler

    from diticli.models.encoder import SemanticEncoder
    from diticli.models.pipeline import DiTiPipeline
    from diticli.models.shift_decoder import ShiftDecoder

    def make(**overrides: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            unet = make_unet()
            parts = {
                "unet": unet,
                "encoder": SemanticEncoder(SIZE, 3, (8, 8), LATENT_DIM, 8, 2, 4),
                "shift_decoder": perturb(ShiftDecoder.for_unet(unet, LATENT_DIM)),
                "scheduler": DDIMScheduler(),
                "chunk_layout": layout.to_dict(),
            }
            return DiTiPipeline(**parts | overrides)

    return make


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """torch.compile without a compiler: Dynamo and AOTAutograd trace, the graphs run as they are; counts them."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    made: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)
        return make_boxed_func(graph.forward)

    tracing, compile = aot_autograd(fw_compiler=backend), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compile(function, backend=tracing, **how))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any request to the Hub fails the test."""
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"asked the Hub for {args} {kwargs}")

    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, refuse)
    for name in ("file_exists", "model_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, refuse)


@pytest.fixture(scope="session")
def official_weights() -> dict[str, Any]:
    """Random weights of an official run, see official_runs.py."""
    from official_runs import random_weights

    return random_weights()


@pytest.fixture
def official_project(tmp_path: Path, official_weights: dict[str, Any]) -> tuple[Path, Path]:
    """An official run and its pre-trained DPM, as folders."""
    from official_runs import write_project

    return write_project(tmp_path / "DiTi", official_weights)
