"""`python -m benchmarks train|forward|encode|edit|studio|kernels|resources|step|all`; see README.md."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from diticli.errors import DiTiError

PARTS = {
    "train": "a training step: the official code, ours, and ours with each feature off",
    "forward": "one noise estimate of base and shift: the official networks and ours",
    "encode": "images to features: the official encoder and ours, resident and from JPEGs",
    "edit": "counterfactuals of a pair: the official 1000 + 100 steps and ours",
    "studio": "answers of `diti studio`: 100 changes of one visitor, 20 visitors at once",
    "kernels": "each operation against plain PyTorch",
    "resources": "what the compiler says of each Triton kernel, without a GPU",
    "step": "launches, bytes and memory of a step on a GPU, counted without one",
    "all": "everything, each part in a process of its own, within a time limit",
}
OWN_COMMAND_LINE = ("kernels", "resources", "step")
CLOCKED = ("train", "forward", "encode")
CLOCK = "processor: one thread, seconds that a processor spent on it, for shared machines"


def main() -> int:
    """Parse, import the one part that is wanted, run it."""
    if len(sys.argv) > 1 and sys.argv[1] in OWN_COMMAND_LINE:
        return importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:]) or 0
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, text in PARTS.items():
        part = parts.add_parser(name, help=text)
        if name == wanted:
            module = importlib.import_module("benchmarks." + ("everything" if name == "all" else name))
            part.description, part.formatter_class = module.__doc__, argparse.RawDescriptionHelpFormatter
            part.add_argument("--official", type=Path, default=None, help="a checkout of the official code")
            part.add_argument("--device", default="auto", help="cpu, cuda, or auto")
            part.add_argument("--out", type=Path, default=None, help="JSON file; for `all` a folder")
            if name in CLOCKED:
                part.add_argument("--clock", choices=("wall", "processor"), default="wall", help=CLOCK)
            module.add_arguments(part)
    options = parser.parse_args()
    if getattr(options, "clock", "wall") == "processor":
        import torch

        torch.set_num_threads(1)
    try:
        module.main(options)
    except DiTiError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
