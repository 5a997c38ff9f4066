"""Which versions of each dependency work: the oldest and the newest that pyproject.toml allows, one at a time.

`python -m benchmarks.experiments.versions [--only typer pillow] [--out FILE.json]`

Each version gets a fresh environment in front of this one. pip resolves the project's dependencies with that version
pinned; what cannot stay as it is in this environment is installed there, and everything else is taken from here. In it
run `diti --help`, a tiny train, encode, probe and edit on the built-in data, and the tests named in `TESTS`. PyTorch is
left out unless it is named in --only: where no CPU build is at hand, one version takes several GB.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from benchmarks.children import run_python

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = ("hdf5", "lmdb", "metrics", "studio", "tiff")
TESTS = {
    "accelerate": "test_training.py::test_tensorboard_shows_each_step_once_after_a_resume",
    "diffusers": "test_unet.py test_pipeline_files.py",
    "filelock": "test_files.py",
    "gradio": "test_studio.py",
    "h5py": "test_array_images.py",
    "huggingface-hub": "test_base_files.py",
    "jinja2": "test_report.py",
    "lmdb": "test_lmdb_images.py",
    "matplotlib": "test_pictures.py",
    "numpy": "test_features.py test_linear.py",
    "pillow": "test_faces.py test_images.py",
    "pyarrow": "test_features.py test_feature_shards.py",
    "pyyaml": "test_official_files.py",
    "rich": "test_reporting.py",
    "safetensors": "test_pipeline_files.py",
    "scikit-learn": "test_linear.py test_disentanglement.py",
    "scipy": "test_statistics.py",
    "tensorboard": "test_training.py::test_tensorboard_shows_each_step_once_after_a_resume",
    "tifffile": "test_tiff.py test_depth.py",
    "torch": "test_unet.py test_shift_decoder.py test_pipeline_files.py",
    "torchmetrics": "test_realism.py test_image_metrics.py",
    "triton": "ops/test_compilation.py",
    "typer": "test_docs.py test_parsers.py",
    "xformers": "test_attention.py",
}
SMALLEST = [
    "data.resolution=16", "unet.channels=8,16", "unet.norm_groups=4", "unet.attention_sizes=[8]",
    "encoder.widths=32,32", "encoder.attention_size=8", "chunks.count=4", "chunks.partition=uniform",
    "chunks.latent_dim=16",
    "base.images=40", "base.batch_size=8", "base.warmup_images=16", "features.images=64", "features.batch_size=8",
    "precision=fp32", "device=cpu", "sample_every=32",
]  # fmt: skip
HERE = "works: the version installed here, on which the whole suite runs"
LIMIT, PIP_LIMIT = 3600, 1800
"""Seconds that the commands or the tests may take: a guard against what never ends."""
COMMANDS = {
    "--help": ["--help"],
    "train": ["train", "--data", "faces:40", "-o", "run", *(part for s in SMALLEST for part in ("--set", s))],
    "encode": ["encode", "faces:200", "-o", "feats.npy", "--model", "run"],
    "probe": ["probe", "feats.npy", "--labels", "labels.csv", "-o", "probe"],
    "edit": ["edit", "faces:3", "faces:8", "--model", "run", "--chunks", "0-1", "-o", "out.png"],
}


# Several commands by one process, which imports PyTorch once.
IN_ONE = """
import json, sys
from diticli.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["diti", *words]
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code
    if status:
        sys.exit(f"Error: diti {words[0]} ended with {status}")
"""


class Result(NamedTuple):
    """One version of one dependency: what else had to change, and what was seen ("works", or the first failure).

    Of the tests, `counts` has how many "passed", "failed" and so on, in pytest's words.
    """

    name: str
    version: str
    others: dict[str, str]
    seen: str
    counts: dict[str, int]
    tried: str


class Failure(Exception):  # noqa: N818
    """A version that cannot be installed or does not work; the message says what was seen."""


def main() -> int:
    """Try the versions and print a table; status 1 where one does not work."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.experiments.versions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", default=[], help="names of dependencies, or NAME==VERSION")
    parser.add_argument("--out", type=Path, help="JSON file that results are added to")
    arguments = parser.parse_args()
    bounds = {canonicalize_name(r.name): r for r in dependencies()}
    wanted = arguments.only or [name for name in bounds if name != "torch"]
    results = []
    for text in wanted:
        name, _, exact = text.partition("==")
        versions = [exact] if exact else ends(bounds[canonicalize_name(name)])
        for each in versions:
            results.append(try_version(name, each, list(bounds.values())))
            print("| " + " | ".join(row(results[-1])) + " |", flush=True)
            if arguments.out:
                record(arguments.out, results[-1])
    return 0 if all(result.seen.startswith("works") for result in results) else 1


def dependencies() -> list[Requirement]:
    """The project's dependencies that apply here, with the optional ones that tests use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for e in EXTRAS for line in project["optional-dependencies"][e])]
    required = [Requirement(line) for line in lines]
    return [r for r in required if r.marker is None or r.marker.evaluate()]


def ends(requirement: Requirement) -> list[str]:
    """Oldest and newest version of it that pip can install here."""
    done = pip("index", "versions", requirement.name)
    found = re.search(r"Available versions: (.*)", done.stdout)
    offered = [] if found is None else [Version(v) for v in found[1].split(", ")]
    allowed = sorted(v for v in offered if v in requirement.specifier)
    return [str(v) for v in dict.fromkeys([*allowed[:1], *allowed[-1:]])]


def try_version(name: str, exact: str, bounds: list[Requirement]) -> Result:
    """Install one version in front of this environment and use it."""
    others: dict[str, str] = {}
    counts: dict[str, int] = {}
    seen = "works"
    if installed(name) == Version(exact).public:
        return Result(name, exact, others, HERE, counts, str(date.today()))
    try:
        changed = resolve(name, exact, bounds)
        others = {n: v for n, v in changed.items() if n != canonicalize_name(name)}
        with tempfile.TemporaryDirectory() as folder:
            python = overlay(Path(folder) / "env", changed)
            use(python, Path(folder))
            counts, failed = test(python, TESTS.get(canonicalize_name(name), ""))
            seen = failed or seen
    except Failure as failure:
        seen = str(failure)
    return Result(name, exact, others, seen, counts, str(date.today()))


def resolve(name: str, exact: str, bounds: list[Requirement]) -> dict[str, str]:
    """What pip would install in this environment for the project with this version of one dependency.

    Optional dependencies that are not here are left out.
    """
    same = {r: canonicalize_name(r.name) == canonicalize_name(name) for r in bounds}
    extras = ",".join(sorted(extra for r in bounds if same[r] for extra in r.extras))
    lines = [f"{name}[{extras}]=={exact}", *(str(r) for r in bounds if not same[r] and installed(r.name))]
    done = pip("install", "--dry-run", "--quiet", "--report", "-", *lines)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise Failure("cannot be installed: " + (errors or ["ERROR: pip failed"])[0].removeprefix("ERROR: ")[:200])
    chosen = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {canonicalize_name(item["name"]): item["version"] for item in chosen}


def installed(name: str) -> str | None:
    """The version here, without a build's name."""
    try:
        return Version(version(name)).public
    except PackageNotFoundError:
        return None


def overlay(folder: Path, packages: dict[str, str]) -> Path:
    """An environment of `packages`, behind which this one's lie; returns its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    behind = [path for path in (str(ROOT), str(ROOT / "kernels"), *sys.path) if path and Path(path).is_dir()]
    site = folder / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "behind.pth").write_text(f"import sys; sys.path.extend({behind!r})\n")
    pins = [f"{name}=={exact}" for name, exact in packages.items()]
    done = pip("--python", str(python), "install", "--no-deps", "--no-compile", *pins) if pins else None
    if done is not None and done.returncode:
        raise Failure("cannot be installed: " + done.stderr.strip().splitlines()[-1][:200])
    return python


def use(python: Path, folder: Path) -> None:
    """The commands, on built-in data.

    Raises:
        Failure: at the first that does not succeed.
    """
    for names in (("--help", "train", "encode"), ("probe", "edit")):
        if "probe" in names:
            write_labels(folder)
        name = f"diti {' '.join(names)}"
        done = step(name, python, ["-c", IN_ONE, json.dumps([COMMANDS[n] for n in names])], folder)
        if done.returncode:
            raise Failure(f"{name}: {errors_of(done)}")


def test(python: Path, tests: str) -> tuple[dict[str, int], str]:
    """How many of the tests passed, failed and were skipped, and the last failure in words ("" where there is none).

    Raises:
        Failure: when they do not end.
    """
    if not tests:
        return {}, ""
    name, paths = f"pytest {tests}", [str(ROOT / "tests" / test) for test in tests.split()]
    done = step(name, python, ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", *paths], ROOT)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    counts = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last)}
    return counts, f"{name}: {errors_of(done)}" if done.returncode else ""


def step(name: str, python: Path, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it there.

    Raises:
        Failure: after `LIMIT` seconds.
    """
    own = {key: value for key, value in os.environ.items() if not key.startswith("DITI_")}
    try:
        return run_python(arguments, python=python, packages=(), folder=folder, environment=own, timeout=LIMIT)
    except subprocess.TimeoutExpired as timeout:
        raise Failure(f"{name}: not finished after {timeout.timeout:.0f} s") from timeout


def errors_of(done: subprocess.CompletedProcess[str]) -> str:
    """The last two lines that name an error."""
    lines = [line for line in (done.stdout + done.stderr).splitlines() if re.search(r"\w*(Error|Expired)\b", line)]
    return " / ".join(re.sub(r"^E? +", "", line) for line in lines[-2:])[:300]


def write_labels(folder: Path) -> None:
    """Two columns for the rows of feats.npy, one binary and one of numbers."""
    names = json.loads((folder / "feats.json").read_text())["files"]
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "even", "number"])
        writer.writerows([name, row % 2, row / 7] for row, name in enumerate(names))


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pip of this environment.

    Raises:
        Failure: when it does not end.
    """
    try:
        return run_python(["-m", "pip", *arguments], packages=(), timeout=PIP_LIMIT)
    except subprocess.TimeoutExpired as timeout:
        raise Failure(f"pip {arguments[0]}: not finished after {timeout.timeout:.0f} s") from timeout


def row(result: Result) -> tuple[str, ...]:
    """Cells of the table; of the packages that changed too, those that the project names."""
    named = {canonicalize_name(r.name) for r in dependencies()}
    others = [f"{name} {exact}" for name, exact in result.others.items() if name in named or result.seen != "works"]
    counts = ", ".join(f"{number} {word}" for word, number in result.counts.items())
    return result.name, result.version, ", ".join(others) or "-", result.tried, counts or "-", result.seen


def record(path: Path, result: Result) -> None:
    """Add to the file, in place of an older result of the same version."""
    known = json.loads(path.read_text()) if path.exists() else []
    known = [old for old in known if (old["name"], old["version"]) != (result.name, result.version)]
    path.write_text(json.dumps([*known, result._asdict()], indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
