#!/usr/bin/env bash
# The same seed gives other noise, other dropout and other initial weights to a tensor in channels_last. On the CPU
# the numbers are not even the same ones in another order. A run repeated "with the same seed, only faster" is
# another run. Draw the noise in the default layout and convert it, and convert a model after it is initialised.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import torch

def seeded(make):
    torch.manual_seed(0)
    return make()

plain = torch.zeros(2, 3, 16, 16)
last = plain.to(memory_format=torch.channels_last)
noise = seeded(lambda: torch.randn_like(plain)), seeded(lambda: torch.randn_like(last))
drop = [seeded(lambda x=x: torch.nn.functional.dropout(x + 1, 0.5)) for x in (plain, last)]
weights = [seeded(lambda w=w: torch.nn.init.kaiming_uniform_(w.clone())) for w in (plain, last)]
equal = [torch.equal(a, b) for a, b in (noise, drop, weights)]
reordered = torch.equal(noise[0].flatten().sort()[0], noise[1].flatten().sort()[0])
print("torch", torch.__version__)
print("guess: the memory format is storage only, so a seed means the same noise, dropout mask and weights")
print("seen: noise, dropout, initial weights equal:", equal, "- the same numbers in another order:", reordered)
assert equal == [False, False, False] and not reordered, "the behaviour has changed"
PY
