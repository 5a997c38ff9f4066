#!/usr/bin/env bash
# SummaryWriter converts bfloat16 tensors to float16, not to float32: a gradient norm of 100,000 is logged as
# infinity, a learning rate or a loss of 1e-8 as zero. The curve of a run that is fine looks diverged, and the other
# way round. Log `tensor.item()` or `tensor.float()`.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 tensorboard==2.21.0
env/bin/python -W ignore - <<'PY'
import tensorboard
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

values = torch.tensor([1e5, 1e-8, 0.5], dtype=torch.bfloat16)
with SummaryWriter("run") as writer:
    for step, value in enumerate(values):
        writer.add_scalar("value", value, step)
events = EventAccumulator("run")
events.Reload()
seen = [event.value for event in events.Scalars("value")]
print("torch", torch.__version__, "tensorboard", tensorboard.__version__)
print("guess: scalars are stored as float32, which holds every bfloat16:", values.float().tolist())
print("seen:", seen)
assert seen == [float("inf"), 0.0, 0.5], "the behaviour has changed"
PY
