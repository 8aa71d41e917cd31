PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint format bench clean

# A stamp for each kind of installation; pyproject.toml or a source file newer than it installs again.
SOURCES := pyproject.toml $(shell find src cli datasets detector generator web -type f -not -path '*/__pycache__/*')

$(VENV)/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet '.[test]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-test
	$(BIN)/python -m pip install --quiet '.[dev]'
	touch $@

demo: $(VENV)/installed ## make fakes, train, benchmark and check; pictures in demo/
	$(BIN)/ganscope demo

test: $(VENV)/installed-test ## the whole test suite, against the installed package
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed-test ## speed as ratios to the bare work
	$(BIN)/python benchmarks/speed.py

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info
