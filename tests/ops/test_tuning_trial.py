"""Trials of the other ways: what is taken, refused or left alone, with Triton in its interpreter and a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured_on_cpu import fake_gpu
from diti_kernels import sites
from diti_kernels.adaptive_group_norm import launch
from diti_kernels.sites import Site
from op_sites import Site as Place

from diticli.tuning import trial
from diticli.tuning.trial import Agreement, is_faster, make_inputs, try_site, try_sites

NORM = Site(
    "adaptive_group_norm",
    "eager",
    "float32",
    (4, 8, 4, 4, 3, 5),
    (True, True, True, True),
    ("silu", "per sample", "channels_last"),
)
FROZEN = NORM._replace(
    shape=(8, 8, 0, 2, 4, 4), wants=(False,) * 4, options=("none", "shared", "contiguous"), dtype="float16"
)
LINEAR = Site("masked_linear", "eager", "float32", (4, 10, 7, 11), (True, True, True), ("detached", "bias"))


class Clock:
    """Readings by way: `readings["triton"]` seconds, or a list of them in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **readings: float | list[float]) -> None:
        self.readings = readings
        monkeypatch.setattr(trial, "runner", lambda site, inputs, way: self._run(way))

    def _run(self, way: str) -> Callable[[], str]:
        return lambda: way

    def __call__(self, run: Callable[[], Any], repeats: int) -> float:
        reading = self.readings[run()]
        return reading.pop() if isinstance(reading, list) else reading


@pytest.mark.parametrize("site", [NORM, FROZEN, LINEAR, LINEAR._replace(options=("cumulative", "no bias"))])
def test_right_and_faster_is_taken(triton_site: Place, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    if site.options[-1] == "no bias":
        site = site._replace(wants=(True, True, False))
    verdict = try_site(site, triton_site.place, Clock(monkeypatch, reference=2e-3, triton=1e-3))
    assert (verdict.choice, verdict.outcome) == ("triton", "right"), verdict.detail
    assert (verdict.reference_ms, verdict.way_ms, verdict.ratio) == (2, 1, 2)


@pytest.mark.parametrize("triton", [3e-3, 2e-3, 1.9e-3])
def test_right_and_slower_or_a_tie_is_not(triton: float, triton_site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    verdict = try_site(LINEAR, triton_site.place, Clock(monkeypatch, reference=2e-3, triton=triton))
    assert (verdict.choice, verdict.outcome) == ("reference", "right")


def test_what_gains_in_too_few_rounds_is_a_doubt() -> None:
    steady, often, seldom = [1.0] * 8, [0.5] * 7 + [2.0], [0.5] * 5 + [2.0] * 3
    assert is_faster({"reference": steady, "triton": often})
    assert not is_faster({"reference": steady, "triton": seldom})


def spoil(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, change: Callable[[Any], Any]) -> None:
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: change(function(*arguments)))


def with_nan(out: torch.Tensor) -> torch.Tensor:
    """A copy whose first sample is not a number."""
    spoilt = out.clone()
    spoilt[0] = torch.nan
    return spoilt


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("triton_forward", lambda out: (out[0] * 1.001, *out[1:])),
        ("triton_forward", lambda out: (with_nan(out[0]), *out[1:])),
        ("triton_backward", lambda grads: (*grads[:3], grads[3] * 1.001)),
        ("triton_backward", lambda grads: (grads[0], grads[1] * 0, *grads[2:])),
    ],
    ids=["value", "NaN", "gradient of shift", "gradient of skip"],
)
def test_wrong_is_refused(
    name: str, change: Callable[[Any], Any], triton_site: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    spoil(monkeypatch, launch, name, change)
    verdict = try_site(NORM, triton_site.place, Clock(monkeypatch, reference=2.0, triton=1.0))
    assert (verdict.choice, verdict.outcome, verdict.ratio) == ("reference", "wrong", None)
    assert "error" in verdict.detail


def test_wrong_in_the_last_sample_alone_is_refused(triton_site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 looks at four samples; the others are compared as well."""
    monkeypatch.delenv("DITI_KERNELS")
    site = NORM._replace(shape=(8, *NORM.shape[1:]))

    def change(out: Any) -> Any:
        if len(out[0]) == 8:
            out[0][7] = 0
        return out

    spoil(monkeypatch, launch, "triton_forward", change)
    verdict = try_site(site, triton_site.place, Clock(monkeypatch, reference=2.0, triton=1.0))
    assert verdict.outcome == "wrong"
    assert "value of all" in verdict.detail


def test_a_kernel_that_raises_has_failed(triton_site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS")

    def refuse(*arguments: object) -> None:
        raise RuntimeError("PassManager::run failed\nmore")

    monkeypatch.setattr(launch, "triton_forward", refuse)
    verdict = try_site(NORM, triton_site.place, Clock(monkeypatch, reference=2.0, triton=1.0))
    assert (verdict.choice, verdict.outcome, verdict.detail) == (
        "reference",
        "failed",
        "RuntimeError: PassManager::run failed",
    )


@pytest.mark.parametrize(("mode", "backwards"), [("eager", 1), ("compiled", 1), ("captured", 3 + 1)])
def test_each_way_runs_as_the_site_does(
    mode: str, backwards: int, triton_site: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also compiled, where graphs of one function are told apart by tensors alone; and captured with its gradients,
    after three calls, which a replay on a CPU runs once more."""
    if mode == "captured" and triton_site.device == "cpu":
        fake_gpu(monkeypatch)
        backwards += 1
    monkeypatch.delenv("DITI_KERNELS")
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiler(f, backend="aot_eager", **options))
    launched: list[int] = []
    spoil(monkeypatch, launch, "triton_backward", lambda out: launched.append(1) or out)
    inputs = make_inputs(NORM, triton_site.place, 4, torch.float32)
    counts = []
    for way in ("reference", "triton", "reference"):
        launched.clear()
        trial.runner(NORM._replace(mode=mode), inputs, way)()
        counts.append(len(launched))
    assert counts == [0, backwards, 0]


def test_the_operations_name_the_sites_that_trials_make(triton_site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    with sites.recording("compiled") as found:
        for site in (NORM, FROZEN, LINEAR):
            inputs = make_inputs(site, triton_site.place, site.shape[0], getattr(torch, site.dtype))
            inputs.call(*inputs.leaves)
    assert [site._replace(mode="eager") for site in found] == [NORM, FROZEN, LINEAR]


def test_no_site_begins_that_would_end_too_late(triton_site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    watch, now = Clock(monkeypatch, reference=2.0, triton=1.0), iter([0.0, 3.0, 7.0])
    jobs = [LINEAR, LINEAR._replace(shape=(2, 10, 7, 11)), LINEAR._replace(shape=(8, 10, 7, 11))]
    events = list(try_sites(jobs, triton_site.place, 10.0, watch=watch, clock=lambda: next(now)))
    assert [next(iter(event)) for event in events] == ["begin", "end", "begin", "end"]


def test_one_site_without_memory_or_of_another_version_costs_no_other(
    triton_site: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DITI_KERNELS")
    watch = Clock(monkeypatch, reference=2.0, triton=1.0)
    real = trial.compare

    def compare(site: Site, *arguments: Any) -> Agreement:
        if site.shape[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(site, *arguments)

    monkeypatch.setattr(trial, "compare", compare)
    jobs = [LINEAR._replace(shape=(2, 10, 7, 11)), LINEAR._replace(operation="unknown"), LINEAR]
    events = list(try_sites(jobs, triton_site.place, 10.0, watch=watch))
    assert [next(iter(event)) for event in events] == ["begin", "skip", "begin", "skip", "begin", "end"]
