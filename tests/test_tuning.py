"""The choice of kernels by measurement: what is kept, what is ignored, who decides, and what is said."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diti_kernels import sites
from diti_kernels.sites import Site
from faults.processes import start_world

from diticli.distributed import PeerMonitor, Rank, join
from diticli.editing.settings import EditSettings
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.errors import ConfigError
from diticli.models import attention, compiled
from diticli.models.compiled import CompiledPart
from diticli.progress import SilentReporter
from diticli.settings import build_config, to_dict
from diticli.training.accelerator import resolve
from diticli.training.rundir import RunDirectory
from diticli.tuning import cache, compiling, graphs, trial, tune
from diticli.tuning.cache import TuningCache, Verdict

CPU = torch.device("cpu")
SITE = Site("masked_linear", "eager", "float32", (4, 10, 7, 11), (True, True, True), ("cumulative", "bias"))
OTHER = SITE._replace(shape=(8, 10, 7, 11))
FASTER = Verdict(site=SITE, way="triton", choice="triton", outcome="right", detail="fine", reference_ms=2.0, way_ms=1.0)
WRONG = Verdict(site=SITE, way="triton", choice="reference", outcome="wrong", detail="value: error 1")


class Heard(SilentReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of one's own, no choices, and a CPU in place of the GPU; Triton counts as installed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in ("DITI_TUNE", "DITI_KERNELS", "DITI_ATTENTION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sites, "MEASURED_DEVICES", ("cpu",))
    monkeypatch.setattr(tune, "_spent", 0.0)
    monkeypatch.setattr(tune, "_installed", lambda way: True)
    cache.environment.cache_clear()
    sites.forget()
    yield
    sites.forget()


def new_cache(heard: Heard, **changes: str) -> TuningCache:
    return TuningCache({"device": "cuda", "gpu": "NVIDIA X", "driver": "580", "torch": "2.13"} | changes, heard)


def test_a_verdict_is_found_again() -> None:
    heard = Heard()
    new_cache(heard).write(FASTER)
    assert new_cache(heard).read(SITE) == FASTER
    assert new_cache(heard).read(OTHER) is None
    assert new_cache(heard).all() == ([FASTER], 0)
    assert heard.warnings == []


@pytest.mark.parametrize(
    "changed",
    [
        {"gpu": "NVIDIA Y"},
        {"capability": "9.1"},
        {"driver": "581"},
        {"torch": "2.14"},
        {"triton": "3.10"},
        {"xformers": "0.0.36"},
        {"sources": "0"},
    ],
)
def test_another_gpu_driver_library_or_source_knows_nothing(changed: dict[str, str]) -> None:
    heard = Heard()
    new_cache(heard).write(FASTER)
    assert new_cache(heard, **changed).read(SITE) is None
    assert new_cache(heard, **changed).all() == ([], 1)
    assert heard.warnings == []


def test_the_environment_of_a_gpu_names_all_that_may_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA X", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    found = cache.environment(torch.device("cuda:1"))
    assert set(found) == {"device", "gpu", "capability", "driver", "torch", "triton", "xformers", "sources"}
    assert (found["gpu"], found["capability"], found["torch"]) == ("NVIDIA X", "9.0", torch.__version__)
    assert found["driver"]


def test_a_change_of_our_kernels_is_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.sources_digest()
    kernels = tmp_path / "diti_kernels"
    shutil.copytree(cache.diti_kernels.__path__[0], kernels, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(cache.diti_kernels, "__path__", [str(kernels)])
    assert cache.sources_digest() == before
    with (kernels / "masked_linear" / "triton_kernels.py").open("a") as file:
        file.write("# changed")
    assert cache.sources_digest() != before


def spoiled(**changes: Any) -> bytes:
    return json.dumps({"format": 1, "environment": new_cache(Heard()).facts, **FASTER.to_dict(), **changes}).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        spoiled()[:-20],
        b"[]",
        b"\xff\xfe",
        b"[" * 10_000,
        spoiled(format=2),
        spoiled(environment=None),
        spoiled(site=None),
        spoiled(site={"operation": "masked_linear"}),
        spoiled(site=SITE._asdict() | {"shape": [1.5]}),
        spoiled(site=OTHER._asdict()),
        spoiled(environment={"gpu": "another"}),
        spoiled(choice="xformers"),
        spoiled(outcome="wrong"),
        spoiled(way_ms=-1),
        spoiled(way_ms="1"),
        spoiled(way_ms=float("nan")),
        spoiled(unknown=1),
        b" " * (cache.LARGEST_FILE + 1),
    ],
)
def test_damaged_and_foreign_files_are_ignored_and_said(content: bytes) -> None:
    heard = Heard()
    path = new_cache(heard).path(SITE)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert new_cache(heard).read(SITE) is None
    assert len(heard.warnings) == 1
    assert str(path) in heard.warnings[0]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    heard = Heard()
    (tmp_path / "cache").write_text("a file")
    new_cache(heard).write(FASTER)
    assert "cannot be kept" in heard.warnings[0]
    assert new_cache(heard).read(SITE) is None


def decide_with(monkeypatch: pytest.MonkeyPatch, heard: Heard, *verdicts: Verdict) -> list[list[Site]]:
    """Trials that end so; returns what was asked of them."""
    asked: list[list[Site]] = []

    def trials(missing: list[Site], *arguments: object) -> Iterator[Verdict]:
        asked.append(list(missing))
        yield from (verdict for verdict in verdicts if verdict.site in missing)

    monkeypatch.setattr(tune, "run_trials", trials)
    return asked


def test_what_is_known_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    asked = decide_with(monkeypatch, heard, FASTER, replace(WRONG, site=OTHER))
    for _ in range(2):
        assert tune.decide([SITE, OTHER], CPU, 10, heard) == {SITE: "triton", OTHER: "reference"}
    assert asked == [[SITE, OTHER]]


def test_tune_0_tries_nothing_and_takes_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    asked = decide_with(monkeypatch, heard, FASTER)
    monkeypatch.setenv("DITI_TUNE", "0")
    assert tune.decide([SITE, OTHER], CPU, tune.tuning_seconds(), heard) == {}
    TuningCache(cache.environment(CPU), heard).write(FASTER)
    assert tune.decide([SITE, OTHER], CPU, tune.tuning_seconds(), heard) == {SITE: "triton"}
    assert asked == []


@pytest.mark.parametrize("text", ["-1", "soon", "nan", "inf"])
def test_a_time_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_TUNE", text)
    with pytest.raises(ConfigError, match="DITI_TUNE"):
        tune.tune(lambda: None, device=CPU, mode="eager")


def test_a_process_spends_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = decide_with(monkeypatch, Heard())
    monkeypatch.setattr(tune.time, "monotonic", iter([0.0, 11.0, 12.0]).__next__)
    tune.decide([SITE], CPU, 10, Heard())
    tune.decide([OTHER], CPU, 10, Heard())
    assert asked == [[SITE]]


def test_who_waits_is_told(
    make_pipeline: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever encodes, by its reporter; whoever samples without one, by the log, which Python writes to stderr."""
    monkeypatch.setattr(tune, "_run_child", lambda *arguments: ([], ""))
    heard, pipeline = Heard(), make_pipeline()
    z = BatchEncoder(pipeline.encoder, "fp32", reporter=heard)(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert heard.notes[0].startswith("Trying ")
    assert "up to 10 s (DITI_TUNE=0 tries none)" in heard.notes[0]
    assert heard.notes[1] == "Tried 0 in 0 s, took 0 that are right and faster; the others are tried the next time."
    assert caplog.messages == []
    pipeline.sampler(precision="fp32").decode(torch.randn(2, 3, 16, 16), z, steps=2)
    assert [message.split()[0] for message in caplog.messages] == ["Trying", "Tried"]
    assert {record.levelname for record in caplog.records} == {"WARNING"}, "INFO is not shown unless asked for"


# Trials in processes of their own


def child(*lines: str) -> list[str]:
    return ["-c", "import os, sys, time, json\njob = json.load(sys.stdin)\n" + "\n".join(lines)]


def begin(index: int) -> str:
    return f"print(json.dumps({{'begin': {index}}}), flush=True)"


def end(index: int, verdict: Verdict) -> str:
    return (
        f"print(json.dumps({{'end': {index}, 'verdict': json.loads({json.dumps(verdict.to_dict())!r})}}), flush=True)"
    )


def trials(heard: Heard, command: list[str], seconds: float = 10, starting: float = 30) -> list[Verdict]:
    found = tune.run_trials([SITE, OTHER], CPU, seconds, heard, program=command, starting=starting)
    return list(found)


def test_verdicts_come_among_other_lines() -> None:
    heard = Heard()
    command = child("print('hello')", begin(0), "print('{}')", end(0, FASTER), begin(1), "print('{\"skip\": 1}')")
    assert trials(heard, command) == [FASTER]
    assert heard.warnings == []


def test_what_cannot_be_tried_is_not_asked_again() -> None:
    heard = Heard()
    skips = [f"print(json.dumps({{'skip': {i}, 'why': 'odd', 'for good': {not i}}}), flush=True)" for i in (0, 1)]
    (found,) = trials(heard, child(begin(0), skips[0], begin(1), skips[1]))
    assert (found.site, found.choice, found.outcome, found.detail) == (SITE, "reference", "failed", "odd")
    assert heard.warnings == []


def test_a_wrong_value_is_reported_with_what_to_send() -> None:
    heard = Heard()
    assert trials(heard, child(begin(0), end(0, WRONG))) == [WRONG]
    assert "WRONG" in heard.warnings[0]
    assert SITE.name in heard.warnings[0]
    assert "diti doctor --json" in heard.warnings[0]


def test_a_kernel_that_ends_its_process_costs_that_site_alone() -> None:
    heard = Heard()
    last = replace(FASTER, site=OTHER)
    command = child(
        "if len(job['sites']) == 2:",
        f"    {begin(0)}",
        "    print('Fatal: illegal access', file=sys.stderr, flush=True)",
        "    os._exit(70)",
        begin(0),
        end(0, last),
    )
    failed, other = trials(heard, command)
    assert (failed.site, failed.choice, failed.outcome) == (SITE, "reference", "failed")
    assert failed.detail == "its process ended with status 70 (Fatal: illegal access)"
    assert other == last
    assert "failed" in heard.warnings[0]


def test_a_kernel_that_hangs_is_ended() -> None:
    heard = Heard()
    (failed,) = trials(heard, child(begin(0), "time.sleep(60)"), seconds=0.1, starting=3.0)
    assert (failed.site, failed.outcome) == (SITE, "failed")
    assert "no answer within 3 s" in failed.detail


def test_trials_that_cannot_start_are_said() -> None:
    heard = Heard()
    assert trials(heard, child("raise RuntimeError('CUDA is busy')")) == []
    assert "CUDA is busy" in heard.warnings[0]


def test_a_process_of_trials_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, where Triton has no device: the kernel fails and the reference runs."""
    heard = Heard()
    (found,) = tune.run_trials([SITE], CPU, 1, heard)
    assert (found.choice, found.outcome) == ("reference", "failed")


# Who decides


class Peers:
    """Two processes, one after the other: the first one's word is heard by the second."""

    said: list[Any]

    def __init__(self, index: int, said: list[Any]) -> None:
        self.rank, self.said = Rank(index=index, count=2), said

    def gather(self, what: str, value: Any) -> list[Any]:
        self.said.append(json.loads(json.dumps(value)))
        return self.said


def use_linear() -> torch.Tensor:
    from diti_kernels.masked_linear import masked_linear

    z, weight, bias = (torch.ones(shape, requires_grad=True) for shape in ((4, 10), (7, 10), (7,)))
    t, visible = torch.zeros(4, dtype=torch.int64), torch.ones(11, 2, dtype=torch.int64)
    return masked_linear(z, t, visible, weight, bias)


def chosen() -> dict[Site, str]:
    return dict(sites._chosen)


def test_the_sites_of_a_network_are_those_it_calls() -> None:
    assert tune.sites_of(use_linear, "eager") == [SITE]
    assert tune.sites_of(use_linear, "compiled") == [SITE._replace(mode="compiled")]


def test_nothing_changes_while_sites_are_looked_for() -> None:
    norm, x = torch.nn.BatchNorm1d(3), torch.randn(4, 3)
    tune.sites_of(lambda: norm(x), "eager")
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.running_var.tolist() == [1, 1, 1]


def test_a_network_that_needs_its_values_runs_by_the_reference() -> None:
    heard = Heard()
    assert tune.sites_of(lambda: torch.ones(3).sum().item() + torch.arange(3).tolist()[0], "eager", heard) == []
    assert heard.notes


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []
    asked = decide_with(monkeypatch, Heard(), FASTER)
    for index in range(2):
        sites.forget()
        tune.tune(use_linear, device=CPU, mode="eager", peers=Peers(index, said))  # type: ignore[arg-type]
        assert chosen() == {SITE: "triton"}
        monkeypatch.setattr(tune, "decide", lambda *arguments: pytest.fail("the second asked by itself"))
    assert len(asked) == 1


def one_of_two(folder: Path) -> None:
    """What each of two real processes does, of which only the first may measure."""
    rank = join(CPU)

    def trials(*arguments: object) -> Iterator[Verdict]:
        assert rank.is_main, "the second asked by itself"
        yield FASTER

    sites.MEASURED_DEVICES = ("cpu",)
    tune._installed, tune.run_trials = lambda way: True, trials
    with PeerMonitor(rank, CPU, SilentReporter()) as peers:
        tune.tune(use_linear, device=CPU, mode="eager", peers=peers, kept=folder / "kernels.json", part="features")
        peers.wait()
    (folder / f"{rank.index}.json").write_text(json.dumps(tune._to_json(chosen())))


def test_two_real_processes_choose_the_same(tmp_path: Path) -> None:
    both = dict.fromkeys(range(2), partial(one_of_two, tmp_path))
    ended = [command.wait() for command in start_world(["--version"], 2, tmp_path, inject=both)]
    assert [e.status for e in ended] == [0, 0], ended[0].text + ended[1].text
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second == json.loads((tmp_path / "kernels.json").read_text())["features"]
    assert [row["choice"] for row in first] == ["triton"]


def test_without_a_way_to_agree_processes_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    decide_with(monkeypatch, Heard(), FASTER)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    tune.tune_alone(use_linear, CPU, "eager", SilentReporter())
    assert chosen() == {}
    monkeypatch.delenv("WORLD_SIZE")
    tune.tune_alone(use_linear, CPU, "eager", SilentReporter())
    assert chosen() == {SITE: "triton"}


def test_a_resumed_run_keeps_what_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, kept = Heard(), tmp_path / "kernels.json"
    decide_with(monkeypatch, heard, FASTER)
    for verdict in (FASTER, WRONG):  # what is known may change meanwhile
        sites.forget()
        TuningCache(cache.environment(CPU), heard).write(verdict)
        tune.tune(use_linear, device=CPU, mode="eager", kept=kept, part="features")
        assert chosen() == {SITE: "triton"}
    sites.forget()
    tune.tune(use_linear, device=CPU, mode="eager", kept=kept, part="base")
    assert chosen() == {SITE: "reference"}
    assert set(json.loads(kept.read_text())) == {"base", "features"}


def test_a_step_takes_the_same_kernels_with_and_without_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the run goes on where nothing is captured, or is now."""
    captured, compiled = SITE._replace(mode="captured"), SITE._replace(mode="compiled")
    decide_with(monkeypatch, Heard(), replace(FASTER, site=captured), replace(WRONG, site=compiled))
    both = {captured: "triton", SITE: "triton"}
    for mode in ("captured", "eager"):
        sites.forget()
        how: dict[str, Any] = {"kept": tmp_path / "kernels.json", "part": "base", "alike": ("eager", "captured")}
        tune.tune(use_linear, device=CPU, mode=mode, **how)
        assert chosen() == both
    tune.tune(use_linear, device=CPU, mode="compiled", alike=("eager", "captured"))
    assert chosen() == both | {compiled: "reference"}


@pytest.mark.parametrize("content", ["", "[]", '{"features": 3}', '{"features": [{"choice": "triton"}]}'])
def test_a_damaged_list_of_a_run_is_said_and_made_anew(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, kept = Heard(), tmp_path / "kernels.json"
    kept.write_text(content)
    decide_with(monkeypatch, heard, FASTER)
    tune.tune(use_linear, device=CPU, mode="eager", kept=kept, part="features", reporter=heard)
    assert chosen() == {SITE: "triton"}
    assert json.loads(kept.read_text())["features"][0]["choice"] == "triton"
    assert "damaged" in heard.warnings[0]


def test_a_named_implementation_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    sites.learn({SITE: "triton"})
    monkeypatch.setenv("DITI_KERNELS", "reference")
    assert tune.sites_of(use_linear, "eager") == []
    use_linear()  # Triton has no device here


# Graphs


def graph_at(
    monkeypatch: pytest.MonkeyPatch, heard: Heard, graph_seconds: float, *, batch: int = 32, guess: bool = False
) -> tuple[bool, list[int]]:
    """Whether a step is captured, and how often it was; eager steps take 10 s."""
    captured: list[int] = []

    class Graph:
        def __init__(self, step: Any, *inputs: torch.Tensor) -> None:
            captured.append(len(inputs[0]))
            if graph_seconds < 0:
                raise RuntimeError("operation not permitted when stream is capturing")

        def __call__(self, *inputs: torch.Tensor) -> str:
            return "graph"

    monkeypatch.setattr(graphs, "StepGraph", Graph)
    monkeypatch.setattr(graphs, "should_capture", lambda x: guess)
    inputs = (torch.zeros(batch, 3, 4, 4),)

    def watch(run: Any, repeats: int) -> float:
        return graph_seconds if run() == "graph" else 10.0

    return graphs.graph_wins(lambda x: x, inputs, "7 weights", watch=watch, reporter=heard), captured


@pytest.mark.parametrize(("seconds", "wins"), [(5.0, True), (9.5, False), (20.0, False)])
def test_a_step_is_captured_where_that_is_faster(seconds: float, wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    for guess in (True, False):
        assert graph_at(monkeypatch, heard, seconds, guess=guess) == (wins, [32] if guess else [])
    assert heard.warnings == []


def test_a_step_that_cannot_be_captured_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    assert graph_at(monkeypatch, heard, -1) == (False, [32])
    assert graph_at(monkeypatch, heard, -1) == (False, [])
    assert "not permitted" in heard.warnings[0]


@pytest.mark.parametrize("guess", [True, False])
def test_graphs_that_are_not_measured_are_guessed(guess: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_TUNE", "0")
    assert graph_at(monkeypatch, Heard(), 1.0, guess=guess) == (guess, [])
    monkeypatch.delenv("DITI_TUNE")
    assert graph_at(monkeypatch, Heard(), 1.0, guess=guess, batch=graphs.LARGEST_TRIED + 1) == (guess, [])


# Attention and compiled parts

ATTENTION = Site("attention", "eager", "float32", (4, 16, 16, 2, 8), (True, True, True), ())


@pytest.mark.parametrize(
    ("factor", "seconds", "choice", "outcome"),
    [(1.0, 1.0, "xformers", "right"), (1.0, 2.0, "reference", "right"), (1.01, 1.0, "reference", "wrong")],
)
def test_xformers_is_taken_where_it_is_right_and_faster(
    factor: float, seconds: float, choice: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    def operator(*qkv: torch.Tensor) -> torch.Tensor:
        ran.append(1)
        return attention._attend_math(*qkv) * factor

    monkeypatch.setitem(attention._OPERATORS, "xformers", operator)
    monkeypatch.setattr(trial, "runner", lambda site, inputs, way: lambda: way)
    verdict = trial.try_site(ATTENTION, CPU, lambda run, n: {"reference": 2.0, "xformers": seconds}[run()])
    assert (verdict.choice, verdict.outcome) == (choice, outcome), verdict.detail
    assert ran
    ran.clear()
    sites.learn({ATTENTION: verdict.choice})
    qkv = [torch.ones(3, 16, 2, 8, requires_grad=True) for _ in range(3)]
    attention.attend(*qkv)
    assert bool(ran) == (choice == "xformers")
    monkeypatch.setenv("DITI_ATTENTION", "sdpa")
    ran.clear()
    attention.attend(*qkv)
    assert not ran


def test_compiled_parts_show_their_sites_without_being_compiled() -> None:
    heard = Heard()
    part = CompiledPart("part", lambda x: use_linear() + x, heard)
    assert tune.sites_of(lambda: part(torch.ones(4, 7)), "compiled", heard) == [SITE._replace(mode="compiled")]
    assert heard.warnings == heard.notes == []


# Compiling


def compiled_at(seconds: float, heard: Heard, cost: float = 60.0) -> float | None:
    """Calls from which a part is compiled whose plain call takes 2 s."""
    site = compiling.part_site("encoding", 100, 64, "bf16", 7)
    times, clock = {"plain": 2.0, "compiled": seconds}, iter([0.0, cost])

    def compiled() -> str:
        if seconds < 0:
            raise RuntimeError("no compiler")
        return "compiled"

    compiling.try_compiling(
        site, lambda: "plain", compiled, CPU, heard, watch=lambda run, n: times[run()], clock=lambda: next(clock)
    )
    assert compiling.compiled_from(site._replace(dtype="fp32"), CPU) is None
    return compiling.compiled_from(site, CPU)


@pytest.mark.parametrize(("seconds", "calls"), [(1.0, 120), (1.5, 240), (1.9, math.inf), (3.0, math.inf)])
def test_compiling_pays_from_twice_the_calls_that_win_it_back(seconds: float, calls: float) -> None:
    heard = Heard()
    assert compiled_at(seconds, heard) == pytest.approx(calls)
    assert compiled_at(0.1, heard) == pytest.approx(calls), "what is known is not measured again"


def test_what_cannot_be_compiled_never_pays() -> None:
    heard = Heard()
    assert compiled_at(-1, heard) == math.inf
    assert "no compiler" in heard.warnings[0]


def test_the_measured_numbers_decide_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITI_LAYOUT", "contiguous")  # float32 in channels_last is never compiled on a CPU
    config = build_config("faces64", options={"precision": "fp32", "device": "cpu"})
    plain = resolve(config)
    site = compiling.training_site(plain)
    assert plain.compile is True, "15,626 steps, from 5,000 on"
    with monkeypatch.context() as gpu:
        gpu.setattr(compiled, "CAPTURED_DEVICES", ("cpu",))
        assert resolve(config).compile is False, "nobody compared it with a CUDA graph"
        beside = compiling.training_site(plain, captures=True)
        faster = replace(FASTER, site=beside, way="compiled", choice="compiled", cost_s=1.0)
        TuningCache(cache.environment(CPU), Heard()).write(faster)
        assert resolve(config).compile is True, "somebody did"
    slower = Verdict(site=site, way="compiled", choice="reference", outcome="right", detail="", cost_s=9.0)
    TuningCache(cache.environment(CPU), Heard()).write(slower)
    assert resolve(config).compile is False
    assert EditSettings().should_compile("cuda", 10, 10.0)
    assert not EditSettings().should_compile("cuda", 10**9, math.inf)
    monkeypatch.setattr(sites, "MEASURED_DEVICES", ())
    assert resolve(config).compile is True


def test_a_resumed_run_is_compiled_as_it_began(tmp_path: Path) -> None:
    asked = build_config("faces32")
    resolved, run = replace(asked, compile=False), RunDirectory(tmp_path)
    assert run.compiled_as_begun(asked, resolved).compile is False
    run.root.joinpath("config.json").write_text(
        json.dumps({"config": to_dict(replace(asked, compile=True)), "data": {}})
    )
    assert run.compiled_as_begun(asked, resolved).compile is True
    assert run.compiled_as_begun(resolved, resolved).compile is False


def test_each_part_has_a_site_of_its_own(make_pipeline: Any) -> None:
    pipeline = make_pipeline()
    encoding = compiling.encoding_site(pipeline.encoder, 100, "bf16")
    sampling = compiling.sampling_site(pipeline.unet, pipeline.shift_decoder, 3, 16, torch.bfloat16)
    assert encoding.shape == (128, 16)
    assert sampling.shape == (4, 16)
    assert encoding.options != sampling.options
