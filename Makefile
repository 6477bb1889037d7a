# Everything is done in .venv, which is made from the exact versions in requirements/.
# Needs Python 3.11 or newer with pip, make, and nothing else. `make help` lists what there is.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
PYTHON_VENV := $(VENV)/bin/python
DEV := $(VENV)/.dev-is-made
DEMO := $(VENV)/.demo-is-made
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Tests and benchmarks start mtask many hundred times: without its bytecode, each start would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

# What the tests, the types and the docs import. A new backend's extra goes here, then `make lock`.
LOCKED_EXTRAS := aws azure condor gcp postgres rabbitmq files notebook urls examples

# More arguments for pytest, mkdocs or the benchmarks: make test ARGS='-k leases'
ARGS ?=
# Test files run side by side in so many processes, which mostly wait; the long ones come first.
PROCESSES ?= 4

.PHONY: help demo test coverage servers lint format format-check types docs bench peers examples chaos lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22

demo: $(DEMO) ## run the genomics example here and now: seconds, no account, no server
	@bash examples/demo.sh

PYTEST := $(PYTHON_VENV) -m pytest -n $(PROCESSES) --dist=loadfile --no-loadscope-reorder

test: $(DEV) servers ## run all tests
	@$(PYTEST) $(ARGS) || { \
	    echo '== What failed beside other tests, once more and alone: what is wrong fails again'; \
	    $(PYTHON_VENV) -m pytest --last-failed --last-failed-no-failures=none; }

coverage: $(DEV) servers ## run all tests, and say which lines none of them ran: twice the time
	@export COVERAGE_CORE=$$($(PYTHON_VENV) -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")'); \
	$(PYTEST) --cov --cov-report=term $(ARGS)

servers: ## install the servers that the tests use, where that is allowed
	@bash scripts/setup-servers

lint: $(DEV) ## find mistakes (ruff)
	@$(PYTHON_VENV) -m ruff check .

format: $(DEV) ## format the code, and mend what can be mended
	@$(PYTHON_VENV) -m ruff check --fix .
	@$(PYTHON_VENV) -m ruff format .

format-check: $(DEV) ## is the code formatted?
	@$(PYTHON_VENV) -m ruff format --check .

types: $(DEV) ## check the types (mypy, strict)
	@$(PYTHON_VENV) -m mypy

docs: $(DEV) ## build the documentation into site/
	@$(PYTHON_VENV) -m mkdocs build --strict --quiet $(ARGS)

bench: $(DEV) ## run the benchmarks
	@$(PYTHON_VENV) -m benchmarks $(ARGS)

peers: $(DEV) ## measure others at the same work: ARGS=--install first
	@$(PYTHON_VENV) -m benchmarks.peers $(ARGS)

examples: $(DEV) servers ## run the examples at full size, and write docs/examples/ anew
	@$(PYTHON_VENV) -m examples.genomics.all
	@$(PYTHON_VENV) -m examples.arxiv.all $(ARGS)
	@$(PYTHON_VENV) -m examples.arxiv.experiment --out docs/examples

chaos: $(DEV) ## ten minutes of faults, and what must hold after them
	@$(PYTHON_VENV) -m tests.chaos $(ARGS)

lock: ## write requirements/ anew (needs uv); UPGRADE=1 takes the newest versions
	@compile() { uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) "$$@"; }; \
	compile --group dev $(addprefix --extra ,$(LOCKED_EXTRAS)) --output-file requirements/dev.txt; \
	compile --group build --constraint requirements/dev.txt --output-file requirements/demo.txt
	@if grep -nE '://|^-' requirements/*.txt; then echo 'requirements/ must name no host'; exit 1; fi

clean: ## remove all that was made here
	rm -rf $(VENV) site build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(DEV): requirements/dev.txt pyproject.toml scripts/setup-venv
	@bash scripts/setup-venv $(VENV) requirements/dev.txt
	@touch $(DEMO) $@

$(DEMO): requirements/demo.txt pyproject.toml scripts/setup-venv
	@bash scripts/setup-venv $(VENV) requirements/demo.txt
	@touch $@
