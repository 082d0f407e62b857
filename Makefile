# The two commands: `make all` plays every match at the mini tier, `make test` runs the test-suite.
# CORES=4 TIER=smoke PYTHON=python3.11 can be given; PIP_ARGS goes to pip (an index, a proxy).

PYTHON ?= python3
CORES ?= all
TIER ?= mini
PIP_ARGS ?=

BIN := .venv/bin

# pip compiles on one core.
PIP := $(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS)
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true # some packages bring templates, which are no Python

.PHONY: all test benchmark lint clean

all: .venv/installed
	@code=0; PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores $(CORES) --config tier=$(TIER) -- all || code=$$?; \
	$(BIN)/rematch claims --tier $(TIER) || true; \
	$(BIN)/rematch status --tier $(TIER) || true; \
	exit $$code

test: .venv/installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

benchmark: .venv/installed-dev
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest tests/benchmarks -m benchmark

lint: .venv/installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	$(BIN)/snakefmt --check Snakefile workflows

clean:
	rm -rf .venv .snakemake results reports/smoke reports/mini reports/real reports/paper

.venv/installed: pyproject.toml | $(BIN)/python
	$(PIP) --editable .
	@$(COMPILE)
	touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) --editable ".[dev]"
	@$(COMPILE)
	touch .venv/installed $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
	-$(PIP) --upgrade pip # that of an older Python takes minutes more to choose versions
