# `make demo` does the main job, `make test` passes the tests; each sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint docs clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python could not make a virtual environment: install python3-venv, or name another with PYTHON=python3.12."; exit 1; }
	$(BIN)/python -m pip install --quiet -e ".[test]"
	touch $@

demo: $(STAMP)  ## train, encode, probe and edit on built-in data; writes runs/demo/report.html
	$(BIN)/diti demo

test: $(STAMP)  ## lint, types and all tests that need no GPU
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: $(STAMP)  ## regenerate docs/cli.md from the commands' help
	$(BIN)/typer diticli.commands.app utils docs --name diti --title "Commands" --output docs/cli.md

clean:  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
