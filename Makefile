# Tilework. `make help` lists what there is; every target sets up what it needs.

VENV := .venv
BIN := $(VENV)/bin
# plyvel has wheels for 3.11 and 3.12 only. A version manager's shim may exist without its interpreter: try them.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)

.PHONY: help setup devnet demo test test-long check format bench docs clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.dev  ## Create .venv with everything for development

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Tilework needs Python 3.11 or 3.12: install one, or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: setup.cfg | $(VENV)/bin/python
	@echo "Installing Tilework into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: setup.cfg | $(VENV)/bin/python
	@echo "Installing Tilework and its development tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.run

devnet: $(VENV)/.run  ## Start a local network and run the demo job on it (Ctrl-C stops all of it)
	@$(BIN)/tilework devnet up --demo

demo: $(VENV)/.run  ## Run the demo job against the running devnet
	@$(BIN)/tilework demo

test: $(VENV)/.dev  ## Run the tests (under five minutes on two cores)
	@$(BIN)/python -m pytest -m 'not long' -n 2 --dist loadfile tests

test-long: $(VENV)/.dev  ## Run the long tests too: real processes, large sizes, long simulations
	@$(BIN)/python -m pytest tests

check: $(VENV)/.dev  ## Lint, format, types and import directions
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest tests/test_house.py

format: $(VENV)/.dev  ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.dev  ## Measure, and print a table of ratios
	@$(BIN)/python -m benchmarks

docs: $(VENV)/.dev  ## Write docs/rpc.md from the method table
	@$(BIN)/tilework node rpc-docs > docs/rpc.md

clean:  ## Remove the environment, caches and the devnet's data
	rm -rf $(VENV) .devnet .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
