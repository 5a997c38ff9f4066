"""Which chunk should hold a factor, by theory: where it is worth most at first, and where it ends.

    python -m benchmarks.experiments.gain_peaks runs/evidence/auto-detached-gap-0 --lost runs/evidence/lost.json

A factor of strength s is SNR_t s / (1 + SNR_t s) of a degree of freedom of the noise estimate, and lost at SNR_t s = 1
(`diticli.training.loss_weighting`). Its part of all that the base misses is that over the base's error: the chunk
where this is greatest learns it fastest. With everything visible, own gradients and a KL weight, it ends in the chunk
that still gains by more precision when all others do not. The run's `gap.json` has the error, `lost.json` of
`benchmarks.evidence` the timesteps at which noise hides half of each factor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.evidence_judges import halves
from diticli.config_groups import MODULAR
from diticli.models.build import new_scheduler
from diticli.schedule import NoiseSchedule
from diticli.training.base_gap import read_gap
from diticli.training.loss_weighting import noise_error
from diticli.training.rundir import RunDirectory


def peaks(lost: dict[str, float], snr_T: np.ndarray, error_T: np.ndarray) -> dict[str, int]:
    """Factor -> timestep of its greatest part of the base's error.

    Args:
        lost: factor -> timestep at which SNR_t s = 1.
        snr_T: [T] signal-to-noise ratio alpha-bar_t / (1 - alpha-bar_t).
        error_T: [T] mean squared error of the base's noise estimate.
    """
    found = {}
    for name, t in lost.items():
        ratio_T = snr_T / np.interp(t, np.arange(len(snr_T)), snr_T)
        found[name] = int(np.argmax(ratio_T / (1 + ratio_T) / error_T))
    return found


def ends(
    lost: dict[str, float], snr_T: np.ndarray, error_T: np.ndarray, bottleneck: float, chunks: int
) -> dict[str, tuple[float, float]]:
    """Factor -> middle of the timesteps of the chunk that holds it in the end, and with which precision.

    Features of precision p leave r / (1 + r + p) of the factor's degree of freedom missing, r = SNR_t s, so that more
    precision saves r / (1 + r + p)^2 and costs half the bottleneck. The precision is the greatest that pays in some
    chunk, which is the one that holds the factor; 0 where none pays.

    Args:
        lost: factor -> timestep at which SNR_t s = 1.
        snr_T: [T] signal-to-noise ratio alpha-bar_t / (1 - alpha-bar_t).
        error_T: [T] mean squared error of the base's noise estimate, one over the loss weights.
        bottleneck: KL weight beta, in degrees of freedom per nat.
        chunks: K, equal in time.
    """
    precision_P = np.concatenate([[0.0], np.geomspace(0.01, 1e5, 1000)])
    found = {}
    for name, t in lost.items():
        ratio_T = snr_T / np.interp(t, np.arange(len(snr_T)), snr_T)
        saved_PT = ratio_T / (1 + ratio_T + precision_P[:, None]) ** 2
        weights_KT = np.array_split(1 / error_T, chunks)
        parts = np.array_split(saved_PT, chunks, axis=1)
        saved_PK = np.stack([np.average(p, axis=1, weights=w) for p, w in zip(parts, weights_KT, strict=True)], axis=1)
        pays_P = np.flatnonzero(saved_PK.max(axis=1) >= bottleneck / 2)
        last = int(pays_P[-1]) if len(pays_P) else 0
        found[name] = (float((saved_PK[last].argmax() + 0.5) * len(snr_T) / chunks), float(precision_P[last]))
    return found


def main() -> None:
    """Print the timesteps of each factor, and how far apart they are on average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory with gap.json")
    parser.add_argument("--lost", type=Path, required=True)
    parser.add_argument("--bottleneck", type=float, default=MODULAR["modularity.bottleneck"])
    parser.add_argument("--chunks", type=int, default=16)
    options = parser.parse_args()
    schedule = NoiseSchedule.from_scheduler(new_scheduler())
    bar_T = schedule.alphas_cumprod.double().numpy()
    error_T = noise_error(schedule, read_gap(RunDirectory(options.run).gap)).double().numpy()
    lost = halves(json.loads(options.lost.read_text()))
    first = peaks(lost, bar_T / (1 - bar_T), error_T)
    last = ends(lost, bar_T / (1 - bar_T), error_T, options.bottleneck, options.chunks)
    print("| factor | half lost at t | worth most at t | ends at t | with precision |\n|---|---|---|---|---|")
    for name, t in sorted(lost.items(), key=lambda item: item[1]):
        print(f"| {name} | {t:.0f} | {first[name]} | {last[name][0]:.0f} | {last[name][1]:.1f} |")
    apart = [
        np.mean([abs(t - place) for t, place in zip(lost.values(), places, strict=True)])
        for places in (first.values(), [end for end, _ in last.values()])
    ]
    print(f"Apart from where it is lost by {apart[0]:.0f} and {apart[1]:.0f} timesteps on average.")


if __name__ == "__main__":
    main()
