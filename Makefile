# What a newcomer and a maintainer run. Each target is complete on a fresh Debian or Ubuntu with python3, python3-venv
# and make; ARGS is passed on: make lab ARGS="--no-browser --port=8899"

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
BIN     = $(VENV)/bin
WORKERS ?= 2
# nbval compares what a cell writes to stderr too, and a progress bar appears there on a slow machine: TQDM_DISABLE.
NBVAL   = --nbval-lax --nbval-current-env --nbval-cell-timeout=600

.PHONY: help lab test lint format bench gpu ncu notebooks pages clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

lab: $(VENV)/.lab ## install, then open the course in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=notebooks $(ARGS)

test: $(VENV)/.test ## install, then run every test: units, browser, notebooks
	$(BIN)/python -m pytest -n $(WORKERS) tests $(ARGS)
	TQDM_DISABLE=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope $(NBVAL) notebooks

lint: $(VENV)/.test ## code, notebooks in canonical form, generated pages up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/canonical_notebooks.py --check
	$(BIN)/python tools/sync_pages.py --check

format: $(VENV)/.test ## repair what lint finds
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/canonical_notebooks.py
	$(BIN)/python tools/sync_pages.py

bench: $(VENV)/.test ## on a GPU: measure the peers and append to records/
	$(BIN)/python tools/bench.py $(ARGS)

gpu: $(VENV)/.test ## on a GPU: every trap of launching, every kernel and every verdict against the emulator
	$(BIN)/python tools/check_gpu.py --json records/check_gpu.json
	$(BIN)/python tools/compare_devices.py --json records/compare_devices.json
	$(BIN)/python tools/check_verdicts.py

ncu: $(VENV)/.test ## on a GPU with Nsight Compute: the x-ray's counts against the profiler's, and the network's kernels
	$(BIN)/python tools/compare_ncu.py
	$(BIN)/python tools/ncu_network.py

notebooks: $(VENV)/.test ## execute the notebooks and store their outputs
	$(BIN)/python tools/execute_notebooks.py $(ARGS)
	$(BIN)/python tools/canonical_notebooks.py

pages: $(VENV)/.test ## rewrite the tables, plots and badges that are generated
	$(BIN)/python tools/sync_pages.py $(ARGS)

clean: ## remove the environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

# A stamp is renewed when the project's dependencies change.
$(VENV)/.lab: pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extras lab
	@touch $@

$(VENV)/.test: pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --venv $(VENV) --extras lab,test,browser,dev
	@touch $@ $(VENV)/.lab
