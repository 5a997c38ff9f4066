"""Where the operations are tested: plain PyTorch and Triton, on the CPU (interpreted) and on a GPU.

Triton reads TRITON_INTERPRET when a function is decorated, so its interpreter has to be chosen before
anything imports Triton, as diffusers and Dynamo do. That happens here, at collection, on machines without a
GPU; the variable is put back at once so that no other test sees it. With a GPU the kernels are compiled.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import diti_kernels
import pytest
import torch
from diti_kernels import dispatch
from diti_kernels.adaptive_group_norm import compiled_rows
from op_sites import Site


def _decorate_for_interpreter() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for kernels in sorted(Path(diti_kernels.__path__[0]).glob("*/triton_kernels.py")):
            importlib.import_module(f"diti_kernels.{kernels.parent.name}.triton_kernels")


if importlib.util.find_spec("triton") and "triton" not in sys.modules and not torch.cuda.is_available():
    _decorate_for_interpreter()


SITES = [
    pytest.param(Site(backend, device), id=f"{backend}-{device}", marks=[pytest.mark.gpu] if device == "cuda" else [])
    for backend in ("reference", "triton")
    for device in ("cpu", "cuda")
]
SITES.append(pytest.param(Site("auto", "cpu"), id="compiled-cpu"))


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Every implementation on every device of this machine; DITI_KERNELS is set to it."""
    yield from _at(request.param, monkeypatch)


@pytest.fixture(params=[param for param in SITES if param.values[0].backend == "triton"])
def triton_site(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Triton on every device of this machine; DITI_KERNELS=triton."""
    yield from _at(request.param, monkeypatch)


def _at(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    if site.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if site.backend == "triton":
        pytest.importorskip("triton")
        interpreted = dispatch.triton_is_interpreted()
        if interpreted != (site.device == "cpu"):
            pytest.skip(f"Triton {'runs' if interpreted else 'does not run'} in its interpreter here")
        if interpreted:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv(dispatch.VARIABLE, site.backend)
    if site.backend == "auto" and compiled_rows.why().functions is None:
        pytest.skip(compiled_rows.why().reason)
    yield site
    torch.compiler.reset()


@pytest.fixture
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.empty` returns NaN, so an element that a kernel forgets to write is seen."""
    empty = torch.empty

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
