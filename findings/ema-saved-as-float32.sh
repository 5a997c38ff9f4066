#!/usr/bin/env bash
# EMAModel.save_pretrained writes the averages of a bfloat16 model as float32, twice the size, and from_pretrained
# returns float32 averages to a bfloat16 training. `foreach` is lost as well, while decay and the step count survive,
# because they are written into the network's own config.json.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 accelerate==1.15.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import json
from pathlib import Path

import diffusers
import torch
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel

def unet(**options):
    defaults = dict(sample_size=8, layers_per_block=1, block_out_channels=(16, 24), norm_num_groups=8,
                    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"))
    return UNet2DModel(**(defaults | options))

net = unet().to(torch.bfloat16)
ema = EMAModel(net.parameters(), decay=0.9, foreach=True, model_cls=UNet2DModel, model_config=net.config)
for _ in range(3):
    ema.step(net.parameters())
ema.save_pretrained("ema")
again = EMAModel.from_pretrained("ema", UNet2DModel)
dtypes = ema.shadow_params[0].dtype, again.shadow_params[0].dtype
in_config = sorted({"decay", "optimization_step"} & set(json.loads(Path("ema/config.json").read_text())))
print("torch", torch.__version__, "diffusers", diffusers.__version__)
print("guess: averages come back in their dtype, with every setting, and config.json is the network's")
print("seen: dtype", *dtypes, "- foreach", ema.foreach, again.foreach, "- in config.json:", in_config)
assert dtypes == (torch.bfloat16, torch.float32) and ema.foreach and not again.foreach, "the behaviour has changed"
assert again.optimization_step == 3 and len(in_config) == 2, "the behaviour has changed"
PY
