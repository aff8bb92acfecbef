# Everything from a fresh checkout: `make train` or `make test`. A second time, the set-up takes no time.

PYTHON ?= python3.11
CONFIG ?= configs/quickstart.yaml
ARGS   ?=

export PYTHON
# torch would choose the shared temporary folder
export TORCHINDUCTOR_CACHE_DIR ?= $(CURDIR)/.cache/torchinductor
python := .venv/bin/python

.PHONY: help setup environment engine image image-cpp train test check clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

train: setup ## set up, then train; CONFIG=configs/x.yaml ARGS="key=value" change what
	.venv/bin/rl train $(CONFIG) $(ARGS)

test: setup ## set up, check, then every test that this machine can run
	@$(MAKE) --no-print-directory check
	@marks=$$($(python) -c 'import torch; print("" if torch.cuda.is_available() else "not gpu")') && \
		$(python) -m pytest -m "$$marks" $(ARGS)

check: environment ## format, lint, types, and which room may import which
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy rl envs rewards policy benchmarks
	$(python) -m pytest -q tests/test_arrows.py

setup: engine ## virtual environment, Docker engine, sandbox image (fresh: about a minute)
	@$(MAKE) --no-print-directory -j2 environment image

environment: # .venv with the pinned packages
	@scripts/python-env.sh

engine: # first of all: where Docker cannot be had, say so before anything long
	@scripts/docker-engine.sh

image: engine
	@scripts/sandbox-image.sh

image-cpp: engine ## an image of the sandboxes with g++: rollout.image=touchstone-sandbox:bookworm-cpp
	@scripts/sandbox-image.sh cpp

clean: ## remove the virtual environment and caches; runs/ and the sandbox image stay
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
