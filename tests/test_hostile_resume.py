"""A stranger's checkpoint in a real resume: it is refused with the reason, or it is what this run wrote itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import StopAfter, tiny

from diticli.errors import CheckpointError, ConfigError
from diticli.sealed import sealed
from diticli.training.checkpoint import list_checkpoints
from diticli.training.metrics_log import MetricsLogger
from diticli.training.pace import Horizon, Pace
from diticli.training.run import train
from diticli.training.stopping import TrainingInterrupted

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second stage."""
    run = tmp_path_factory.mktemp("runs") / "stopped"
    with pytest.raises(TrainingInterrupted):
        train(tiny(), run, reporter=StopAfter("features", 24))
    return run


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def change(run: Path, part: str, edit: Callable[[Tensors], object]) -> None:
    """Let `edit` change the tensors of a part, under checksums that fit."""
    checkpoint = list_checkpoints(run / "checkpoints")[-1]
    path = checkpoint / f"{part}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
    state = json.loads((checkpoint / "state.json").read_text())
    rewrite(run, sha256=state["sha256"] | sums)


def rewrite(run: Path, **facts: Any) -> None:
    """Other facts in its state, under a seal that fits."""
    path = list_checkpoints(run / "checkpoints")[-1] / "state.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | facts)))


def first(tensors: Tensors, end: str = "") -> str:
    return next(name for name in sorted(tensors) if name.endswith(end) and tensors[name].ndim)


TENSORS: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "one number for a tensor": ("weights", lambda t: t.update({first(t): torch.zeros(())}), r"float32 \[\] where"),
    "another shape": ("weights", lambda t: t.update({first(t): torch.zeros(3, 1, 7)}), r"\[3, 1, 7\] where"),
    "another type": ("weights", lambda t: t.update({first(t): t[first(t)].double()}), "is float64 .* where float32"),
    "whole numbers": ("weights", lambda t: t.update({first(t): t[first(t)].long()}), "is int64"),
    "eight bits": ("weights", lambda t: t.update({first(t): t[first(t)].to(torch.float8_e5m2)}), "is float8_e5m2"),
    "a missing weight": ("weights", lambda t: t.pop(first(t)), "weights lacks"),
    "a weight too many": ("weights", lambda t: t.update({"x" * 999: torch.zeros(2)}), "weights has an unknown 'xxx"),
    "weights that are NaN": ("weights", lambda t: t[first(t)].fill_(torch.nan), r"not finite \(weights: "),
    "an average of one number": ("ema", lambda t: t.update({"0": torch.zeros(())}), "ema: 0 is"),
    "an average missing": ("ema", lambda t: t.pop("0"), "ema lacks '0'"),
    "an average that is infinite": ("ema", lambda t: t["0"].fill_(torch.inf), r"not finite \(ema: 0"),
    "moments of another shape": ("optimizer", lambda t: t.update({"0.exp_avg": torch.zeros(1)}), "0.exp_avg is"),
    "moments that are NaN": ("optimizer", lambda t: t["0.exp_avg"].fill_(torch.nan), r"not finite \(optimizer"),
    "negative squares": ("optimizer", lambda t: t["0.exp_avg_sq"].fill_(-1), "0.exp_avg_sq is negative"),
    "negative steps of Adam": ("optimizer", lambda t: t["0.step"].fill_(-3), "0.step is negative"),
    "half of the moments": ("optimizer", lambda t: t.pop("0.exp_avg_sq"), "a part of 0 alone"),
    "moments of no weight": ("optimizer", lambda t: t.update({"9999.exp_avg": torch.zeros(1)}), "unknown '9999.exp"),
    "moments without a number": ("optimizer", lambda t: t.update({"exp_avg": torch.zeros(1)}), "unknown 'exp_avg'"),
    "unknown totals": ("totals", lambda t: t.update({"other": torch.zeros(1)}), "totals has an unknown 'other'"),
    "totals of another shape": ("totals", lambda t: t.update({"loss": torch.zeros(4).double()}), "totals: loss is"),
    "negative counts": ("totals", lambda t: t["steps"].fill_(-2), "totals: steps is no count"),
    "huge counts": ("totals", lambda t: t["skipped"].fill_(1e300), "totals: skipped is no count"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_of_another_training_are_refused(run: Path, what: str) -> None:
    part, edit, message = TENSORS[what]
    change(run, part, edit)
    with pytest.raises(CheckpointError, match=message) as caught:
        train(tiny(), run)
    assert "Delete" in caught.value.remedy
    assert len(str(caught.value)) < 800
    assert not (run / "model").exists()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"step": -1}, "names the step -1"),
        ({"step": 9}, "its step is 9 of 8"),
        ({"step": 10**11}, "its step is 100,000,000,000 of 8"),
        ({"step": 10**40}, "names the step 1000"),
        ({"step": True}, "state.json is damaged"),
        ({"ema_step": -1}, "its ema_step is -1"),
        ({"ema_step": "7"}, "its ema_step is '7'"),
        ({"ema_step": None}, "its ema_step is None"),
        ({"sha256": []}, "state.json is damaged"),
        ({"sha256": [["weights.safetensors", "0"]]}, "state.json is damaged"),
        ({"sha256": {}}, "does not fit this run"),
        ({"identity": ["x"]}, "other settings or other images"),
    ],
)
def test_numbers_that_no_run_has_are_refused(run: Path, facts: dict[str, Any], message: str) -> None:
    rewrite(run, **facts)
    with pytest.raises(CheckpointError, match=message) as caught:
        train(tiny(), run)
    assert caught.value.remedy
    assert not (run / "model").exists()


def test_an_untouched_checkpoint_goes_on(run: Path) -> None:
    change(run, "optimizer", lambda tensors: None)
    assert (train(tiny(), run) / "model_index.json").is_file()


CLOCK: dict[str, Any] = {
    **{"seconds": 60.0, "later": 0.0, "active": 3.0, "apart": 0.5, "longest": 0.5},
    **{"first": 0, "next": 4, "marks": [[1, 0.2], [3, 0.6]]},
}


def test_the_clock_of_a_checkpoint_goes_on() -> None:
    pace = Pace(None, clock=lambda: 100.0)
    pace.restore(CLOCK)
    assert pace.to_dict() == CLOCK | {"marks": [(1, 0.2), (3, 0.6)]}
    assert Horizon.restored([8, 2.0, 0.25]) == Horizon(8, 2.0, 0.25)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"seconds": value} for value in (None, "60", float("nan"), float("inf"), 1e300, True, [1])),
        *({"next": value} for value in (-1, 1.5, 10**40, None)),
        *(
            {"first": -1},
            {"first": "0"},
            {"marks": [1]},
            {"marks": [[1, 2, 3]]},
            {"marks": [[-1, 0.0]]},
            {"marks": None},
        ),
    ],
)
def test_a_clock_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    pace = Pace(5.0, clock=lambda: 100.0)
    before = pace.to_dict()
    with pytest.raises((ValueError, TypeError)):
        pace.restore(CLOCK | wrong)
    assert pace.to_dict() == before


@pytest.mark.parametrize(
    "plan",
    [[], [8], [8, 2, 3, 4], ["8", 0, 0], [-8, 0, 0], [0, 0, 0], [10**40, 0, 0], [8, -1, 0], [8, 0, 2], [8, None, 0]],
)
def test_a_plan_that_cannot_be_is_refused(plan: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Horizon.restored(plan)


# other files of a run


@pytest.mark.parametrize(
    "facts",
    [
        *({"began_with": value} for value in (3, [], {"features.images": "8"}, {"features.images": -8})),
        *({"config": value} for value in (None, {}, {"data": 3}, {"data": {"source": 3}})),
        *({"data": value} for value in (None, [])),
    ],
)
def test_a_config_that_no_run_wrote_is_refused(run: Path, facts: dict[str, Any]) -> None:
    path = run / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    with pytest.raises(ConfigError, match="is damaged") as caught:
        train(tiny(), run)
    assert len(str(caught.value)) < 600


def test_lines_of_others_are_left_out_of_the_log(tmp_path: Path) -> None:
    lines = [b'{"stage": "base", "step": 1}', b"3", b"{}", b'{"stage": "base", "step": "x"}', b"\xff", b"[" * 5000]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"stage": "base", "step": 9}', b""]))
    log = MetricsLogger(tmp_path, active=True)
    log.truncate_after("base", 3)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines[0] + b"\n"
