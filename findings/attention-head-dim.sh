#!/usr/bin/env bash
# UNet2DModel accepts an attention_head_dim that does not divide the channels: the number of heads is rounded down and
# the attention is narrower than the level, without a word. 24 channels with heads of 16 have one head and 16 channels.
# A head wider than the level is accepted too, and the first forward pass divides by zero.
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

def unet(**options):
    defaults = dict(sample_size=8, layers_per_block=1, block_out_channels=(16, 24), norm_num_groups=8,
                    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return UNet2DModel(**(defaults | options))

attention = unet(attention_head_dim=16).mid_block.attentions[0]
try:
    unet(attention_head_dim=32)(torch.zeros(1, 3, 8, 8), 10)
    wider = "runs"
except Exception as error:
    wider = f"{type(error).__name__}: {error}"
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: 24 channels and attention_head_dim=16 raise a ValueError, as does 32")
print("seen: heads", attention.heads, "- query weights", tuple(attention.to_q.weight.shape), "- 32:", wider)
assert attention.heads == 1 and tuple(attention.to_q.weight.shape) == (16, 24), "the behaviour has changed"
assert wider.startswith("ZeroDivisionError"), "the behaviour has changed"
PY
