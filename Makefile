# `make demo` does the main job, `make test` passes the tests; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo model test lint docs clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python could not make a virtual environment: install python3-venv, or name another with PYTHON=python3.12."; exit 1; }
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

demo: $(STAMP)  ## edits at once, then a training of its own, on built-in data: runs/demo/report.html
	$(BIN)/diti demo

SHIPPED := runs/shipped
IMAGES := 200000
model: $(STAMP)  ## train, export and measure the model that ships with the package: hours; stopped, it goes on
	test -f $(SHIPPED)/model/model_index.json || \
	  $(BIN)/diti train --data faces:200000 --preset faces32 --images $(IMAGES) -o $(SHIPPED)
	$(BIN)/python -m benchmarks.export_model $(SHIPPED)
	$(BIN)/diti encode faces:4000:1 --model shipped -o $(SHIPPED)/feats.npy
	$(BIN)/diti probe $(SHIPPED)/feats.npy --labels $(SHIPPED)/labels.csv -o $(SHIPPED)/probe
	$(BIN)/diti evaluate shipped --atlas --chunk-groups 16 --no-moves --pairs 32 -o $(SHIPPED)/evaluation
	$(BIN)/python -m benchmarks.export_model $(SHIPPED) --card
	$(BIN)/diti edit faces:0:1 faces:5:1 --model shipped --grid --alphas 1 -o docs/edit.png

test: $(STAMP)  ## lint, types and all tests that need no GPU
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(STAMP)  ## regenerate docs/cli.md from the commands' help
	$(BIN)/typer diticli.commands.app utils docs --name diti --title "Commands" --output docs/cli.md

clean:  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
