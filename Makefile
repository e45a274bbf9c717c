# Everything a developer runs. Each target sets up what it needs in .venv, from the versions in constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PEERS ?= .venv-peers
BROWSER := chromium fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What is compiled once is kept: the tests start many interpreters, and rewrite every module that asserts.
unexport PYTHONDONTWRITEBYTECODE
# What waits for a package or a type checker leaves a core to something else.
MAKEFLAGS += --jobs=2

.PHONY: demo test test-all browser bench peers guidance-bench check compiled clean

demo: .venv/user
	$(BIN)/layerscope probe

# A file's tests stay on one worker, where they share what they read.
# The file that takes longest comes early in the alphabet, and so does its turn: neither worker waits for it at the end.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --quiet

test: .venv/dev check compiled browser
	$(PYTEST)

# Everything but what needs an accelerator, with long properties and every type checked: before a change is called done.
# A whole number is a `float` to checkers of types (PEP 484), and so it is here.
EVERY_TYPE := beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))

test-all: .venv/dev check browser
	HYPOTHESIS_PROFILE=thorough $(PYTEST) -m "not gpu" '--jaxtyping-packages=layerscope,$(EVERY_TYPE)'

# Bytecode of what the tests import, which two workers would otherwise make side by side. What fails here is told by the tests.
compiled: .venv/dev
	@$(BIN)/python -m pytest --collect-only --quiet >/dev/null || true

# For the tests of the page; where it cannot be had they say so. The fonts are for tokens in other scripts than Latin.
browser:
	@command -v chromium >/dev/null || { \
	  if ! command -v apt-get >/dev/null; then echo "no chromium and no apt-get: the tests of the page need a browser"; exit 0; fi; \
	  if [ "$$(id -u)" = 0 ]; then as_root=; \
	  elif sudo -n true 2>/dev/null; then as_root="sudo -n"; \
	  else echo "chromium is missing: install it with 'sudo apt-get install chromium'"; exit 0; fi; \
	  $$as_root apt-get update -q >/dev/null || true; \
	  $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q $(BROWSER) >/dev/null || \
	  echo "apt-get could not install chromium: the tests of the page need a browser"; }

check: .venv/dev
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Wants a quiet machine. BENCH="peers --quick" for a piece, or for a trial.
bench: .venv/dev peers
	$(BIN)/python benchmarks/bench.py --peers-python $(PEERS)/bin/python $(BENCH)

# What the benchmarks compare with, apart from what a developer needs.
peers: $(PEERS)/made

$(PEERS)/made: benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers.txt
	touch $@

# Which cautions tell trained models from twins with shuffled weights: the table in docs/verdict.md.
guidance-bench: .venv/dev
	$(BIN)/python scripts/guidance_bench.py --write docs/verdict.md

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
	rm -rf .venv .venv-peers build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache test-output
