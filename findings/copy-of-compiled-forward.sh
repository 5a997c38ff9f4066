#!/usr/bin/env bash
# A copy of a model is made to average its weights or to freeze it as a base. Where the model was compiled by
# `model.forward = torch.compile(model.forward)`, the copy has its own weights but computes with those of the original:
# a "frozen" copy changes with every training step. torch.compile(model) and model.compile() are copied rightly.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import copy

import torch

def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model

def in_place(model):
    model.compile(backend="eager")
    return model

x, seen = torch.ones(1, 2), {}
for compiled in (forward, in_place, lambda model: torch.compile(model, backend="eager")):
    model = compiled(torch.nn.Linear(2, 2))
    frozen = copy.deepcopy(model)
    before = frozen(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    seen[compiled.__name__] = torch.equal(before, frozen(x))
print("torch", torch.__version__)
print("guess: a deep copy is independent of the model, however that was compiled")
print("seen: the copy's output stays the same while the model is trained:", seen)
assert seen == {"forward": False, "in_place": True, "<lambda>": True}, "the behaviour has changed"
PY
