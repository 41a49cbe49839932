# `make demo` and `make test` are all that a fresh machine with Python, pip and make needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO ?= demo_output
# The tested versions of this Python, where there is such a file.
CONSTRAINTS := $(wildcard constraints-py$(shell $(PYTHON) -c 'import sys; print("%d%d" % sys.version_info[:2])').txt)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS))
export OMP_WAIT_POLICY ?= passive
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow matrix lint bench docs clean

demo: $(INSTALLED)
	$(BIN)/cytoglot demo -o $(DEMO) --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m "slow and not gpu"

matrix:
	.ci/matrix

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
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) -e ".[dev]"
	@touch $@

clean:
	rm -rf $(DEMO) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
