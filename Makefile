# The front door. `make demo` and `make test` set everything up by themselves.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
TWO_RANKS := $(BIN)/accelerate launch --config_file configs/accelerate/cpu2.yaml

.PHONY: setup demo test test-all lint bench lock

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup    ## Pack the embedded data, pretrain a prior extractor on two processes, write a report.
	$(TWO_RANKS) launch/pretrain_prior.py --run.world 2 --run.device cpu --run.dir runs/demo

test: setup
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-all: setup
	$(BIN)/pytest -n 2

lint: setup
	$(BIN)/ruff check .

bench: setup    ## Measure what docs/benchmarks.md claims.
	$(BIN)/python bench/step.py
	$(BIN)/python bench/views.py

lock: setup    ## Write the versions of this environment to constraints.txt.
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt
