# `make help` lists the targets. The first target to need it builds .venv, once.

PYTHON ?= python3
# Processes for the tests, one thread each.
JOBS ?= 2
# Optional: a folder with local copies of the named data sets (mnist/*.gz, ...). Empty: tests that
# need them skip, and commands that need them download. A folder shared/data beside the clone is
# taken by itself.
PYROVAE_DATA ?= $(abspath $(wildcard ../shared/data))
export PYROVAE_DATA

BIN := .venv/bin
READY := .venv/ready
# One script a question; a leading underscore marks what the scripts share. Half an hour or
# more of MNIST, and what trains for its answer on collapse, is run by itself:
# python benchmarks/mnist_nll.py, ...
LONG := benchmarks/mnist_% benchmarks/collapse_% benchmarks/lagging_% benchmarks/hill_%
BENCHMARKS := $(filter-out benchmarks/_% $(LONG),$(wildcard benchmarks/*.py))
TUTORIALS := $(wildcard tutorials/*.ipynb)

.PHONY: help demo test test-slow bench tutorials lint clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(READY) ## three VAEs on handwritten digits: ELBO and log p(x), side by side (runs/demo)
	$(BIN)/pyrovae compare --out runs/demo

test: $(READY) ## the test suite, doctests and tutorials in smoke mode
	OMP_NUM_THREADS=1 SMOKE=1 $(BIN)/python -m pytest -n $(JOBS)

test-slow: $(READY) ## the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m slow

bench: $(READY) ## the short benchmarks; rows are appended to benchmarks/results/
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script; done

tutorials: $(READY) ## execute the notebooks in full, in place
	@set -e; export PYTHONWARNINGS="ignore:IProgress not found"; \
	for book in $(TUTORIALS); do $(BIN)/jupyter execute --inplace $$book; done

lint: $(READY) ## ruff and the floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean: ## what the targets above made, except benchmarks' results and tutorials
	rm -rf .venv runs build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# torch first and by itself: the exact pin lets an index with CPU builds answer with one.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv, once: a few minutes, most of it torch."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e ".[test]"
	@touch $(READY)
