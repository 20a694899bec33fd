# rolecall: `make run` starts it, `make test` proves it. Both need Python >= 3.10 and make, nothing else.
SHELL := /bin/sh
VENV  := .venv
BIN   := $(VENV)/bin

# The first interpreter that is new enough and can make virtual environments; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# Tests at a time: most of them wait for processes most of their time.
JOBS ?= 4
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help install install-dev run test test-fast coverage check format lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.run-ready ## everything rolecall needs, into .venv/

install-dev: $(VENV)/.dev-ready ## the same, and what the tests need

run: install ## start rolecall on port 8100 (ARGS="--port 9000" passes options)
	@exec $(BIN)/rolecall serve $(ARGS)

test: install-dev ## the tests, the real engine included, in minutes (ARGS="tests/core -x" runs some, one by one)
ifdef ARGS
	@$(BIN)/python -m pytest $(ARGS)
else
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not alone and not long" --ignore=tests/browser
endif

.PHONY: test-long
test-long: install-dev ## those that take long, and those that run with nothing beside them (some minutes more)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long
	@$(BIN)/python -m pytest -m alone

test-fast: install-dev ## only the tests that start no process
	@$(BIN)/python -m pytest tests/core tests/backends tests/runtime $(ARGS)

.PHONY: fuzz
fuzz: install-dev ## ten thousand made-up bodies and ten thousand connections, new ones each time (some minutes)
	@ROLECALL_FUZZ=10000 $(BIN)/python -m pytest tests/process/test_fuzz.py -s $(ARGS)

.PHONY: test-pages
test-pages: install-dev ## the pages in a real Chromium, which apt installs where it is not there
	@sh tests/browser/install.sh
	@ROLECALL_TEST_BROWSER=required $(BIN)/python -m pytest -n 2 --dist loadfile tests/browser $(ARGS)

.PHONY: test-monitoring
test-monitoring: install-dev ## docs/monitoring with a real Prometheus, which apt installs where it is not there
	@sh tests/monitoring/install.sh
	@ROLECALL_TEST_PROMETHEUS=required $(BIN)/python -m pytest tests/monitoring $(ARGS)

.PHONY: record
record: install-dev ## the terminal session of docs/quickstart.md, recorded anew (needs port 8100, curl and script)
	@PYTHONPATH=tests $(BIN)/python -m engines.record_quickstart

.PHONY: test-vllm
test-vllm: install-dev ## the vLLM driver with a real vLLM, in an environment of its own (.venv-vllm/, 2.5 GB)
	@PYTHON="$(PYTHON)" sh tests/vllm/install.sh $(VENV)-vllm
	@ROLECALL_TEST_VLLM="$(CURDIR)/$(VENV)-vllm/bin/vllm" $(BIN)/python -m pytest tests/vllm $(ARGS)

.PHONY: test-clients
test-clients: install-dev ## real clients of OpenAI's API, in an environment of their own (.venv-clients/, 700 MB)
	@PYTHON="$(PYTHON)" sh tests/clients/install.sh $(VENV)-clients
	@ROLECALL_TEST_PYTHON="$(CURDIR)/$(BIN)/python" $(VENV)-clients/bin/python -m pytest -o pythonpath="tests src" tests/clients $(ARGS)

.PHONY: bench
bench: install-dev ## rolecall beside other proxies, figures and behaviour (ARGS="--quick --only rolecall,nginx")
	@PYTHON="$(PYTHON)" sh tests/bench/environments/install.sh $(VENV)-bench picture || echo "no matplotlib: no picture" >&2
	@$(BIN)/python tests/bench/run.py $(ARGS)

.PHONY: bench-peers
bench-peers: ## LiteLLM for make bench, in an environment of its own (.venv-litellm/, 750 MB)
	@PYTHON="$(PYTHON)" sh tests/bench/environments/install.sh $(VENV)-litellm litellm

coverage: install-dev ## branch coverage of core/, which must be 100 %
	@$(BIN)/python -m pytest tests/core --cov=rolecall.core --cov=rolecall.errors --cov-branch --cov-report=term-missing --cov-fail-under=100 -n $(JOBS) $(ARGS)

check: install-dev ## lint and types
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

format: install-dev
	@$(BIN)/python -m ruff check --fix-only --quiet .
	@$(BIN)/python -m ruff format .

lock: $(BIN)/python ## new lock files from pyproject.toml
	@$(PIP) install uv
	@set -e; c="$(BIN)/python -m uv pip compile --quiet --universal --generate-hashes --no-strip-extras --no-annotate --no-header --python-version 3.10"; \
	$$c pyproject.toml --extra llama --extra hub --group build -o requirements.lock; \
	$$c pyproject.toml --extra llama --extra hub --group build --group dev -c requirements.lock -o requirements-dev.lock; \
	$$c --group cc -o requirements-cc.lock

clean: ## remove the environment, caches and build output (logs and state stay)
	@rm -rf $(VENV) dist .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find src tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "rolecall needs Python >= 3.10 with venv (Debian, Ubuntu: apt install python3-venv); found none. PYTHON=/path/to/python3 names one." >&2; exit 1; fi
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run-ready: requirements.lock pyproject.toml | $(BIN)/python
	@echo "installing (once, about half a minute) ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev-ready: requirements-dev.lock requirements-cc.lock pyproject.toml | $(BIN)/python
	@echo "installing what the tests need (once, about a minute) ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@for c in "$$CC" cc gcc clang; do command -v "$$c" >/dev/null 2>&1 && exit 0; done; $(PIP) install --require-hashes -r requirements-cc.lock
	@touch $@ $(VENV)/.run-ready
