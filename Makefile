# make setup       a virtual environment with everything (CPU build of torch where the package index offers one)
# make quickstart  corpus, tokenizer, a tiny PLT (R = 2) on two processes, evaluation, a sample
# make study       R = 1..4 at a size for two cores: pretraining, tuning, evaluation, diagnosis, report (<= 45 minutes)
# make study-seeds R = 1 and 2, three seeds each, smaller (about 20 minutes)
# make test        the test suite; test-parallel has the rest
# make test-parallel  every layout x R x documents x gates x presets against the plain model, half an hour
# make test-faults  real runs and a real SLURM, broken on purpose, about an hour
# make lint        ruff and the import rules
# make bench       the side-by-side measurements of docs/benchmarks/ (55 minutes on two cores)
# make bench-data  the data pipeline beside others: Megatron's datasets, other encoders; what 18T tokens need (15 minutes)
# make test-gpu    the kernels against the plain mask, on a machine with a GPU

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/quickstart

.PHONY: setup quickstart study study-seeds test lint bench bench-data test-gpu test-parallel test-faults clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, this is ' + sys.version.split()[0]) if sys.version_info < (3, 11) else None"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/loopcoder data build
	$(BIN)/loopcoder pretrain experiment=quickstart run_dir=$(RUN)
	@echo "--- a sample (1.6 M tokens of training: expect shapes, not sense)"
	$(BIN)/loopcoder generate $(RUN) prompt='def ' max_new_tokens=80 seed=1
	@echo "--- held-out losses"
	$(BIN)/loopcoder evaluate $(RUN)

study: setup
	test -e corpora/default/manifest.json || $(BIN)/loopcoder data build
	$(BIN)/loopcoder sweep experiment=study sweep=study

study-seeds: setup
	test -e corpora/default/manifest.json || $(BIN)/loopcoder data build
	$(BIN)/loopcoder sweep experiment=study_seeds sweep=seeds

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.benchmarks.step_time
	$(BIN)/python -m tests.benchmarks.layouts
	$(BIN)/python -m tests.benchmarks.checkpoint
	$(BIN)/python -m tests.benchmarks.guards
	$(BIN)/python -m tests.benchmarks.lenses
	$(BIN)/python -m tests.benchmarks.restart
	$(BIN)/python -m tests.benchmarks.decode

bench-data: setup
	$(BIN)/python -m tests.benchmarks.data_prepare
	$(BIN)/python -m tests.benchmarks.tokenising
	$(BIN)/python -m tests.benchmarks.data_megatron
	$(BIN)/python -m tests.benchmarks.stream_18t

test-parallel: setup
	$(BIN)/python -m pytest -m exhaustive tests/distributed

test-faults: setup
	$(BIN)/python -m pytest -m faults

test-gpu: setup
	$(BIN)/python -m pytest -m gpu tests/gpu

clean:
	rm -rf $(VENV) build *.egg-info
