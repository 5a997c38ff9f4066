#!/usr/bin/env bash
# Scores come from scikit-learn as NumPy scalars. A model card made of one is not written with the number but with a
# Python object's recipe, which huggingface_hub itself then cannot read: from_template raises a YAML error about a
# constructor. Convert scores with float() before they go into an EvalResult.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
"${PYTHON:-python3}" -m venv env
env/bin/pip install --quiet --no-compile huggingface_hub==2.4.0 numpy==2.4.6 jinja2==3.1.6
env/bin/python -W ignore - <<'PY'
import huggingface_hub
import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData

def card(score):
    names = {"task_type": "probe", "dataset_type": "faces", "dataset_name": "faces", "metric_type": "ap"}
    result = EvalResult(**names, metric_value=score)
    data = ModelCardData(model_name="encoder", eval_results=[result])
    try:
        made = ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n")
        return str(made.data.eval_results[0].metric_value)
    except Exception as error:
        return type(error).__name__

seen = [card(score) for score in (0.5, np.float64(0.5), np.float32(0.5))]
print("huggingface_hub", huggingface_hub.__version__, "numpy", np.__version__)
print("guess: the card says 0.5 three times (np.float64 is a Python float)")
print("seen:", seen)
assert seen == ["0.5", "ConstructorError", "ConstructorError"], "the behaviour has changed"
PY
