"""The benchmarks' own arithmetic: what a ratio is, when it may be believed, and when it is not shown at all."""

import json
import math
import random
import signal
import statistics
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks import kernels, timing
from benchmarks.agreement import Gate, compare
from benchmarks.comparison import Candidate, compare_sides, report, verdict
from benchmarks.facts import datasheet_peak
from benchmarks.limits import OutOfTimeError, time_limit
from benchmarks.table import cell, ratio_text, render
from benchmarks.timing import TWIN, Ratio, Side, measure, median_interval, quantile

CPU_DEVICE = torch.device("cpu")


class Machine:
    """A clock that runs only while sides do; `drift` slows the machine down more and more."""

    def __init__(self, *, noise: float = 0.0, drift: float = 0.0, seed: int = 0) -> None:
        self.now, self.noise, self.drift, self.random = 0.0, noise, drift, random.Random(seed)
        self.calls: list[str] = []

    def side(self, name: str, seconds: float) -> Side:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds * (1 + self.drift * self.now) * self.random.lognormvariate(0, self.noise)

        return Side(name=name, run=run)

    def clock(self) -> float:
        return self.now


def timed(machine, *sides, rounds=40, **options):
    return measure([machine.side(*side) for side in sides], rounds=rounds, clock=machine.clock, **options)


def test_a_known_ratio_lies_within_its_interval_and_the_control_passes():
    timings = timed(Machine(noise=0.02), ("slow", 3.0), ("fast", 1.0), control="fast")
    ratio = timings.ratio("slow", "fast")
    assert ratio.low < 3.0 < ratio.high
    assert ratio.high - ratio.low < 0.1
    assert timings.trustworthy


def test_drift_of_the_machine_does_not_touch_the_ratio():
    timings = timed(Machine(drift=0.02), ("slow", 2.0), ("fast", 1.0), control="fast")
    assert max(timings.seconds["fast"]) > 2 * min(timings.seconds["fast"])
    assert timings.ratio("slow", "fast").median == pytest.approx(2.0, rel=0.1)


def test_every_side_runs_once_a_round_in_changing_order():
    machine = Machine()
    timed(machine, ("a", 1.0), ("b", 1.0), ("c", 1.0), rounds=20, warmup=2)
    warm, rounds = machine.calls[:6], [tuple(machine.calls[i : i + 3]) for i in range(6, 66, 3)]
    assert warm == ["a", "a", "b", "b", "c", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3


def test_a_machine_that_is_too_noisy_fails_the_control():
    timings = timed(Machine(noise=0.8, seed=3), ("side", 1.0), rounds=6, control="side")
    assert not timings.trustworthy
    gate = Gate()
    gate.check("loss", 0.0, 1.0)
    assert verdict(timings, gate).startswith("NOT TRUSTWORTHY")


def test_without_a_control_nothing_is_trustworthy():
    assert not timed(Machine(), ("side", 1.0)).trustworthy


def test_a_side_that_fails_costs_only_itself():
    def broken() -> None:
        raise RuntimeError("out of memory\nmore")

    machine = Machine()
    timings = measure(
        [Side(name="broken", run=broken), machine.side("good", 1.0)], rounds=3, control="broken", clock=machine.clock
    )
    assert set(timings.seconds) == {"good"}
    assert timings.failures == {"broken": "RuntimeError: out of memory"}
    with pytest.raises(ValueError, match="Every side failed"):
        measure([Side(name="broken", run=broken)], rounds=3)
    with pytest.raises(ValueError, match="distinct names"):
        measure([machine.side("x", 1), machine.side("x", 1)], rounds=3)


def test_the_budget_ends_the_rounds_but_three_are_made():
    assert len(timed(Machine(), ("side", 1.0), rounds=100, budget_seconds=10).seconds["side"]) == 10
    assert len(timed(Machine(), ("side", 1.0), rounds=100, budget_seconds=0).seconds["side"]) == 3


def test_rounds_are_added_while_the_control_fails():
    """As many as were asked for, each time; and none without a control, or when it holds."""
    noisy = {"rounds": 4, "control": "side"}
    seeds = [seed for seed in range(40) if not timed(Machine(noise=0.3, seed=seed), ("side", 1.0), **noisy).trustworthy]
    assert seeds
    for seed in seeds[:10]:
        timings = timed(Machine(noise=0.3, seed=seed), ("side", 1.0), retries=200, **noisy)
        assert timings.trustworthy
        assert timings.rounds > 4
        assert timings.rounds % 4 == 0
        assert len(timings.seconds["side" + TWIN]) == timings.rounds
    assert timed(Machine(), ("side", 1.0), retries=5, **noisy).rounds == 4
    assert timed(Machine(noise=0.3), ("side", 1.0), rounds=4, retries=5).rounds == 4


def test_added_rounds_have_as_much_time_again():
    drifting = Machine(noise=3.0, seed=1)
    timings = timed(drifting, ("side", 1.0), rounds=10_000, control="side", budget_seconds=50, retries=3)
    assert timings.trustworthy or 50 < drifting.now < 1000


@pytest.mark.parametrize(("noise", "least", "most"), [(0.0, 30, 30), (0.03, 31, 500), (0.5, 600, 600)])
def test_rounds_end_once_the_control_is_sure_to_hold(noise, least, most):
    timings = timed(Machine(noise=noise), ("side", 1.0), rounds=600, control="side", settle=True)
    assert least <= timings.rounds <= most
    assert timings.settled == (timings.rounds < 600)
    assert timings.to_dict()["rounds"] == timings.rounds


def test_a_control_that_is_not_sure_gets_more_rounds():
    """A median within the band by chance does not end them."""
    sides, options = [("side", 1.0)], {"rounds": 40, "control": "side", "settle": True}
    once = [timed(Machine(noise=0.1, seed=seed), *sides, **options) for seed in range(10)]
    assert any(timings.trustworthy and not timings.settled for timings in once)
    assert all(timed(Machine(noise=0.1, seed=seed), *sides, retries=50, **options).settled for seed in range(10))


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (30, 10), (2000, 956)])
def test_the_interval_is_the_textbook_one(n, rank):
    """Ranks of the 95 % interval of a median, e.g. Conover, Practical Nonparametric Statistics, table A3."""
    interval = median_interval(list(range(1, n + 1)))
    assert (interval.low, interval.high) == (rank, n + 1 - rank)


def test_the_interval_covers_the_median_as_often_as_it_says():
    source = random.Random(0)
    hits = 0
    for _ in range(400):
        found = median_interval([source.lognormvariate(0, 1) for _ in range(15)])
        hits += found.low <= 1.0 <= found.high
    assert hits / 400 >= 0.93


def test_five_rounds_have_no_interval():
    found = median_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.median == 3.0
    assert found.to_dict() == {"median": 3.0, "low": None, "high": None}
    assert ratio_text(found) == "3.000 [too few rounds]"


def test_quantiles():
    values = [random.Random(1).random() for _ in range(17)]
    assert quantile(values, 0.5) == statistics.median(values)
    assert quantile([1.0, 2.0], 0.2) == pytest.approx(1.2)


def test_table():
    text = render(["side", "ms"], [["ours", 1.2345], ["a longer name", None]])
    assert text.splitlines() == [
        "| side          |   ms |",
        "|---------------|-----:|",
        "| ours          | 1.23 |",
        "| a longer name |    - |",
    ]
    assert [cell(v) for v in (0.0, 12345.6, 1e-7, float("inf"), 3)] == ["0", "12,346", "1.0e-07", "inf", "3"]
    assert ratio_text(Ratio(3.0, 2.9, 3.1)) == "3.000 [2.900, 3.100]"
    with pytest.raises(ValueError, match="2 cells"):
        render(["side", "ms"], [["only one"]])


def measured(*, passed: bool):
    gate = Gate()
    gate.check("loss", 1e-5 if passed else 1e-2, 1e-4)
    sides = [
        Candidate(name=name, build=lambda: lambda: sum(range(20_000)) and None, note=name) for name in ("ours", "A0")
    ]
    comparison = compare_sides(sides, CPU_DEVICE, rounds=6, budget_seconds=5, control="ours")
    return report(comparison, gate, CPU_DEVICE, ours="ours", units=8, unit="images")


def test_no_speed_up_is_shown_or_written_when_the_sides_disagree():
    text, result = measured(passed=False)
    assert "No speed-up: loss 1.0e-02 > 1.0e-04." in text
    assert all(row.split("|")[5].strip() == "-" for row in text.splitlines() if row.startswith(("| ours", "| A0")))
    assert not result["speed_up_of_ours"]
    assert not result["speed_up_untrusted"]
    assert set(result["sides"]) == {"ours", "A0", "ours" + TWIN}


def test_speed_ups_are_shown_when_they_agree():
    text, result = measured(passed=True)
    shown = result["speed_up_of_ours"] or result["speed_up_untrusted"]
    assert shown["ours"]["median"] == 1.0
    assert set(shown) == {"ours", "A0"}
    assert (result["speed_up_of_ours"] is None) == ("NOT TRUSTWORTHY" in text)
    json.dumps(result, allow_nan=False)


def test_a_candidate_that_cannot_be_built_or_comes_too_late_is_named():
    def broken():
        raise MemoryError("too big")

    good = Candidate(name="good", build=lambda: lambda: None, note="")
    bad = Candidate(name="bad", build=broken, note="")
    found = compare_sides([good, bad], CPU_DEVICE, rounds=3, budget_seconds=1, control="good")
    assert found.skipped == {"bad": "MemoryError: too big"}
    with pytest.raises(ValueError, match="Every side failed"):
        compare_sides([good], CPU_DEVICE, rounds=3, budget_seconds=1, control="good", build_seconds=-1)


def sleeping():
    for _ in range(500):
        time.sleep(0.02)


def test_a_candidate_that_compiles_for_too_long_is_interrupted_and_told():
    """And one that does not says how long it took."""
    before = signal.getsignal(signal.SIGALRM)
    good = Candidate(name="good", build=lambda: lambda: None, note="", compiled=True, limit=60)
    slow = Candidate(name="slow", build=sleeping, note="", compiled=True, limit=0.6)
    found = compare_sides([slow, good], CPU_DEVICE, rounds=6, budget_seconds=1, control="good")
    assert signal.getsignal(signal.SIGALRM) is before
    assert found.skipped == {"slow": "out of time: compiling it had not ended after 1 s"}
    assert found.first_run.keys() == {"good"}
    text, result = report(found, Gate(), CPU_DEVICE, ours="good", units=1, unit="images")
    assert "not measured: slow: out of time: compiling it had not ended after 1 s" in text
    assert "compiled and run once in 0 s: good" in text
    assert result["first_run_seconds"] == found.first_run


def test_building_ends_in_time_for_all():
    good = Candidate(name="good", build=lambda: lambda: None, note="")
    slow, late = (Candidate(name=name, build=sleeping, note="") for name in ("slow", "late"))
    found = compare_sides([good, slow, late], CPU_DEVICE, rounds=6, budget_seconds=1, control="good", build_seconds=0.7)
    assert found.skipped == {
        "slow": "out of time: building it had not ended after 1 s",
        "late": "out of time: 1 s were meant for building all sides",
    }


def test_nothing_takes_the_end_of_time_for_an_error_of_its_own():

    def cautious():
        try:
            sleeping()
        except Exception:
            return "went on without"

    with pytest.raises(OutOfTimeError), time_limit(0.05):
        cautious()
    with time_limit(math.inf):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_gate_without_checks_or_with_a_nan_stays_shut():
    gate = Gate()
    assert not gate.passed
    assert "were not compared" in gate.refusal()
    assert not gate.check("loss", float("nan"), 1.0)
    assert not gate.passed


def test_errors_of_gradients():
    right = {"a": torch.full((100,), 1.0), "b": torch.full((4,), 1e-6)}
    got = {"a": right["a"] * 1.001, "b": right["b"] * 2}
    errors = compare(torch.tensor([1.0, 1.0]), got, torch.tensor([1.0, 2.0]), right)
    assert errors.gradient == pytest.approx(1e-3, rel=1e-3)
    assert errors.loss == pytest.approx(1 / 5**0.5)
    assert (errors.worst_name, errors.worst_tensor) == ("a", pytest.approx(1e-3, rel=1e-3))  # b is next to nothing
    with pytest.raises(ValueError, match="Different parameters"):
        compare(torch.ones(1), {}, torch.ones(1), right)
    with pytest.raises(ValueError, match="Different parameters"):
        compare(torch.ones(1), right, torch.ones(1), {"a": right["a"]})


@pytest.mark.parametrize(("least", "shown"), [(None, None), (1 << 20, None), (100 << 20, {"ours": 0.5})])
def test_the_share_of_a_copy_is_left_out_where_a_cache_holds_the_site(least, shown):
    """50 MB of an H100's cache give more than memory does, past 100 %."""
    seconds = (least or 1) / 1e12
    record = {"least_bytes": least, "milliseconds": {"ours": seconds * 1e3}}
    assert kernels._of_copy(record, 2e12) == shown
    assert kernels._of_copy(record, None) is None


def test_each_h100_has_its_own_peak(monkeypatch):
    for name, peak in (("NVIDIA H100 NVL", 835e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 80GB HBM3", 989e12)):
        monkeypatch.setattr("benchmarks.facts.device_name", lambda _, name=name: name)
        assert datasheet_peak(torch.device("cuda"), "bf16") == peak


@pytest.mark.parametrize("control_holds", [True, False])
def test_a_site_shows_ratios_only_where_its_control_holds(monkeypatch, tmp_path, capsys, control_holds):
    if not control_holds:
        monkeypatch.setattr(timing.Timings, "trustworthy", property(lambda self: False))
    else:
        monkeypatch.setattr(timing, "CONTROL_BAND", (0, 1e9))
    quick = ["--batch", "2", "--rounds", "3", "--seconds", "0.1", "--device", "cpu", "--site", "masked_linear"]
    monkeypatch.setattr(kernels, "CPU_SITES", [kernels.CPU_SITES[0], kernels.CPU_SITES[-1]])
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    assert kernels.main([*quick, "--out", str(tmp_path / "kernels.json")]) == 0
    found, shown = json.loads((tmp_path / "kernels.json").read_text())["rows"], capsys.readouterr().out
    assert [(r["dtype"], r["work"]) for r in found] == [
        (dtype, work) for dtype in ("float32", "bfloat16") for work in ("forward", "forward+backward")
    ]
    rows = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines() if " usual " in line]
    for record in found:
        assert bool(record["usual_by_this"]) == bool(record["printed"]) == control_holds
        assert (record["untrusted"] is None) == control_holds
        assert record["runs_per_reading"] >= 1
    assert ("control failed" in rows[-1][3]) != control_holds
    assert (rows[-1][6] == "-") != control_holds
    assert f"no ratio is shown: {0 if control_holds else 4} of 4" in shown


def test_short_work_is_repeated_up_to_a_millisecond(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(kernels.time, "perf_counter", machine.clock)
    slow, fast = machine.side("slow", 0.01).run, machine.side("fast", 1.7e-4).run
    assert kernels.repeats([slow, fast], lambda: None) == 6
    assert kernels.repeats([slow], lambda: None) == 1


def test_the_processor_clock_does_not_count_waiting() -> None:
    sides = [
        Candidate(name="ours", build=lambda: lambda: time.sleep(0.02), note="waits"),
        Candidate(name="busy", build=lambda: lambda: sum(range(200_000)) and None, note="works"),
    ]
    found = {
        clock: compare_sides(sides, CPU_DEVICE, rounds=6, budget_seconds=5, control="ours", clock=clock)
        for clock in ("wall", "processor")
    }
    assert found["wall"].timings.quantiles("ours")[1] >= 0.02
    assert found["processor"].timings.quantiles("ours")[1] < 0.01
    assert found["processor"].timings.quantiles("busy")[1] > 0
    assert (
        report(found["processor"], Gate(), CPU_DEVICE, ours="ours", units=1, unit="images")[1]["clock"] == "processor"
    )
