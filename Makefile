# make demo    the whole path on a real year of flights
# make test    set-up, check, tests (in two processes; PROCESSES=N for others)
# make nightly make test, then thousands of scenarios against the oracle, 50 rounds of the crash suite from seeds of
#              the day (SEED=N for others), the worker's tests on a cluster, a join of 100,000,000 events
# make check   lint, types, house rules
# make feast-tests FEAST_SRC=path   Feast's own universal tests against our stores, from a checkout of Feast
# make up      store, worker, archiver, server and scheduler in this terminal
# Needs python3 (3.11 or newer) and make; everything else goes into .venv.

PYTHON ?= python3
READY := .venv/.ready
BIN := .venv/bin
PROCESSES ?= 2
SEED ?= $(shell date +%Y%m%d00)
TYPED := $(wildcard headrace materialize serving training demo benchmarks)

.PHONY: demo test nightly check feast-tests up setup clean

demo: $(READY)
	@$(BIN)/headrace demo

up: $(READY)
	@$(BIN)/headrace up

test: check
	@$(BIN)/pytest -n $(PROCESSES)

nightly: test
	@HEADRACE_ORACLE_SEEDS=150 $(BIN)/pytest -q tests/read/test_online_equals_oracle.py tests/read/test_dataset.py \
	  tests/read/test_any_windows_equal_oracle.py
	@HEADRACE_CRASH_ROUNDS=50 HEADRACE_CRASH_SEED=$(SEED) $(BIN)/pytest -s tests/crash
	@HEADRACE_CLUSTER_ALL=1 $(BIN)/pytest -q tests/cluster
	@$(BIN)/python -m benchmarks.point_in_time --nightly

feast-tests: $(READY)
	@$(BIN)/python tests/feast_plugin/run_universal.py "$(FEAST_SRC)"

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict $(TYPED)
	@$(BIN)/pytest -q tests/house/test_arrows.py tests/house/test_lengths.py

setup: $(READY)

$(READY): pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Headrace needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { rm -rf .venv; echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@test -x $(BIN)/uv || $(BIN)/python -m pip install -q --disable-pip-version-check 'uv>=0.8'
	@UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV= \
	  $(BIN)/uv sync --frozen --all-extras --inexact --python $(BIN)/python
	@touch $(READY)

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
