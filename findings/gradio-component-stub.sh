#!/usr/bin/env bash
# Defining a subclass of a Gradio component writes a file: a `.pyi` stub of the whole module appears beside it as soon as
# it is imported, in a read-write installation of somebody else's package too. Type checkers then read the stub in place
# of the module. An attribute set on an instance (here `preprocess`) changes the component as well, and writes nothing.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile gradio==6.31.0
mkdir code
cat > code/uploads.py <<'PY'
import gradio as gr

class Upload(gr.Image):
    def preprocess(self, payload):
        return payload
PY
cat > code/plain.py <<'PY'
import gradio as gr

image = gr.Image()
image.preprocess = lambda payload: payload
PY
cd code
GRADIO_ANALYTICS_ENABLED=False ../env/bin/python -W ignore - <<'PY'
import os
import sys

sys.path.insert(0, "")
import gradio
import plain
import uploads

written = sorted(name for name in os.listdir() if name.endswith(".pyi"))
print("gradio", gradio.__version__)
print("guess: importing a module that defines a subclass of gr.Image writes nothing")
print("seen: beside the modules lie", written)
assert written == ["uploads.pyi"], "the behaviour has changed"
PY
