#!/usr/bin/env bash
# A run is saved, loaded into a model in channels_last ("the same, only faster") and goes on. Adam's moments come back
# with the strides that they were saved with, and `load_state_dict` leaves them so. The fused Adam then pairs weights
# and moments by their place in memory: each weight moves by the moments of another one, without an error or a warning.
# The plain Adam is right. Copy each moment into a tensor with the strides of its weight before the first step.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import torch
from torch import nn

images = torch.randn(16, 4, 16, 16, generator=torch.Generator().manual_seed(0))

def steps(model, optimizer, number):
    for _ in range(number):
        optimizer.zero_grad()
        (model(images) - images.roll(1, 1)).square().mean().backward()
        optimizer.step()
    return model.weight.detach().contiguous()

def resumed(fused, layout):
    torch.manual_seed(1)
    first = nn.Conv2d(4, 4, 3, padding=1)
    optimizer = torch.optim.Adam(first.parameters(), lr=0.01, fused=fused)
    steps(first, optimizer, 20)
    torch.save((first.state_dict(), optimizer.state_dict()), "run.pt")
    weights, state = torch.load("run.pt")
    second = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=layout)
    second.load_state_dict(weights)
    optimizer = torch.optim.Adam(second.parameters(), lr=0.01, fused=fused)
    optimizer.load_state_dict(state)
    start = second.weight.detach().clone()
    return steps(second, optimizer, 1) - start

off = {}
for fused in (False, True):
    expected, seen = (resumed(fused, x) for x in (torch.contiguous_format, torch.channels_last))
    off[fused] = ((seen - expected).norm() / expected.norm()).item()
print("torch", torch.__version__)
print("guess: the first step after the resume is the same in both layouts, fused or not")
print(f"seen: relative difference of that step: plain {off[False]:.1e}, fused {off[True]:.1e}")
assert off[False] < 1e-3 and off[True] > 0.1, "the behaviour has changed"
PY
