# Everything runs in one virtual environment, made when missing and refilled when pyproject.toml changes.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo show test lint bench verify-towers

help:
	@echo "make demo           pre-train on phantom data, offline (options: DEMO_ARGS=...)"
	@echo "make show           every downstream task on phantom data, beside controls, offline (options: SHOW_ARGS=...)"
	@echo "make test           fast tests (options: TEST_ARGS=..., WORKERS=2)"
	@echo "make lint           ruff: rules and format"
	@echo "make bench          all of benchmarks/"
	@echo "make verify-towers  real weights of the tower presets; needs network (options: TOWERS='dinov2-s bert')"
	@echo "make install        only the virtual environment (options: PYTHON=python3.12 TORCH='torch<2.11')"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' $(if $(TORCH),'$(TORCH)')
	touch $@

demo: $(INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

show: $(INSTALLED)
	$(BIN)/python examples/downstream_show.py $(SHOW_ARGS)

# worksteal gives each worker a run of whole files first: fixtures of a module are made once, and the end is even.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(TEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	@set -e; for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script; done

verify-towers: $(INSTALLED)
	$(BIN)/python -m adaptor_hf.towers verify $(TOWERS)
