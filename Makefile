PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types parity load bench bench-quick clean

demo: $(VENV)/installed
	$(BIN)/chatwright run recipes/demo.yaml

test: $(VENV)/installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/installed-test
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/installed-test
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed

# The losses and gradients of TRL on the same batches; PPO is in 1.12 for the last time.
parity: .venv-parity/installed
	.venv-parity/bin/python -m pytest tests/parity
	PYTHONPATH=.venv-parity/trl-1.12 .venv-parity/bin/python -m pytest tests/parity

.venv-parity/installed: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' trl==1.16.0
	.venv-parity/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-parity/trl-1.12 trl==1.12.0
	touch $@

# 64 people who chat at once, and the throughput beside `transformers serve`; into benchmarks/load.json.
load: $(VENV)/installed-test
	$(BIN)/python benchmarks/load.py
	$(BIN)/python benchmarks/throughput.py

# Ours beside TRL, ms-swift, transformers and llama.cpp on this machine; see docs/performance.md.
bench: $(VENV)/installed .venv-bench/installed
	$(BIN)/python benchmarks/bench.py

bench-quick: $(VENV)/installed .venv-bench/installed
	$(BIN)/python benchmarks/bench.py --quick

PINS := $(wildcard benchmarks/requirements/*.txt)

.venv-bench/installed: $(PINS) benchmarks/requirements/constraints
	for pins in $(PINS); do \
		name=.venv-bench/$$(basename $$pins .txt); \
		$(PYTHON) -m venv $$name && $$name/bin/python -m pip install --quiet --disable-pip-version-check \
			--constraint benchmarks/requirements/constraints --requirement $$pins || exit 1; \
	done
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv-bench/trl-1.12 trl==1.12.0
	touch $@

clean:
	rm -rf $(VENV) .venv-parity .venv-bench
