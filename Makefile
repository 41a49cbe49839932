# `make demo` and `make test` are all that a fresh machine with Python, pip and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= demo_output
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow lint bench docs clean

demo: $(INSTALLED)
	$(BIN)/cytoglot demo -o $(DEMO) --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "slow and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.bench_encode
	$(BIN)/python -m benchmarks.bench_constrain
	$(BIN)/python -m benchmarks.bench_embed
	$(BIN)/python -m benchmarks.bench_score
	$(BIN)/python -m benchmarks.bench_corpus

docs: $(INSTALLED)
	$(BIN)/python -m pytest tests/docs

# torch first and by exact version, so that the CPU wheel is taken where the index has one.
$(INSTALLED): pyproject.toml constraints-py311.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-py311.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-py311.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
