"""Choose how a network's operations run on a GPU: by what is known of this machine, else by trying.

    tune(lambda: network(x), device=x.device, mode="eager", reporter=reporter)

`DITI_TUNE` is the number of seconds that a process may spend on trying, 10 by default; with 0 nothing is tried, and
only what is known counts. Where DITI_KERNELS and DITI_ATTENTION name a way, there is nothing to choose.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diti_kernels.sites import Mode, Site, is_measured, learn, recording

from diticli.distributed import PeerMonitor, Rank
from diticli.errors import ConfigError
from diticli.files import write_atomically
from diticli.progress import Reporter, SilentReporter
from diticli.reading import parse_json, quoted, read_regular
from diticli.tuning.cache import REFERENCE, TuningCache, Verdict, environment
from diticli.tuning.trial import LEAST_GAIN, way_of

VARIABLE = "DITI_TUNE"
SECONDS = 10.0
STARTING_SECONDS = 60.0
"""How long a process of trials may take beyond its time: to start, and to end the site that it is at."""
MOST_CRASHES = 3
REPORT_TO = "Please report it with the output of `diti doctor --json`."
PROGRAM = ("-m", "diticli.tuning.trial")
_spent = 0.0
"""Seconds that this process spent on trying."""


def tune(
    function: Callable[[], object],
    *,
    device: torch.device,
    mode: Mode,
    reporter: Reporter | None = None,
    peers: PeerMonitor | None = None,
    kept: Path | None = None,
    part: str = "",
    fake: bool = True,
    alike: Collection[Mode] = (),
) -> None:
    """Choose the ways of all operations that `function` calls, before the work begins.

    Args:
        function: calls the network; where it wants gradients, so do its sites.
        device: where it will run; nothing happens on a CPU.
        mode: how it will run.
        reporter: warned of ways that are wrong or fail.
        peers: the processes that run it together: the first one decides. All must call this.
        kept: file of the choices that a run began with, which it keeps, by `part`.
        part: of that run.
        fake: call it with fake tensors: a training step changes batch norm and takes memory.
        alike: modes in which the same ways are taken, whichever of them was tried.

    Raises:
        ConfigError: when DITI_TUNE is no number of seconds.
        DataError: when `kept` cannot be written.
    """
    seconds = tuning_seconds()
    if not is_measured(device.type):
        return
    reporter, main = reporter or SilentReporter(), peers is None or peers.rank.is_main
    choices: dict[Site, str] | None = None
    if main:
        choices = _read_kept(kept, part, reporter) if kept is not None else None
        if choices is None:
            choices = decide(sites_of(function, mode, reporter, fake=fake), device, seconds, reporter)
            if kept is not None:
                _write_kept(kept, part, choices)
    if peers is not None:
        choices = _from_json(peers.gather("tuning", _to_json(choices or {}))[0])
    found = choices or {}
    for site, way in found.items():
        learn({site._replace(mode=other): way for other in alike if site.mode in alike})
    learn(found)


def tune_alone(function: Callable[[], object], device: torch.device, mode: Mode, reporter: Reporter) -> None:
    """As `tune` for inference, which one real call shows sooner than fake tensors. The reporter hears of the pause.

    Where a launcher started other processes, which could choose otherwise, the reference runs.
    """
    if Rank.from_environment().count == 1:
        tune(function, device=device, mode=mode, reporter=reporter, fake=False)


def tuning_seconds() -> float:
    """What DITI_TUNE says.

    Raises:
        ConfigError: when it is no number of seconds.
    """
    text = os.environ.get(VARIABLE, "").strip()
    try:
        seconds = float(text) if text else SECONDS
    except ValueError:
        seconds = -1
    if not 0 <= seconds < math.inf:
        raise ConfigError(
            f"{VARIABLE}={quoted(text)} is no number of seconds.", remedy="Set 0 to try nothing, or unset it."
        )
    return seconds


def sites_of(
    function: Callable[[], object], mode: Mode, reporter: Reporter | None = None, *, fake: bool = True
) -> list[Site]:
    """The sites at which `function` calls operations, those that move most values first.

    With fake tensors nothing is computed, and nothing changes but buffers that count by themselves.
    """
    with recording(mode) as sites:
        if fake:
            _call_with_fakes(function, reporter or SilentReporter())
        else:
            function()
    return sorted(sites, key=lambda site: sites[site] * math.prod(site.shape), reverse=True)


def _call_with_fakes(function: Callable[[], object], reporter: Reporter) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True):
            function()
    except Exception as error:  # the reference runs wherever this did not come
        text = (str(error).strip().splitlines() or [""])[0][:200]
        reporter.note(f"Kernels are not chosen for all of the network, as no fake tensor runs through it: {text}")


def decide(sites: Sequence[Site], device: torch.device, seconds: float, reporter: Reporter) -> dict[Site, str]:
    """The way at each site: what is known of it; else what a trial says, if there is time; else the reference.

    Args:
        sites: in order of their weight.
        device: where they run.
        seconds: for trials, of the whole process.
        reporter: warned of ways that are wrong or fail.
    """
    global _spent
    cache = TuningCache(environment(indexed(device)), reporter)
    known = {site: verdict for site in sites if (verdict := cache.read(site)) is not None}
    missing = [site for site in sites if site not in known and _installed(way_of(site))]
    left, started = seconds - _spent, time.monotonic()
    if missing and left > 0:
        found = []
        for verdict in run_trials(missing, device, left, reporter):
            found.append(verdict)
            cache.write(verdict)
        took = time.monotonic() - started
        _spent += took
        known |= {verdict.site: verdict for verdict in found}
        faster = sum(verdict.choice != REFERENCE for verdict in found)
        rest = "; the others are tried the next time" if len(found) < len(missing) else ""
        reporter.note(f"Tried {len(found)} in {took:.0f} s, took {faster} that are right and faster{rest}.")
    return {site: verdict.choice for site, verdict in known.items()}


def run_trials(
    sites: Sequence[Site],
    device: torch.device,
    seconds: float,
    reporter: Reporter,
    *,
    program: Sequence[str] = PROGRAM,
    starting: float = STARTING_SECONDS,
) -> Iterator[Verdict]:
    """Verdicts on the sites that were tried in so many seconds, in processes of their own."""
    left, started, crashes = list(sites), time.monotonic(), 0
    reporter.note(f"Trying {len(left)} kernels on this GPU, once: up to {seconds:.0f} s ({VARIABLE}=0 tries none) ...")
    while left and crashes < MOST_CRASHES:
        rest = seconds - (time.monotonic() - started)
        if rest <= 0:
            return
        events, end = _run_child(left, device, rest, program, starting)
        unfinished = None
        for event in events:
            if "begin" in event:
                unfinished = left[event["begin"]]
            else:
                unfinished = None
            if "verdict" in event:
                verdict = Verdict.from_dict(event["verdict"])
                _say(verdict, reporter)
                yield verdict
            elif event.get("for good"):  # else each command would start a process for it
                site, why = left[event["skip"]], str(event["why"])
                yield Verdict(site=site, way=way_of(site), choice=REFERENCE, outcome="failed", detail=why)
        if unfinished is None:
            if not events and end:
                reporter.warn(f"No kernel could be tried: {end}. The reference runs.")
            return
        crashes += 1
        failed = Verdict(site=unfinished, way=way_of(unfinished), choice=REFERENCE, outcome="failed", detail=end)
        _say(failed, reporter)
        yield failed
        left = left[left.index(unfinished) + 1 :]


def _run_child(
    sites: Sequence[Site], device: torch.device, seconds: float, program: Sequence[str], starting: float
) -> tuple[list[dict[str, Any]], str]:
    """Events of one process of trials, and in words how it ended where that was not well."""
    job = {"sites": [site._asdict() for site in sites], "device": str(indexed(device)), "until": time.time() + seconds}
    with (
        tempfile.TemporaryFile("w+") as events,
        tempfile.TemporaryFile("w+") as errors,
        tempfile.TemporaryDirectory(prefix="diti-tune-") as folder,
    ):
        process = subprocess.Popen(
            [sys.executable, "-P", *program],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=events,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        try:
            process.communicate(json.dumps(job), timeout=seconds + starting)
            end = "" if process.returncode == 0 else f"its process ended with status {process.returncode}"
        except subprocess.TimeoutExpired:
            end = f"no answer within {seconds + starting:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the compilers that it started
            process.wait()
        events.seek(0)
        errors.seek(0)
        last = ([line.strip() for line in errors.read().splitlines() if line.strip()] or [""])[-1][:200]
        return list(_events(events)), f"{end} ({last})" if end and last else end


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events among lines that libraries may have written as well."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and {"begin", "end", "skip"} & event.keys():
            yield event


def _say(verdict: Verdict, reporter: Reporter) -> None:
    what = f"The {verdict.way} version of {verdict.site.name}"
    if verdict.outcome == "wrong":
        reporter.warn(f"{what} is WRONG on this GPU ({verdict.detail}); the reference runs. {REPORT_TO}")
    elif verdict.outcome == "failed":
        reporter.warn(f"{what} failed ({verdict.detail}); the reference runs.")


def describe(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.ratio is None:
        return f"{verdict.choice}: {verdict.way} {verdict.outcome} ({verdict.detail})"
    times = f"reference {verdict.reference_ms:.4g} ms, {verdict.way} {verdict.way_ms:.4g} ms, {verdict.ratio:.2f} times"
    return f"{verdict.choice}: {times} as fast (taken from {LEAST_GAIN}), {verdict.outcome} ({verdict.detail})"


def indexed(device: torch.device) -> torch.device:
    """The device with its number."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _installed(way: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(way) is not None


def _to_json(choices: dict[Site, str]) -> list[dict[str, Any]]:
    return [{**site._asdict(), "choice": choice} for site, choice in choices.items()]


def _from_json(items: list[dict[str, Any]]) -> dict[Site, str]:
    return {Site.from_dict({k: v for k, v in item.items() if k != "choice"}): str(item["choice"]) for item in items}


def _read_kept(path: Path, part: str, reporter: Reporter) -> dict[Site, str] | None:
    try:
        return _from_json(parse_json(read_regular(path))[part])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if not isinstance(error, KeyError):
            reporter.warn(f"{path} is damaged ({str(error)[:120]}): the kernels are chosen anew.")
        return None


def _write_kept(path: Path, part: str, choices: dict[Site, str]) -> None:
    try:
        kept = parse_json(read_regular(path))
    except (OSError, ValueError, RecursionError):
        kept = {}
    text = json.dumps({**(kept if isinstance(kept, dict) else {}), part: _to_json(choices)}, indent=1)
    write_atomically(path, "kernels' choices", f"{text}\n")
