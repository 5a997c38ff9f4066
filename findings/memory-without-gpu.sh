#!/usr/bin/env bash
# A training loop that reports memory and waits for the device is written once for all machines, with torch.accelerator
# in new code. Without a GPU its functions raise, also those that have a natural answer (nothing to wait for, no memory
# in use), while the older torch.cuda answers some of them, and fails on others with errors that do not name the cause.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile torch==2.13.0 numpy==2.4.6
env/bin/python -W ignore - <<'PY'
import torch

def outcome(call):
    try:
        return repr(call())
    except Exception as error:
        return type(error).__name__

calls = {
    "accelerator.synchronize": torch.accelerator.synchronize,
    "accelerator.max_memory_allocated": torch.accelerator.max_memory_allocated,
    "accelerator.empty_cache": torch.accelerator.empty_cache,
    "cuda.max_memory_allocated": torch.cuda.max_memory_allocated,
    "cuda.empty_cache": torch.cuda.empty_cache,
    "cuda.reset_peak_memory_stats": torch.cuda.reset_peak_memory_stats,
    "cuda.memory_summary": torch.cuda.memory_summary,
}
print("torch", torch.__version__, "- CUDA:", torch.cuda.is_available())
if torch.accelerator.is_available():
    print("this machine has one: nothing to be seen here")
    raise SystemExit(0)
seen = {name: outcome(call) for name, call in calls.items()}
print("guess: waiting and clearing do nothing and memory is 0, or everything says that there is no device")
for name, result in seen.items():
    print("seen: torch." + name, "->", result)
assert list(seen.values()) == ["RuntimeError"] * 3 + ["0", "None", "AttributeError", "KeyError"], "it has changed"
PY
