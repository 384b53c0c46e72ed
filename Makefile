# raycl: everything a new checkout needs. `make demo` and `make test` set up on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UV_VERSION := 0.13.9
# Tests that share something costly stay on one process (tests/kit/groups.py).
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help setup demo check test test-fast mutants mutants-some audit cards docs reproduce-smoke lock check-tools clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

check-tools:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found. Install Python 3.11 or newer, or give make PYTHON=/path/to/python3."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old: raycl needs Python 3.11 or newer (make PYTHON=python3.12 ...)."; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module. On Debian/Ubuntu: apt-get install python3-venv."; exit 2; }
	@command -v git >/dev/null || { echo "error: git not found. On Debian/Ubuntu: apt-get install git."; exit 2; }

setup: check-tools $(STAMP)  ## virtual environment with the hash-pinned dependencies

$(STAMP): requirements.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: setup      ## four small real tasks on the packaged 135M model, no downloads from any hub
	$(BIN)/raycl run --order demo

check: setup     ## style, complexity and types, without running anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

test: setup      ## all tests, two at a time
	$(BIN)/python -m pytest -q $(PARALLEL) --durations=25

test-fast: setup ## no Ray cluster, one case of every method on one model family, nothing drawn at random
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not slow and not thorough"

mutants: setup   ## change raycl in small ways and see whether the tests notice (about half an hour; goes on where it stopped)
	$(BIN)/python benchmarks/mutants.py

mutants-some: setup  ## a random dozen of them
	$(BIN)/python benchmarks/mutants.py --some 12

audit: setup     ## known vulnerabilities of the locked dependencies (needs a connection to the package index)
	$(BIN)/python benchmarks/audit.py

cards: setup     ## the pages about the methods, from code and measurements
	$(BIN)/raycl cards

docs: setup      ## the documentation as a site in _site/docs/index.html; a warning is an error
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs/site . _site

reproduce-smoke: setup  ## every published table with a tiny random model, and the page that says what was run
	$(BIN)/raycl reproduce all --scale smoke --output benchmarks/results/reproductions
	$(BIN)/raycl reproductions

lock: setup      ## pin the dependencies of pyproject.toml anew
	$(BIN)/uv pip compile pyproject.toml --group demo --group dev --group docs --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --quiet -o requirements.lock

clean:           ## remove the virtual environment
	rm -rf $(VENV)
