#!/usr/bin/env bash
# `WebDataset(...).with_epoch(n)` is how a stream of shards gets epochs of a fixed length, for a learning-rate schedule or
# a fair comparison. The n is that of each worker process: with two workers an epoch has 2n samples, so that a setting
# which should change the speed alone changes how long a model trains. Divide n by the number of workers. Batches made
# inside the dataset end in each worker as well: 40 samples by 16 are 16, 16, 4, 4.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6 webdataset==1.0.2
env/bin/python -W ignore - <<'PY'
import importlib.metadata
import io
import tarfile

import torch
import webdataset
from torch.utils.data import DataLoader

for shard in range(2):
    with tarfile.open(f"{shard}.tar", "w") as tar:
        for index in range(20):
            member = tarfile.TarInfo(f"{shard * 20 + index:03d}.txt")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))


def images():
    return webdataset.WebDataset(["0.tar", "1.tar"], shardshuffle=False)


def epoch(workers):
    return sum(1 for _ in DataLoader(images().with_epoch(16), batch_size=None, num_workers=workers))


lengths = [epoch(workers) for workers in (0, 1, 2)]
batches = [len(batch["__key__"]) for batch in DataLoader(images().batched(16), batch_size=None, num_workers=2)]
print("torch", torch.__version__, "webdataset", importlib.metadata.version("webdataset"))
print("guess: with_epoch(16) has 16 samples, whoever reads them; 40 samples are batches of 16, 16 and 8.")
print("seen:", lengths, "samples with 0, 1 and 2 workers; batches of", batches)
assert lengths == [16, 16, 32] and batches == [16, 16, 4, 4], "the behaviour has changed"
PY
