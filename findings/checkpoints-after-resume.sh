#!/usr/bin/env bash
# accelerate numbers its checkpoints by itself and keeps `total_limit` of them. After a resume it counts from 0 again, but
# the lowest number counts as the oldest: each new checkpoint pushes out the new one before it, the one from before the
# resume stays, and the next `load_state()` takes that one. The work since the first resume is lost; the only message is
# that a checkpoint was deleted. When you resume, give `ProjectConfiguration(iteration=...)` the next number.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 accelerate==1.15.0
cat > run.py <<'PY'
import sys
from pathlib import Path

import accelerate
import torch
from accelerate.utils import ProjectConfiguration

first, last = int(sys.argv[1]), int(sys.argv[2])
project = ProjectConfiguration("run", automatic_checkpoint_naming=True, total_limit=2)
accelerator = accelerate.Accelerator(cpu=True, project_config=project)
model = accelerator.prepare(torch.nn.Linear(1, 1, bias=False))
found = 0
if first > 1:
    accelerator.load_state()
    found = int(model.weight.item())
for epoch in range(first, last + 1):
    model.weight.data.fill_(epoch)  # an epoch of training
    accelerator.save_state()
kept = sorted(path.name for path in Path("run/checkpoints").iterdir())
print("torch", torch.__version__, "accelerate", accelerate.__version__, kept, "read epoch", found)
if last == 7:
    print("guess: epochs 1 to 4, a resume with 5 to 7, then another resume, which goes on from epoch 7")
    accelerator.load_state()
    found = int(model.weight.item())
    print("seen: it goes on from epoch", found)
    assert found == 4, "the behaviour has changed"
PY
env/bin/python -W ignore run.py 1 4
env/bin/python -W ignore run.py 5 7
