# Needs make, and Python 3.11, 3.12 or 3.13 with pip; all else is installed into .venv.
#
#   PYTHON       the interpreter that .venv is made with (default: python3)
#   JOBS         processes that share the tests (default: 2, as many tests start processes of their own)
#   AGAIN        set (AGAIN=1), make demo begins anew in place of going on with the run in runs/demo
#   TORCH_INDEX  an index to take torch from, for a CUDA or a CPU build (see README.md)

PYTHON ?= python3
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
STAMP := $(VENV)/.stamp

# Nothing that runs here reports home, and Flower installs nothing on its own.
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION := 1
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup demo federation test nightly check bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## make .venv and install hushtune with all it needs

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "hushtune needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is not one of them." >&2; \
	  echo "Name one that is: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "[1/3] making $(VENV)"; $(PYTHON) -m venv $(VENV); } || { \
	  echo "$(VENV) could not be made; on Debian and Ubuntu: apt install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	@echo "[2/3] installing torch $(TORCH_VERSION) (a large download, once)"
	@$(PIP) install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	@echo "[3/3] installing hushtune and the libraries it builds on"
	@$(PIP) install -e '.[dev]'
	@touch $(STAMP)
	@echo "ready: $(BIN)/hushtune --help"

# A demo that was interrupted goes on from its last checkpoint, one that is finished is shown again.
BEGUN := $(if $(AGAIN),,$(wildcard runs/demo/config.toml))

demo: $(STAMP) ## four private sites train one model, into runs/demo; goes on if interrupted, AGAIN=1 begins anew
	$(BIN)/hushtune simulate --out runs/demo $(if $(BEGUN),--resume,--preset demo --overwrite)
	@$(if $(BEGUN),echo "make demo AGAIN=1 trains it anew",:)

federation: $(STAMP) ## a coordinator and three sites as processes of this machine, into runs/federation
	$(BIN)/python -m hushtune.simulations.federation_walk runs/federation

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

nightly: $(STAMP) ## the tests that take too long for each change: presets of all kinds, federations of processes
	$(BIN)/python -m pytest -q -m nightly

check: $(STAMP) ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(STAMP) ## measure, in about ten minutes: noise, calibration, speed beside other programs
	$(BIN)/python benchmarks/noise.py
	$(BIN)/python benchmarks/calibration.py
	$(BIN)/python benchmarks/w.py --repetitions 1 --again --out runs/bench

clean: ## remove caches and bundles; keeps .venv and runs
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.fab
	find client server common simulations tests -name __pycache__ -type d -prune -exec rm -rf {} +
