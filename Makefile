# `make demo` and `make test` set up everything they need in .venv, once. `make help` lists the targets.

PYTHON  ?= python3
WORKERS ?= 2
VENV    := .venv
RUN     := $(VENV)/bin/python
READY   := $(VENV)/.ready

# CrypTen depends on the placeholder package `sklearn`, which refuses to be built without this.
export SKLEARN_ALLOW_DEPRECATED_SKLEARN_PACKAGE_INSTALL := True
# Several party processes share the machine: one thread each is fastest, and repeatable.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-all benchmark lint clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 20

setup: $(READY)  ## make .venv with all dependencies

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
	    "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Setting up $(VENV), once: torch and the rest are downloaded, which takes some minutes."
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	@touch $@

demo: $(READY)  ## two hospitals train and test a model on secret-shared images, in about two minutes
	$(RUN) -m mpc_imaging experiment=demo

test: $(READY)  ## all tests but the slow ones
	$(RUN) -m pytest -m "not slow" -n $(WORKERS)

test-all: $(READY)  ## all tests, slow ones included
	$(RUN) -m pytest -n $(WORKERS)

benchmark: $(READY)  ## this project beside CrypTen as it comes, alternating in one run; about ten minutes
	$(RUN) -m benchmarks all

lint: $(READY)  ## style of the code
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:  ## delete .venv and everything that tools have cached (not outputs/)
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
