#!/usr/bin/env bash
# Three parts of a fused weight (query, key, value; or chunks of a feature matrix) are views of one tensor that do not
# overlap. safetensors writes them as they are. huggingface_hub's save_torch_state_dict, which says that it saves a
# state dict as safetensors, refuses the same dictionary. Clone the parts first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 huggingface_hub==2.4.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import huggingface_hub
import safetensors
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

fused = torch.randn(12, 4)
parts = dict(zip("qkv", fused.chunk(3), strict=True))
save_file(parts, "parts.safetensors")
plain = all(torch.equal(parts[name], value) for name, value in load_file("parts.safetensors").items())
try:
    save_torch_state_dict(parts, ".")
    hub = "saved"
except RuntimeError as error:
    hub = f"RuntimeError: {str(error)[:80]}..."
save_torch_state_dict({name: part.clone() for name, part in parts.items()}, ".")
print("huggingface_hub", huggingface_hub.__version__, "safetensors", safetensors.__version__)
print("guess: both write three tensors")
print("seen: safetensors reads back equal values:", plain, "- huggingface_hub:", hub)
assert plain and hub.startswith("RuntimeError"), "the behaviour has changed"
PY
