#!/usr/bin/env bash
# An encoder saved with huggingface_hub's PyTorchModelHubMixin loads without a word from a file that lacks one of its
# tensors, which is then random, other than load_state_dict, and other at every load. Half-precision weights become
# float32, also silently. Pass strict=True to from_pretrained.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 huggingface_hub==2.4.0 safetensors==0.8.0
env/bin/python -W ignore - <<'PY'
import huggingface_hub
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import load_file, save_file

class Encoder(torch.nn.Module, PyTorchModelHubMixin):
    def __init__(self, dim: int = 4):
        super().__init__()
        self.first, self.last = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim)

Encoder(8).save_pretrained("encoder")
weights = load_file("encoder/model.safetensors")
weights = {name: value.half() for name, value in weights.items() if name != "last.weight"}
save_file(weights, "encoder/model.safetensors")
one, two = (Encoder.from_pretrained("encoder") for _ in range(2))
try:
    Encoder.from_pretrained("encoder", strict=True)
    strict = "loads"
except RuntimeError:
    strict = "RuntimeError"
same = torch.equal(one.first.weight, two.first.weight), torch.equal(one.last.weight, two.last.weight)
print("torch", torch.__version__, "huggingface_hub", huggingface_hub.__version__)
print("guess: a missing tensor is an error, and the dtype is the file's")
print("seen: two loads agree in the stored and the missing tensor:", same, "- strict:", strict)
print("seen:", one.first.weight.dtype)
assert same == (True, False) and one.first.weight.dtype == torch.float32, "the behaviour has changed"
assert strict == "RuntimeError", "the behaviour has changed"
PY
