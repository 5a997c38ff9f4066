"""At which time-step would a factor be worth most to a chunk, if no other chunk told it?

    python -m benchmarks.gain_peaks runs/evidence/auto-detached-gap-0 --lost runs/evidence/lost.json

A factor of strength s is SNR_t s / (1 + SNR_t s) of a degree of freedom of the noise estimate, and lost at SNR_t s = 1
(`diticli.training.relevance`). Its part of all that the base misses is that over the base's error. The run's `gap.json`
has the error, `lost.json` of `benchmarks.evidence` the time-steps at which noise hides half of each factor.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from benchmarks.evidence_judges import halves
from diticli.models.build import new_scheduler
from diticli.schedule import NoiseSchedule
from diticli.training.base_gap import read_gap
from diticli.training.relevance import noise_error
from diticli.training.rundir import RunDirectory


def peaks(lost: dict[str, float], snr_T: np.ndarray, error_T: np.ndarray) -> dict[str, int]:
    """Factor -> time-step of its greatest part of the base's error.

    Args:
        lost: factor -> time-step at which SNR_t s = 1.
        snr_T: [T] signal-to-noise ratio alpha-bar_t / (1 - alpha-bar_t).
        error_T: [T] mean squared error of the base's noise estimate.
    """
    found = {}
    for name, t in lost.items():
        ratio_T = snr_T / np.interp(t, np.arange(len(snr_T)), snr_T)
        found[name] = int(np.argmax(ratio_T / (1 + ratio_T) / error_T))
    return found


def main() -> None:
    """Print both time-steps of each factor, and how far apart they are on average."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory with gap.json")
    parser.add_argument("--lost", type=Path, required=True)
    options = parser.parse_args()
    schedule = NoiseSchedule.from_scheduler(new_scheduler())
    bar_T = schedule.alphas_cumprod.double().numpy()
    error_T = noise_error(schedule, read_gap(RunDirectory(options.run).gap)).double().numpy()
    lost = halves(json.loads(options.lost.read_text()))
    found = peaks(lost, bar_T / (1 - bar_T), error_T)
    print("| factor | half lost at t | worth most at t |\n|---|---|---|")
    for name, t in sorted(lost.items(), key=lambda item: item[1]):
        print(f"| {name} | {t:.0f} | {found[name]} |")
    print(f"Apart by {np.mean([abs(found[name] - t) for name, t in lost.items()]):.0f} time-steps on average.")


if __name__ == "__main__":
    main()
