#!/usr/bin/env bash
# accelerate's find_executable_batch_size is known, and was long described, as halving the batch until it fits. It now
# takes nine tenths each time: from 128 it tries 115, 103, 92, ... and reaches 15 at the 19th attempt, each of which
# builds the model and runs out of memory again. Pass reduce_batch_size_fn to have powers of two.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
env/bin/python -W ignore - <<'PY'
import accelerate
import torch
from accelerate.utils import find_executable_batch_size

tried = []

@find_executable_batch_size(starting_batch_size=128)
def train(batch_size):
    tried.append(batch_size)
    if batch_size > 16:
        raise RuntimeError("CUDA out of memory.")  # the message that it looks for
    return batch_size

kept = train()
print("torch", torch.__version__, "accelerate", accelerate.__version__)
print("guess: tries 128, 64, 32, 16 and keeps 16")
print("seen: tries", tried, "and keeps", kept)
assert tried[:4] == [128, 115, 103, 92] and kept == 15, "the behaviour has changed"
PY
