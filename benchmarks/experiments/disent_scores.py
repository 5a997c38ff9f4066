"""Scores of `disent` 0.8 on codes that `tests/test_disentanglement_disent.py` scores with ours, recorded once.

    python -m benchmarks.experiments.disent_scores --out tests/data/disent_scores.json

`disent` (MIT) needs torchvision and lightning, which pip installs into a temporary environment in front of this one.
There its public metrics DCI, MIG, SAP and FactorVAE run unchanged on a data set whose pictures are the factors
themselves: four with ten values each. Its samples are its own draws; the codes are the same functions of the factors.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.children import run_python

DISENT = "0.8.0"
FACTORS, VALUES = 4, 10
TRAIN, TEST, VOTES = 2000, 1000, (600, 300)
TREE_ROWS = (600, 300)
BATCH = 100
"""A single batch would leave disent a tensor where its DCI takes an array."""
ANGLES = (0.5, 0.8, 0.3, 1.1, 0.7, 0.4)
"""Of turns in the planes of each two factors: together a rotation."""


def codes() -> dict[str, Any]:
    """Name -> function of factors [N, 4] in [-1, 1] and a generator of noise."""
    turn = rotation()
    return {
        "perfect": lambda x, rng: x,
        "rotated": lambda x, rng: x @ turn,
        "doubled": lambda x, rng: np.concatenate([x, x], axis=1) + 1e-3 * rng.standard_normal((len(x), 2 * FACTORS)),
        "with a constant dim": lambda x, rng: np.concatenate([x, np.ones((len(x), 1))], axis=1),
        "noise": lambda x, rng: rng.standard_normal(x.shape),
    }


def rotation() -> npt.NDArray[np.float64]:
    """[4, 4] of `ANGLES`."""
    turn = np.eye(FACTORS)
    planes = [(i, j) for i in range(FACTORS) for j in range(i)]
    for (i, j), angle in zip(planes, ANGLES, strict=True):
        one = np.eye(FACTORS)
        one[[i, j], [i, j]], one[i, j], one[j, i] = np.cos(angle), np.sin(angle), -np.sin(angle)
        turn = turn @ one
    return turn


def scaled(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Factor values 0 to 9 as -1 to 1."""
    return np.asarray(values, dtype=np.float64) / ((VALUES - 1) / 2) - 1


def environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """Python of a new environment with `disent`, behind which this one's packages lie, and the versions there.

    Raises:
        RuntimeError: when pip cannot install it.
    """
    from benchmarks.experiments.versions import overlay, pip

    fixed = [f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")]
    done = pip("install", "--dry-run", "--quiet", "--report", "-", f"disent=={DISENT}", *fixed)
    if done.returncode:
        raise RuntimeError(f"pip cannot install disent: {done.stderr.strip()[-300:]}")
    chosen = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    chosen.pop("pip", None)
    here = {name: importlib.metadata.version(name) for name in ("numpy", "scikit-learn", "torch")}
    return overlay(folder, chosen), here | {name: chosen[name] for name in ("disent", "torchvision") if name in chosen}


def usable_torchvision() -> None:
    """Make its import succeed where its compiled part is for another build of PyTorch: disent needs only its Python."""
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def measure(names: Sequence[str] = ()) -> dict[str, dict[str, float]]:
    """Scores by code, of all or of those named; runs where disent is installed."""
    usable_torchvision()
    from disent.dataset import DisentDataset
    from disent.dataset.data import GroundTruthData
    from disent.dataset.sampling import SingleSampler
    from disent.metrics import metric_dci, metric_factor_vae, metric_mig, metric_sap

    class Factors(GroundTruthData):  # type: ignore[misc]
        """Pictures that are the factors."""

        factor_names = tuple("abcd")
        factor_sizes = (VALUES,) * FACTORS
        img_shape = (1, FACTORS, 1)

        def _get_observation(self, idx: int) -> npt.NDArray[np.float64]:
            return scaled(self.idx_to_pos(idx))

    data = DisentDataset(Factors(), SingleSampler())
    found = {}
    for name, code in codes().items():
        if names and name not in names:
            continue
        np.random.seed(0)
        rng = np.random.default_rng(1)

        def represent(x: Any, code: Any = code, rng: Any = rng) -> Any:
            return code(np.asarray(x, dtype=np.float64).reshape(len(x), FACTORS), rng)

        common = {"num_train": TRAIN, "batch_size": BATCH}
        scores = metric_dci(
            data, represent, num_train=TREE_ROWS[0], num_test=TREE_ROWS[1], batch_size=BATCH
        ) | metric_mig(data, represent, **common)
        scores |= metric_sap(data, represent, num_test=TEST, **common)
        continuous = metric_sap(data, represent, num_test=TEST, continuous_factors=True, **common)
        scores["sap.score_continuous"] = continuous["sap.score"]
        scores |= metric_factor_vae(data, represent, num_train=VOTES[0], num_eval=VOTES[1], num_variance_estimate=TRAIN)
        found[name] = {key: round(float(value), 6) for key, value in scores.items()}
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Install, measure there, record here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        options.out.write_text(json.dumps(measure()))
        return
    with tempfile.TemporaryDirectory() as folder:
        python, versions = environment(Path(folder) / "env")
        scores = Path(folder) / "scores.json"
        arguments = [str(Path(__file__).resolve()), "--inside", "--out", str(scores)]
        run_python(arguments, python=python, folder=folder, check=True, shown=True)
        facts = {
            "origin": f"disent {DISENT} (github.com/nmichlo/disent, MIT), its public metrics run unchanged",
            "versions": versions,
            "settings": {
                "train": TRAIN,
                "test": TEST,
                "votes": VOTES,
                "tree_rows": TREE_ROWS,
                "factors": FACTORS,
                "values": VALUES,
            },
            "codes": json.loads(scores.read_text()),
        }
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
