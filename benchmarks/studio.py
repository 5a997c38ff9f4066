"""How fast `diti studio` answers, and whether many visitors at once are served without an error.

    python -m benchmarks studio --out benchmarks/results/DATE-cpu-studio.json

Starts the studio as a user does, in a process of its own, and visits it as a page does: over HTTP, through the queue.
A change of chunks or alpha of two pictures that were seen before gives a preview, then the full picture; both times
are taken at the visitor, so they hold the queue, the files and the transfer, but not what a browser draws. Then
`--visitors` come at once, each with pictures of its own, and make `--each` changes.

Seconds by the clock depend on what else runs on the machine; the processor seconds of the studio (of all its threads)
less. How much of the machine others used meanwhile stands beside both.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import PACKAGES, started_python
from benchmarks.facts import collect, write
from benchmarks.table import render
from benchmarks.timing import quantile
from diticli.errors import ConfigError

TARGETS = {"preview": 0.5, "full": 2.0}
"""Seconds within which a change shows, on two CPU cores with the shipped model."""
_START_SECONDS, _ANSWER_SECONDS = 180.0, 600.0
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One change, in seconds since it was made.

    Attributes:
        preview: until the preview was there; equal to `full` where there was none.
        full: until the full picture was there.
        processor: processor seconds of the studio meanwhile, all threads; of other visitors too.
        place: in the queue, the farthest that the page was shown; 0 is next.
    """

    preview: float
    full: float
    processor: float
    place: int


@contextmanager
def running_studio(
    arguments: Sequence[str], folder: Path | None = None, packages: Sequence[Path] = PACKAGES
) -> Iterator[tuple[str, int]]:
    """Address and process id of a studio that runs until the block ends.

    Args:
        arguments: of Python.
        folder: where it runs; None for an empty one.
        packages: folders that it imports from first.

    Raises:
        ConfigError: when it does not start.
    """
    said: list[str] = []
    with started_python(["-u", *arguments], folder=folder, packages=packages, stderr=subprocess.STDOUT) as (
        studio,
        lines,
    ):
        try:
            timer = threading.Timer(_START_SECONDS, studio.kill)
            timer.start()
            for line in lines:
                said.append(line)
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise ConfigError(
                    "The studio did not start: " + "".join(said[-5:]), remedy="Run `diti studio` by hand."
                )
            timer.cancel()
            threading.Thread(target=lines.read, daemon=True).start()  # nobody else empties the pipe
            yield found[0], studio.pid
        finally:
            studio.terminate()
            try:
                studio.wait(30)
            except subprocess.TimeoutExpired:
                studio.kill()


def processor_seconds(pid: int) -> float:
    """Of a process and all its threads since it began."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def resident_mib(pid: int) -> float:
    """Memory of a process in MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def machine_busy() -> float:
    """Processor seconds that the whole machine has worked."""
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICK  # without idle and waiting for disks


class Visitor:
    """A page of its own, as the server sees it.

    Args:
        address: of the studio.
    """

    def __init__(self, address: str) -> None:
        import httpx

        self.session = uuid.uuid4().hex
        self._http = httpx.Client(base_url=address, timeout=_ANSWER_SECONDS)
        known = self._http.get("/config").raise_for_status().json()["dependencies"]
        self._exchange = next(one["id"] for one in known if one["api_name"] == "exchange")

    def upload(self, path: Path) -> dict[str, Any]:
        """What the page hands in for an uploaded file."""
        with path.open("rb") as file:
            answer = self._http.post("/gradio_api/upload", files={"files": (path.name, file)}).raise_for_status()
        return {"path": answer.json()[0], "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    def exchange(self, *values: Any) -> Iterator[dict[str, Any]]:
        """The messages of the queue about one exchange, as they come; the values as the page's inputs."""
        request = {"data": [*values, 0], "fn_index": self._exchange, "session_hash": self.session}
        self._http.post("/gradio_api/queue/join", json=request).raise_for_status()
        with self._http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                yield message
                if message.get("msg") in ("process_completed", "close_stream", "unexpected_error"):
                    return


def change(visitor: Visitor, pid: int, faces: tuple[str, str], chunks: str, alpha: float) -> Answer:
    """Ask for one exchange, and take the times of preview and full picture.

    Raises:
        RuntimeError: for an answer that is an error, or holds no pictures of this change.
    """
    a, b = faces
    before, start = processor_seconds(pid), time.perf_counter()
    times, first, places = [], [], [0]
    for message in visitor.exchange(None, a, None, b, chunks, alpha, "keep", False):
        if message.get("msg") == "estimation":
            places.append(message["rank"])
        if message.get("msg") == "process_generating":
            times.append(time.perf_counter() - start)
            first = first or message["output"]["data"]
    command = f"diti edit {a} {b} --chunks {chunks} --alphas {alpha:.2f}"
    if not message.get("success") or not first or not first[-1].startswith(command) or not all(first[:6]):
        raise RuntimeError(f"asked for {command}, got {first[-1:] or message}")
    return Answer(preview=times[0], full=times[-1], processor=processor_seconds(pid) - before, place=max(places))


def random_change(chance: random.Random, chunks: int) -> tuple[str, float]:
    """Chunks and an alpha above 0, which decodes."""
    low, high = sorted(chance.sample(range(chunks), 2))
    return f"{low}-{high}", chance.randint(1, 20) / 20


def one_visitor(address: str, pid: int, count: int, chunks: int, seed: int = 0) -> list[Answer]:
    """`count` changes, one after another, of two pictures that were seen before."""
    visitor, chance, faces = Visitor(address), random.Random(seed), ("faces:3", "faces:8")
    change(visitor, pid, faces, *random_change(chance, chunks))  # inverts both
    return [change(visitor, pid, faces, *random_change(chance, chunks)) for _ in range(count)]


def many_visitors(address: str, pid: int, visitors: int, each: int, chunks: int) -> tuple[list[Answer], list[str]]:
    """The answers to all visitors, who come at once, and every error that one of them saw."""
    answers: list[Answer] = []
    errors: list[str] = []
    gate = threading.Barrier(visitors)

    def run(index: int) -> None:
        chance = random.Random(index)
        try:
            visitor = Visitor(address)
            gate.wait(_START_SECONDS)
            for _ in range(each):
                faces = f"faces:{2 * index}", f"faces:{2 * index + 1}"
                answers.append(change(visitor, pid, faces, *random_change(chance, chunks)))
        except Exception as error:  # whatever it is, it is what the visitor would see
            gate.abort()
            errors.append(f"visitor {index}: {type(error).__name__}: {error}")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, errors


@contextmanager
def beside(pid: int, facts: dict[str, Any]) -> Iterator[None]:
    """Put into `facts` how long the block took, and how many cores the studio and everybody else used meanwhile."""
    start, busy, own = time.perf_counter(), machine_busy(), processor_seconds(pid)
    yield
    wall = time.perf_counter() - start
    used = (processor_seconds(pid) - own) / wall
    facts |= {
        "wall_seconds": wall,
        "cores_of_the_studio": used,
        "cores_of_others": max(0.0, (machine_busy() - busy) / wall - used),  # the visitors too
        "memory_mib": resident_mib(pid),
    }


def summary(answers: Sequence[Answer]) -> dict[str, Any]:
    """Median, 95 % quantile and share within the target of each time."""
    times = {name: [getattr(answer, name) for answer in answers] for name in ("preview", "full", "processor")}
    found: dict[str, Any] = {}
    for name, seconds in times.items():
        found[name] = {"p50": quantile(seconds, 0.5), "p95": quantile(seconds, 0.95), "most": max(seconds)}
        if name in TARGETS:
            found[name]["within_target"] = sum(value <= TARGETS[name] for value in seconds) / len(seconds)
    return found


def table(result: dict[str, Any]) -> str:
    """What was measured, in rows."""
    rows = []
    for part in ("changes", "visitors"):
        for name, found in result[part].get("seconds", {}).items():
            share = found.get("within_target")
            within = "" if share is None else f"{share:.0%} within {TARGETS[name]:g} s"
            rows.append([part, name, *(f"{found[key]:.2f}" for key in ("p50", "p95", "most")), within])
    lines = [render(["", "seconds", "p50", "p95", "most", "target"], rows)]
    for part in ("changes", "visitors"):
        facts = result[part]
        lines.append(
            f"{part}: {facts['count']} answers in {facts['wall_seconds']:.0f} s, {len(facts['errors'])} errors; cores "
            f"used by the studio {facts['cores_of_the_studio']:.2f}, by others {facts['cores_of_others']:.2f}; "
            f"memory {facts['memory_mib']:.0f} MiB"
        )
    return "\n".join([*lines, *result["visitors"]["errors"]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options beside --out."""
    parser.add_argument("--model", default=None, help="default: the shipped model")
    parser.add_argument("--changes", type=int, default=100, help="of one visitor")
    parser.add_argument("--visitors", type=int, default=20, help="at once")
    parser.add_argument("--each", type=int, default=3, help="changes of each of them")


def main(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    from diticli.models.load import load_model

    model = options.model or "shipped"
    chunks = load_model(model, "cpu").chunks.chunks
    result: dict[str, Any] = {"what": "answers of the studio", **collect(torch.device("cpu")), "targets": TARGETS}
    with running_studio(["-m", "diticli", "studio", "--no-browser", "--model", model]) as (address, pid):
        alone: dict[str, Any] = {"errors": []}
        with beside(pid, alone):
            answers = one_visitor(address, pid, options.changes, chunks)
        alone |= {"count": len(answers), "seconds": summary(answers), "answers": [asdict(answer) for answer in answers]}
        many: dict[str, Any] = {"visitors": options.visitors}
        with beside(pid, many):
            answers, errors = many_visitors(address, pid, options.visitors, options.each, chunks)
        many |= {"count": len(answers), "errors": errors, "seconds": summary(answers) if answers else {}}
        many["seconds"].pop("processor", None)  # of all visitors together: says nothing of one answer
    result |= {"changes": alone, "visitors": many, "load_average_at_end": os.getloadavg()[0]}
    print(table(result))
    if options.out is not None:
        write(options.out, result)
    if errors:
        raise SystemExit(1)
