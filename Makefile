# The front door. `make demo` and `make test` set everything up by themselves.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TWO_RANKS := $(BIN)/accelerate launch --config_file configs/accelerate/cpu2.yaml

.PHONY: setup setup-slow setup-slurm demo lint test test-slow test-all test-slurm bench bench-gpu lock

setup: .venv/.dev

.venv/.ready: pyproject.toml constraints.txt    ## What the jobs need.
	$(PYTHON) -m venv .venv
	$(INSTALL) -e .
	touch $@

.venv/.dev: .venv/.ready    ## What the tests and the extras need, too.
	$(INSTALL) -e ".[dev]"
	touch $@

setup-slow: .venv/.slow

.venv/.slow: .venv/.dev    ## What the slow tests need, too.
	$(INSTALL) -e ".[dev,deepspeed]"
	touch $@

setup-slurm:    ## SLURM's daemons on Debian or Ubuntu, for tests/slurm. Needs root.
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends $(SLURM)

SLURM := slurmctld slurmd slurm-client munge
PLACE := --run.world_size 2 --run.device cpu
PRIOR := runs/demo/prior/prior.safetensors
QGNET := runs/demo/qgnet/best.safetensors

demo: .venv/.ready    ## QGNet on the embedded data, on two processes: pretrain the prior extractor, meta-train, evaluate.
	$(TWO_RANKS) launch/pretrain_prior.py $(PLACE) --run.dir runs/demo/prior
	$(TWO_RANKS) launch/meta_train.py $(PLACE) --run.dir runs/demo/qgnet \
		--method.backbone_weights $(PRIOR) --method.prior_map on --method.heads true --method.prior_weights $(PRIOR)
	$(TWO_RANKS) launch/evaluate.py $(PLACE) --run.dir runs/demo/evaluation --weights $(QGNET) \
		--eval.episodes 200 --eval.seeds "[0, 1, 2]"
	@echo "open runs/demo/evaluation/report/index.html"

lint: setup    ## Style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup    ## All that takes seconds.
	$(BIN)/pytest -n 2 -m "not slow and not gpu"

test-slow: setup-slow    ## Kills, DeepSpeed, two nodes, SLURM if its daemons are there. Three at a time: many wait for a limit of time.
	$(BIN)/pytest -n 3 -m "slow or gpu" --ignore tests/slurm
	$(BIN)/pytest -m slow tests/slurm

test-all: test test-slow

test-slurm: setup    ## The job scripts on a real SLURM of two virtual nodes; part of test-slow. Needs root and the daemons.
	$(BIN)/pytest tests/slurm

bench: setup    ## Measure what docs/benchmarks.md claims.
	$(BIN)/python bench/step.py
	$(BIN)/python bench/views.py
	$(BIN)/python bench/episodes.py
	$(BIN)/python bench/qgnet.py
	$(BIN)/python bench/msanet.py
	$(BIN)/python bench/mshnet.py
	$(BIN)/python bench/gfsam.py
	$(BIN)/python bench/evaluate.py
	$(BIN)/python bench/cost.py

bench-gpu: setup    ## Measure everything that needs a GPU.
	$(BIN)/python bench/gpu.py

lock: setup-slow    ## Write the versions of this environment to constraints.txt.
	head -n 1 constraints.txt > constraints.new
	$(BIN)/python -m pip freeze --exclude-editable >> constraints.new
	mv constraints.new constraints.txt
