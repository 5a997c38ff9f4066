#!/usr/bin/env bash
# The same tensors with the same metadata make another file each time: safetensors sorts the tensors, but writes the
# texts of the metadata in an order that changes within one process. Checksums of such files say nothing about their
# content, and a store that keeps equal files once keeps all. With one text of metadata, e.g. a JSON, files are equal.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import hashlib

import safetensors
import torch
from safetensors.torch import save

weights = {"conv.weight": torch.ones(3, 3), "conv.bias": torch.zeros(3)}

def files(metadata):
    return len({hashlib.sha256(save(weights, metadata)).hexdigest() for _ in range(20)})

one = files({"config": '{"width": 64, "step": 1000, "seed": 0, "format": "pt"}'})
four = files({"width": "64", "step": "1000", "seed": "0", "format": "pt"})
print("safetensors", safetensors.__version__, "torch", torch.__version__)
print("guess: 20 writes of the same weights and metadata give one checksum")
print(f"seen: one text of metadata {one} checksum, four texts {four} checksums")
assert one == 1 and four > 1, "the behaviour has changed"
PY
