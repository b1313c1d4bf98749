# Two commands are enough: `make run` shows the program, `make test` proves it. Both do all set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test check bench-gate chaos load compare setup setup-dev browser lock clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: setup ## Start the gateway, a simulated Meta and the softphone page on this machine (Ctrl-C stops)
	@exec $(BIN)/python -m loadtest demo

test: setup-dev browser check ## Check and test everything, in a real browser too
	@$(BIN)/pytest -n 3 --dist worksteal

check: setup-dev ## Lint, format and types only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench-gate: setup ## Measure the gate with a million contacts in PostgreSQL
	@$(BIN)/python -m loadtest gate

chaos: setup-dev browser ## Break things on purpose and show what holds, row by row (LONG=1: the full sizes, hours)
	@$(BIN)/python -m loadtest chaos $(if $(LONG),--long)

load: setup ## Put load on a gateway and measure it, short form (LONG=1: the full sizes, hours)
	@$(BIN)/python -m loadtest run $(if $(LONG),--long)

compare: setup ## Measure the gateway beside pipecat, pywa, a floor of plain aiohttp, MediaRelay and rtpengine, 15 minutes
	@$(BIN)/python -m loadtest compare

setup: $(VENV)/.run ## Make the virtual environment with what `make run` needs
setup-dev: $(VENV)/.dev ## Make the virtual environment with what `make test` needs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "The venv module is missing; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: deploy/requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing dependencies (once, about half a minute) ..."
	@$(PIP) --require-hashes -r deploy/requirements.txt
	@touch $@

$(VENV)/.dev: deploy/requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing dependencies for tests (once, about half a minute) ..."
	@$(PIP) --require-hashes -r deploy/requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/.run

browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || sh deploy/install-chromium.sh

lock: ## Write the pinned, hashed requirements anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" pyproject.toml -o deploy/requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	  --custom-compile-command "make lock" pyproject.toml --group dev -o deploy/requirements-dev.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
