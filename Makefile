# Everything a developer runs. Each target sets up what it needs in .venv, from the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test bench check clean

demo: .venv/user
	$(BIN)/layerscope probe

test: .venv/dev check
	$(BIN)/python -m pytest --numprocesses 2 --quiet

check: .venv/dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: .venv/dev
	$(BIN)/python benchmarks/probe.py

# torch first and alone: a range in another package's wishes would bring a newer one with gigabytes of CUDA.
.venv/user: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable .
	touch $@

.venv/dev: .venv/user
	$(INSTALL) --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
