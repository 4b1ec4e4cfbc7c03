# Needs Python 3.11 or newer, make, and a network for the first time. Everything lives in .venv.
#   make demo PYTHON=python3.13      another Python
#   make test PYTEST="-k events"     some of the tests

.DEFAULT_GOAL := help
PYTHON ?=
PYTEST ?=
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test lint check format bench clean

help:  ## what can be made
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.ready-demo  ## train a pipeline on two Celery workers, with nothing but this checkout
	@$(BIN)/somatize demo

test: $(VENV)/.ready-dev  ## the whole test suite
	@$(BIN)/python -m pytest $(PYTEST)

lint: $(VENV)/.ready-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint  ## style, types and the unit tests
	$(BIN)/python -m pytest -q tests/unit $(PYTEST)

format: $(VENV)/.ready-dev  ## bring the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-bench  ## side by side with Celery, Dask and Ray (takes minutes)
	$(BIN)/python -m benchmarks

clean:  ## remove the virtual environment and every cache
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of extras, made anew when pyproject.toml changes.

$(VENV)/.ready-demo: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): once, about a minute" >&2
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing into $(VENV): once, about a minute" >&2
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.ready-demo

$(VENV)/.ready-bench: benchmarks/requirements.txt $(VENV)/.ready-dev
	@echo "installing what the benchmarks compare with" >&2
	@$(PIP) --requirement benchmarks/requirements.txt
	@touch $@

$(VENV)/bin/python: CANDIDATES = $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11)
$(VENV)/bin/python:
	@for python in $(CANDIDATES); do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "needs Python 3.11 or newer, and none of these is: $(CANDIDATES)" >&2; \
	  echo "Install one, or say where it is: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$$found -m venv' failed, see above (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
