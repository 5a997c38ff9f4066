#!/usr/bin/env bash
# With rescale_betas_zero_snr the last timestep is pure noise, and a noise prediction there says nothing about the
# image. DDIMScheduler accepts the pair of settings and its first step from timestep 999 returns infinities, without a
# warning. clip_sample, on by default, hides them: the picture is then saturated noise at that step.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import diffusers
import torch
from diffusers import DDIMScheduler

torch.manual_seed(0)
x, eps = torch.randn(2, 1, 3, 4, 4).unbind(0)
finite = {}
for clip in (False, True):
    scheduler = DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=clip)
    scheduler.set_timesteps(10)
    step = scheduler.step(eps, scheduler.timesteps[0], x)
    finite[clip] = bool(step.prev_sample.isfinite().all())
    saturated = step.pred_original_sample.abs().eq(1).all().item()
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: prediction_type='epsilon' with rescale_betas_zero_snr is refused, or at least warned about")
print("seen: finite without clipping", finite[False], "- with", finite[True], "- every pixel -1 or 1 there", saturated)
assert finite == {False: False, True: True} and saturated, "the behaviour has changed"
PY
