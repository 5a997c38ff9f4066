#!/usr/bin/env bash
# A scheduler made of a given list of 50 betas says in its config that it was trained on 1000 timesteps, and
# set_timesteps(10) walks 900, 800, ..., which do not exist: the first step is an IndexError. Nothing compares the list
# with num_train_timesteps, which must be passed as well.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import diffusers
import numpy as np
import torch
from diffusers import DDIMScheduler

scheduler = DDIMScheduler(trained_betas=np.linspace(1e-4, 0.02, 50))
scheduler.set_timesteps(10)
x = torch.zeros(1, 3, 4, 4)
try:
    scheduler.step(x, scheduler.timesteps[0], x)
    first = "a step"
except IndexError as error:
    first = f"IndexError: {error}"
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: the number of timesteps is the number of betas, or a mismatch is refused")
print("seen: betas", len(scheduler.betas), "- timesteps", scheduler.timesteps.tolist(), "- first step:", first)
assert len(scheduler.betas) == 50 and scheduler.timesteps[0] == 900, "the behaviour has changed"
assert first.startswith("IndexError"), "the behaviour has changed"
PY
