#!/usr/bin/env bash
# Group norm does not look at other images, so a network with it should take one image wherever it takes two. A
# UNet2DModel whose lowest level is one pixel, with one channel in each group there, encodes two images in eval mode
# and refuses one, with a message about training.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import diffusers
import torch
from diffusers import UNet2DModel

unet = UNet2DModel(sample_size=4, layers_per_block=1, block_out_channels=(8, 8, 8), norm_num_groups=8,
                   down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3).eval()
with torch.no_grad():
    two = unet(torch.zeros(2, 3, 4, 4), 10).sample
    try:
        unet(torch.zeros(1, 3, 4, 4), 10)
        one = "runs"
    except ValueError as error:
        one = f"ValueError: {error}"
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: one image gives the first half of what two equal images give")
print("seen: two images", tuple(two.shape), "- one image:", one)
assert "when training" in one, "the behaviour has changed"
PY
