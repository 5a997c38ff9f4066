#!/usr/bin/env bash
# A state dict that safetensors wrote comes back in another order: by type, then by name, not as it was saved. Averaging
# checkpoints or comparing weights by zip(model.state_dict().values(), load_file(...).values()), which is right for
# torch.save, pairs tensors of different layers, and where layers are of one shape nothing complains. Go by names.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import safetensors
import torch
from safetensors.torch import load_file, save_file


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.input = torch.nn.Linear(4, 4)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(11))
        self.half = torch.nn.Linear(4, 4).half()


weights = Network().state_dict()
save_file(weights, "weights.safetensors")
torch.save(weights, "weights.pt")
read, pickled = load_file("weights.safetensors"), torch.load("weights.pt", weights_only=True)
order = [name.removesuffix(".weight") for name in read if name.endswith("weight")]
wrong = sum(not torch.equal(one, other) for one, other in zip(weights.values(), read.values()))
print("torch", torch.__version__, "safetensors", safetensors.__version__)
print("guess: a dict comes back in the order in which it was saved, as from torch.save.")
print("seen:", order, f"and {wrong} of {len(weights)} pairs differ")
assert list(pickled) == list(weights) and order[:3] == ["blocks.0", "blocks.1", "blocks.10"], "the behaviour has changed"
assert order[-2:] == ["input", "half"] and wrong > 20, "the behaviour has changed"
PY
