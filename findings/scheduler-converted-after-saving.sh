#!/usr/bin/env bash
# `DPMSolverMultistepScheduler.from_config(ddim.config)` gives one scheduler for a DDIM scheduler made in Python and
# another one after that was saved and loaded. Saved, every default is written out and taken over (spacing "leading":
# the first timestep of ten is 900); unsaved, the target's own defaults apply (999). Sampling from the training script
# and from the saved pipeline differ. Pass timestep_spacing when converting.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

def first_timesteps(scheduler, **options):
    solver = DPMSolverMultistepScheduler.from_config(scheduler.config, **options)
    solver.set_timesteps(10)
    return solver.timesteps[:3].tolist()

made = DDIMScheduler()
made.save_pretrained("scheduler")
loaded = DDIMScheduler.from_pretrained("scheduler")
same = {key: value for key, value in made.config.items() if key[0] != "_"} == {
    key: value for key, value in loaded.config.items() if key[0] != "_"}
seen = first_timesteps(made), first_timesteps(loaded)
mended = [first_timesteps(s, timestep_spacing="trailing") for s in (made, loaded)]
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: equal configs convert to equal solvers")
print("seen: equal configs", same, "- first timesteps made", seen[0], "loaded", seen[1])
assert same and seen[0][0] == 999 and seen[1][0] == 900 and mended[0] == mended[1], "the behaviour has changed"
PY
