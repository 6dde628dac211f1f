# Two commands do everything on a fresh machine: `make demo` and `make test`.
# PYTHON=/path/to/python3.12 chooses the interpreter; otherwise the first one on PATH that is new enough.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.longtake-installed
DEMO := runs/demo
PYTEST := $(BIN)/python -m pytest
# Two processes of one thread are faster than one of two threads on models this small.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist loadfile
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv demo test test-slow test-gpu lint format notebooks clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       set up, then train the tiny video model by GRPO and print before/after"
	@echo "make test       set up, then run the tests that need no GPU and no patience"
	@echo "make lint       set up, then ruff and mypy"
	@echo "make test-slow  the tests of more than a minute"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make notebooks  execute the notebooks in place"
	@echo "make format     let ruff rewrite what it can"
	@echo "make clean      remove caches and build folders (not $(VENV), not runs/)"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	if [ ! -x $(BIN)/python ]; then \
	  found=""; \
	  for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	    if command -v $$python >/dev/null 2>&1 && $$python -c \
	      'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make venv: no python3 >= 3.11 with venv on PATH; install one, or make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	  fi; \
	  echo "make venv: creating $(VENV) with $$(command -v $$found)"; \
	  $$found -m venv $(VENV); \
	fi; \
	echo "make venv: installing longtake and its tested dependencies (some GB, once)"; \
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	touch $@

# --resume continues a demo that was interrupted; on an empty folder it starts a new one.
demo: venv
	$(BIN)/python cli.py grpo run --output-dir $(DEMO) --resume
	@echo "report: $(CURDIR)/$(DEMO)/report.html"

test: venv
	$(SIDE_BY_SIDE) -q -m "not slow and not gpu"

test-slow: venv
	$(PYTEST) -q -m "slow and not gpu"

test-gpu: venv
	$(PYTEST) -q -m "gpu"

# The repository root is the package, so mypy sees it through a link named after the package.
lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p $(VENV)/typecheck && ln -sfn "$(CURDIR)" $(VENV)/typecheck/longtake
	MYPYPATH=$(VENV)/typecheck $(BIN)/mypy -p longtake

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

notebooks: venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[notebooks]'
	$(BIN)/jupyter-execute --inplace notebooks/*.ipynb

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
