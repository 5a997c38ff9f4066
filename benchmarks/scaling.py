"""How the cost of encoding grows with the number of images.

    python -m benchmarks.scaling --out benchmarks/results/scaling.json            # 10^4 and 10^5 images
    python -m benchmarks.scaling --sizes 10000 100000 1000000                     # --large adds 10^6

Generated tars of JPEGs of 16 px, a tiny encoder, shards of 10,000 images: what is left is the work around the network,
which is the same for a large one. Each size runs in a process of its own, one after the other. A figure per image that
does not grow with the size is linear cost; memory per image must be that of the tars' index and nothing else. Rates by
wall time depend on what else runs on the machine, those by processor time hardly.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import shlex
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from benchmarks.children import run_python
from benchmarks.facts import collect, write
from benchmarks.table import render
from diticli.data.images import FaceImages, TarImages
from diticli.data.labels import LabelColumn
from diticli.encoding.batch_encoder import BatchEncoder
from diticli.encoding.encode import encode_images
from diticli.features.read import FeatureMeta, read_features
from diticli.features.rows import ShardedRows
from diticli.models.encoder import SemanticEncoder
from diticli.probing.probe import probe_features
from diticli.progress import SilentReporter

SIDE = 16
DIM = 64
PER_TAR = 10_000
SHARD = 10_000
DISTINCT = 256
SIZES = (10_000, 100_000)
LARGE = 1_000_000
QUIET = 1.5
"""Load average up to which nothing else was running."""
_Result = TypeVar("_Result")
_MIB = 2**20


def write_tars(folder: Path, count: int) -> list[Path]:
    """Tars of `PER_TAR` numbered JPEGs; pictures repeat, names do not."""
    faces = FaceImages(DISTINCT, 0, 32)
    pictures = [_jpeg(faces.load(index)) for index in range(min(DISTINCT, count))]
    paths = []
    for start in range(0, count, PER_TAR):
        paths.append(folder / f"{start // PER_TAR:05d}.tar")
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(start, min(start + PER_TAR, count)):
                entry = tarfile.TarInfo(f"{index:09d}.jpg")
                entry.size = len(pictures[index % len(pictures)])
                tar.addfile(entry, io.BytesIO(pictures[index % len(pictures)]))
                tar.members = []  # type: ignore[attr-defined]  # kept, they would take a kilobyte each
    return paths


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).resize((SIDE, SIDE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


class Memory(SilentReporter):
    """Resident memory, sampled while images advance."""

    def __init__(self, images: int, samples: int = 20) -> None:
        self._step, self._done, self._next = max(1, images // samples), 0, 0
        self.samples: list[int] = []

    def advance(self, amount: int = 1, **fields: str | float) -> None:
        """See `Reporter.advance`."""
        self._done += amount
        if self._done >= self._next:
            self.samples.append(resident())
            self._next += self._step


def resident() -> int:
    """Bytes of this process's memory that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measured(work: Callable[[], _Result], images: int) -> tuple[_Result, dict[str, float]]:
    """What `work` gives, and time and memory per image; the peak counts from here on."""
    Path("/proc/self/clear_refs").write_text("5")
    before, wall, processor = resident(), time.perf_counter(), time.process_time()
    result = work()
    seconds, busy = time.perf_counter() - wall, time.process_time() - processor
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) * 1024
    return result, {
        "seconds": seconds,
        "images_per_second": images / seconds,
        "images_per_cpu_second": images / busy,
        "peak_mib": peak / _MIB,
        "growth_mib": (resident() - before) / _MIB,
        "peak_growth_mib": (peak - before) / _MIB,
    }


def measure_here(folder: Path) -> dict[str, Any]:
    """Open, encode, read and probe the tars of `folder`, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = BatchEncoder(SemanticEncoder(SIDE, 3, (8, 8), DIM, 8, 2, 4), "fp32")
    tars = sorted(folder.glob("*.tar"))
    _warm(encoder, tars[0])
    count = len(TarImages(tars[:1], SIDE)) * (len(tars) - 1) + len(TarImages(tars[-1:], SIDE))
    source, opened = measured(lambda: TarImages(tars, SIDE), count)
    memory = Memory(count)
    options: dict[str, Any] = {
        "meta": FeatureMeta(files=(), model="random"),
        "shard_size": SHARD,
        "workers": 0,
        "reporter": memory,
    }
    encode = functools.partial(encode_images, encoder, source, folder / "feats", **options)
    _, encoded = measured(encode, count)
    del source, encode
    features = read_features(folder / "feats")
    assert isinstance(features.values, ShardedRows)
    assert len(features.values) == count
    first, read = measured(lambda: _read_all(features.values), count)
    # Two attributes that features tell with errors; what counts is memory and time.
    noise = np.random.default_rng(0).normal(size=(2, count)).astype(np.float32)
    columns = {f"a{i}": LabelColumn("binary", (first + first.std() * noise[i] > first.mean()) * 1.0) for i in range(2)}
    _, probed = measured(lambda: probe_features(features.values, columns), count)
    return {
        "images": count,
        "tars": len(tars),
        "open": opened,
        "encode": encoded,
        "encode_resident_mib": [sample / _MIB for sample in memory.samples],
        "read": read,
        "probe": probed,
    }


def _warm(encoder: BatchEncoder, tar: Path) -> None:
    """The first batches, so that libraries and allocators have what they keep."""
    images = TarImages([tar], SIDE)
    batch = torch.from_numpy(np.stack([images.load(i) for i in range(128)])).permute(0, 3, 1, 2)
    for size in (128, 128, 16):
        encoder(batch[:size])


def _read_all(values: Any) -> np.ndarray:
    """The first column [N], by blocks of rows."""
    return np.concatenate([values[start : start + 4096][:, 0] for start in range(0, len(values), 4096)])


def measure_apart(count: int, parent: Path) -> dict[str, Any]:
    """`measure_here` in a new process."""
    with tempfile.TemporaryDirectory(dir=parent) as temporary:
        folder = Path(temporary)
        write_tars(folder, count)
        load = [os.getloadavg()[0]]
        done = run_python(["-m", "benchmarks.scaling", "--here", str(folder.resolve())])
        load.append(os.getloadavg()[0])
    if done.returncode:
        raise RuntimeError(f"{shlex.join(done.args)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"load_average_before_and_after": load}


def note_on_load(results: list[dict[str, Any]]) -> str:
    """What rates by wall time are worth; this benchmark alone is a load of 1."""
    highest = max(max(result["load_average_before_and_after"]) for result in results)
    if highest < QUIET:
        return "The machine was quiet."
    return (
        f"Other work ran beside it (load average up to {highest:.1f} on {os.cpu_count()} cores; niceness "
        f"{os.nice(0)}): rates by wall time are lower bounds. Peak memory does not depend on it."
    )


def table(results: list[dict[str, Any]]) -> str:
    """One row per size."""
    headers = ["images", "open CPU us/image", "index B/image", "encode images/s", "per CPU second", "encode peak MiB"]
    headers += ["RSS first..last tenth MiB", "read images/s", "probe s", "probe growth MiB"]
    rows = []
    for result in results:
        count, samples = result["images"], result["encode_resident_mib"]
        tenth = max(1, len(samples) // 10)
        drift = f"{np.mean(samples[1 : 1 + tenth]):.0f}..{np.mean(samples[-tenth:]):.0f}"
        rows.append(
            [
                f"{count:,}",
                1e6 / result["open"]["images_per_cpu_second"],
                result["open"]["growth_mib"] * _MIB / count,
                result["encode"]["images_per_second"],
                result["encode"]["images_per_cpu_second"],
                result["encode"]["peak_mib"],
                drift,
                result["read"]["images_per_second"],
                result["probe"]["seconds"],
                result["probe"]["peak_growth_mib"],
            ]
        )
    return render(headers, rows)


def main() -> None:
    """Measure the sizes, print the table, write the JSON after each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--large", action="store_true", help=f"{LARGE:,} images as well: 1.5 GB of tars")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the tars go")
    parser.add_argument("--out", type=Path, default=None, help="JSON file")
    parser.add_argument("--here", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps(measure_here(options.here)))
        return
    facts = collect(torch.device("cpu")) | {"command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]])}
    results: list[dict[str, Any]] = []
    for count in [*options.sizes, *([LARGE] if options.large else [])]:
        results.append(measure_apart(count, options.folder))
        print(table(results), flush=True)
        if options.out is not None:
            note = {"what": "cost of encoding by number of images", "note": note_on_load(results)}
            write(options.out, {**note, **facts, "sizes": results})


if __name__ == "__main__":
    main()
