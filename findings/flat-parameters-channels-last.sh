#!/usr/bin/env bash
# `torch.nn.utils.parameters_to_vector`, the usual way to average, compare or perturb weights as one vector, refuses
# a model in channels_last. Its inverse accepts one, but puts contiguous weights back: values are right, and the model
# has left channels_last without a word.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

model = torch.nn.Conv2d(3, 8, 3)
vector = parameters_to_vector(model.parameters()).detach()
model = model.to(memory_format=torch.channels_last)
weight = model.weight.detach().clone()
try:
    parameters_to_vector(model.parameters())
    there = "a vector"
except RuntimeError as error:
    there = f"RuntimeError: {str(error)[:70]}"
vector_to_parameters(vector, model.parameters())
kept = model.weight.is_contiguous(memory_format=torch.channels_last)
print("torch", torch.__version__)
print("guess: weights in channels_last become a vector and come back as they were")
print("seen: to a vector:", there)
print("seen: back: equal values", torch.equal(weight, model.weight), "- still channels_last", kept)
assert there.startswith("RuntimeError") and torch.equal(weight, model.weight) and not kept, "the behaviour has changed"
PY
