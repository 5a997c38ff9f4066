#!/usr/bin/env bash
# WebDataset takes a `seed`, but its `.shuffle(n)` does not use it, nor Python's, NumPy's or PyTorch's generator: the
# order of samples is another one at every run. Only a seed given to `.shuffle` itself repeats it, and that argument is
# not in its signature. Two trainings "with the same seed" see different data.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile webdataset==1.0.2 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import importlib.metadata
import random

import numpy as np
import webdataset as wds

with wds.TarWriter("data.tar") as writer:
    for index in range(50):
        writer.write({"__key__": f"{index:03d}", "cls": index})

def order(**shuffle):
    random.seed(0)
    np.random.seed(0)
    data = wds.WebDataset("data.tar", shardshuffle=False, seed=0).decode().shuffle(100, **shuffle)
    return [sample["cls"] for sample in data]

plain, seeded = order() == order(), order(seed=1) == order(seed=1)
print("webdataset", importlib.metadata.version("webdataset"), "numpy", np.__version__)
print("guess: WebDataset(seed=0), with every global generator seeded too, gives the same order twice")
print("seen: the same order", plain, "- with shuffle(100, seed=1)", seeded)
assert (plain, seeded) == (False, True), "the behaviour has changed"
PY
