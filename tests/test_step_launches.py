"""What a step asks of a GPU, on the meta device: no waiting, no copies, and no launch more than today.

A count that falls is welcome: lower it here. Numbers of PyTorch's own operators are those of torch 2.13.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from test_training import tiny

sys.path.insert(0, str(Path(__file__).parent.parent))

from diti_kernels.adaptive_group_norm import adaptive_group_norm

from benchmarks.on_meta import (
    META,
    Launches,
    as_on_a_gpu,
    objectives,
    sampler_launches,
    step_bytes,
    step_launches,
)
from benchmarks.step import largest
from diticli.distributed import Rank
from diticli.models.largest_batch import peak_or_none
from diticli.settings import build_config
from diticli.training.augment import SIMCLR, StepViews
from diticli.training.objectives import Objective
from diticli.training.stage import trial_step

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
CELEBA64 = build_config("celeba64", options={"precision": "bf16"})
TRAINING = {"base": {"reference": 2009, "triton": 1495}, "features": {"reference": 2239, "triton": 1570}}
"""Launches of the forward and backward passes of celeba64 in bf16."""
SAMPLING = {"reference": 1204, "triton": 722}
"""Launches of a sampler's step of celeba64 in bf16."""


@pytest.fixture(scope="module")
def celeba64() -> dict[str, Objective]:
    return objectives(CELEBA64)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("stage", TRAINING)
def test_a_training_step_launches_no_more(celeba64: dict[str, Objective], stage: str, kernels: str) -> None:
    launches = step_launches(celeba64[stage], CELEBA64, kernels, "bf16", 2)
    assert launches.total <= TRAINING[stage][kernels], launches.counts.most_common(12)


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_a_samplers_step_launches_no_more(kernels: str) -> None:
    launches = sampler_launches(CELEBA64, kernels, torch.bfloat16, 2)
    assert launches.total <= SAMPLING[kernels], launches.counts.most_common(12)


def test_the_committed_table_is_of_these_steps() -> None:
    rows = json.loads(max(RESULTS.glob("*-cpu-step.json")).read_text())["rows"]
    assert {row["preset"] for row in rows} == {"celeba64", "ffhq128"}
    assert all(row["waits"] == 0 and set(row["uploads"].values()) == {0} for row in rows)
    found = {row["what"]: row["launches"] for row in rows if (row["preset"], row["precision"]) == ("celeba64", "bf16")}
    assert found == {**{f"stage {stage}": counts for stage, counts in TRAINING.items()}, "sampler's step": SAMPLING}


def test_views_are_drawn_without_waiting() -> None:
    """What happens to which image is drawn on the host, and only uploaded."""
    views = StepViews(augmentation=SIMCLR, seed=0, stage="features", batch_size=16, rank=Rank())
    with Launches() as launches:
        drawn = views.draw(0, torch.empty(16, 3, 64, 64, dtype=torch.uint8, device=META))
    assert drawn.device == META
    assert launches.uploads <= 60


def test_waiting_and_copying_are_found() -> None:
    with Launches() as launches:
        x = torch.ones(3).to(META)
        assert launches.uploads == 1
        assert torch.ones(3).nonzero().numel() == 3
        for wrong in (lambda: x.sum().item(), lambda: x.nonzero(), lambda: x.cpu()):
            with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
                wrong()


@pytest.mark.parametrize("skip", [0, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_uncompiled_norm_is_no_more_than_pytorchs(dtype: torch.dtype, skip: int) -> None:
    """Group norm, SiLU and the copies to its layout and back: at most 8 launches and 4 times the least bytes, 5 beside
    a skip; the gradients at most 16 launches and 5 times. The written-out passes took 19 and 11, 29 and 14."""
    channels, size = 32, 64
    x, beside = (
        torch.empty(2, c, size, size, device=META, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        for c in (channels - skip, skip or 1)
    )
    scale, shift = (torch.empty(2, channels, device=META, requires_grad=True) for _ in range(2))
    least = x.element_size() * 2 * channels * size**2
    with as_on_a_gpu():
        with Launches() as forward:
            y = adaptive_group_norm(x, scale, shift, 8, skip=beside if skip else None)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert forward.total <= 8 + bool(skip), forward.counts
        assert forward.bytes <= (4 + bool(skip)) * 2 * least * 1.01
        with Launches() as backward:
            y.backward(torch.empty_like(y))
    assert backward.total <= 16 + 3 * bool(skip), backward.counts
    assert backward.bytes <= (5 + bool(skip)) * 3 * least * 1.01, backward.bytes / (3 * least)


def test_the_largest_batch_is_found_where_small_ones_say_nothing() -> None:
    """At few images the weights' gradients are the most at once, which no image adds to."""

    def used(count: int) -> float:
        return max(100.0 + count, 40 + 7 * count)

    for room, wanted in ((99, 0), (101, 1), (110, 10), (111, 10), (117, 11), (747, 101), (7040, 1000)):
        assert largest(used, room) == wanted


def test_memory_by_formula_is_what_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of a real step on the CPU, whose norms keep other maps, lies within a third of what is counted."""
    monkeypatch.setenv("DITI_KERNELS", "reference")  # norms in C keep less
    monkeypatch.setenv("DITI_LAYOUT", "contiguous")
    from diticli.training.accelerator import make_accelerator, resolve
    from diticli.training.plan import stage_of, stages_of

    config = resolve(tiny("unet.channels=16,32"))
    counted = step_bytes(objectives(config)["base"], config, "fp32", 16)
    accelerator = make_accelerator(config)
    name, objective, _ = next(iter(stages_of(config)))
    stage = stage_of(name, objective, config, accelerator)
    real = peak_or_none(lambda count: trial_step(stage, accelerator, count), 16, torch.device("cpu"))
    assert real is not None
    states = 12 * sum(p.numel() for p in objective.parameters())
    assert real - states == pytest.approx(counted, rel=0.33)
