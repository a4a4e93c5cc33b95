# The only runner of this project. `make test` and `make demo` set everything up by themselves.
# Needs CPython 3.11 or newer, git and make; written for GNU make 3.81 (macOS) and later.

# The first interpreter that is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null)))

BIN := .venv/bin
STAMP := .venv/.stamp
PIP := -m pip --disable-pip-version-check --quiet
JOBS ?= 2
OTHERS := 3.12 3.13

# An interpreter of version $(1) that really starts: a pyenv shim on PATH may exist and yet refuse to run.
find_python = $(firstword $(foreach p,python$(1) $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python$(1)),\
  $(shell $(p) -c 'import sys; print(sys.executable)' 2>/dev/null)))

.DEFAULT_GOAL := check
.PHONY: help venv check test pytest test-core demo soak matrix docs simulate format clean

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

venv: $(STAMP)  ## Make the virtual environment

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no CPython 3.11 or newer found; set PYTHON=/path/to/python" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@# `--group` needs pip 25.1; interpreters ship an older one.
	$(BIN)/python $(PIP) install --upgrade 'pip>=25.1'
	$(BIN)/python $(PIP) install --editable . --group dev
	@touch $@

check: $(STAMP)  ## Lint, format, types, import contracts, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell

pytest: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) -m "not slow"

test: check  ## All checks and tests that fit in a few minutes
	@$(MAKE) --no-print-directory pytest
	@$(MAKE) --no-print-directory test-core

# One small environment for each further interpreter: .venv-3.12, .venv-3.13.
.venv-%/.stamp: pyproject.toml
	"$(call find_python,$*)" -m venv .venv-$*
	.venv-$*/bin/python $(PIP) install --upgrade 'pip>=25.1'
	.venv-$*/bin/python $(PIP) install --editable . --group test
	@touch $@

test-core: $(addprefix test-core-,$(OTHERS))  ## The core's tests on the other interpreters found
test-core-%:
	$(if $(call find_python,$*),\
	  @$(MAKE) --no-print-directory .venv-$*/.stamp && \
	  echo "CPython $*: the core's tests" && .venv-$*/bin/python -m pytest -n $(JOBS) -m "not slow" tests/core,\
	  @echo "CPython $*: skipped, no interpreter found")

demo: $(STAMP)  ## Crawl a local site, kill the crawler half-way, finish
	$(BIN)/python examples/linkcheck/demo.py

soak: $(STAMP)  ## The long proofs: thousands of seeds, hundreds of kills
	TREADLE_SIM_SEEDS=$${TREADLE_SIM_SEEDS:-5000} TREADLE_KILLS=$${TREADLE_KILLS:-200} \
	  $(BIN)/python -m pytest -n $(JOBS) -m "soak or slow"

matrix: pytest $(addprefix matrix-,$(OTHERS))  ## Every test on every interpreter found
matrix-%:
	$(if $(call find_python,$*),\
	  @$(MAKE) --no-print-directory .venv-$*/.stamp && \
	  echo "CPython $*: every test" && .venv-$*/bin/python -m pytest -n $(JOBS) -m "not slow",\
	  @echo "CPython $*: skipped, no interpreter found")

docs: $(STAMP)  ## Run the documentation's code and check what it names
	$(BIN)/python -m pytest tests/test_docs.py tests/test_exports.py tests/test_examples.py

simulate: $(STAMP)  ## Replay one simulated history: make simulate SEED=n
	@test -n "$(SEED)" || { echo "usage: make simulate SEED=n" >&2; exit 2; }
	$(BIN)/python -m treadle.testing.simulation --seed $(SEED)

format: $(STAMP)  ## Rewrite the sources as the linters want them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove everything that make has made
	rm -rf .venv .venv-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
