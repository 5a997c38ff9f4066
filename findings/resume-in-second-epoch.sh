#!/usr/bin/env bash
# A run is stopped in its second epoch and resumed with load_state and skip_first_batches, with the seedable sampler
# that exists for this. The resumed run sees the images of the *first* epoch's order: the sampler's epoch is not part
# of the saved state. Some images come twice and others never. set_epoch on the loader before skipping mends it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
env/bin/python -W ignore - <<'PY'
import accelerate
import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from torch.utils.data import DataLoader, TensorDataset

def start():
    torch.manual_seed(5)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    images = TensorDataset(torch.arange(12))
    return accelerator, accelerator.prepare(DataLoader(images, batch_size=3, shuffle=True))

accelerator, loader = start()
orders = []
for epoch in range(2):
    orders.append([])
    for step, (batch,) in enumerate(loader):
        orders[-1].append(batch.tolist())
        if (epoch, step) == (1, 1):
            accelerator.save_state("state")

def resumed(epoch=None):
    accelerator, loader = start()
    accelerator.load_state("state")
    if epoch is not None:
        loader.set_epoch(epoch)
    return [batch.tolist() for (batch,) in skip_first_batches(loader, 2)]

print("torch", torch.__version__, "accelerate", accelerate.__version__)
print("guess: the resumed run goes on with", orders[1][2:])
print("seen:", resumed(), "- with set_epoch(1):", resumed(1))
assert resumed() == orders[0][2:] != orders[1][2:] == resumed(1), "the behaviour has changed"
PY
