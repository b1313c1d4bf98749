# Two commands are enough: `make run` shows the program, `make test` proves it. Both do all set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A lock is complete: nothing that it does not name is looked for, whatever has come out since.
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --no-deps

# A test run starts hundreds of processes: without bytecode each compiles all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test check bench-gate chaos load compare setup setup-dev browser lock clean

help: ## Show what there is
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: setup ## Start the gateway, a simulated Meta and the softphone page on this machine (Ctrl-C stops; PORT=8080 names one)
	@exec $(BIN)/python -m loadtest demo $(if $(PORT),--port $(PORT)) \
	  $(if $(ADMIN_PORT),--admin-port $(ADMIN_PORT)) $(if $(SIM_PORT),--sim-port $(SIM_PORT))

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

# A .venv whose Python is gone, or is another than the one that PYTHON= names, is made anew.
version_of = $(shell $(1) -c 'import sys; print(sys.version)' 2>/dev/null)
ifneq ($(wildcard $(VENV)/pyvenv.cfg),)
  MADE_BY := $(call version_of,$(BIN)/python)
  WANTED := $(if $(filter file,$(origin PYTHON)),$(or $(MADE_BY),any),$(call version_of,$(PYTHON)))
  ifneq ($(MADE_BY),$(WANTED))
    .PHONY: $(BIN)/python $(VENV)/.run $(VENV)/.dev
  endif
endif

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "This needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { rm -rf $(VENV); echo "The venv module is missing; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }

# What an earlier lock brought may stand in the way of a later one.
define check_installed
	@said=$$($(PIP) check) || { echo "$$said" >&2; echo "These do not fit together; try: make clean" >&2; exit 1; }
endef

$(VENV)/.run: deploy/requirements.txt pyproject.toml | $(BIN)/python
	@echo "Installing dependencies (once, about half a minute) ..."
	@$(INSTALL) --require-hashes -r deploy/requirements.txt
	$(check_installed)
	@touch $@

$(VENV)/.dev: deploy/requirements-dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing dependencies for tests (once, about half a minute) ..."
	@$(INSTALL) --require-hashes -r deploy/requirements-dev.txt
	@$(INSTALL) --no-build-isolation --editable .
	$(check_installed)
	@touch $@ $(VENV)/.run

browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || sh deploy/install-chromium.sh

# Extras stay in the lock: without them an installer looks for them itself, and finds a version that has no hash here.
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras \
  --custom-compile-command "make lock" pyproject.toml

lock: ## Write the pinned, hashed requirements anew (needs uv); versions that still fit stay as they are
	$(LOCK) -o deploy/requirements.txt
	$(LOCK) --group dev -o deploy/requirements-dev.txt

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
