# Two commands for everybody: make demo, make test. Both set up their own environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON_LIVE ?= python3.11
LIVE := .venv-live
PIP_LIVE ?=

.PHONY: demo test lint bench bench-gateway live clean

demo: $(VENV)/.ready
	rm -rf results/demo
	$(BIN)/tokenpools reproduce --out results/demo --jobs 2
	@echo "figures and table: results/demo"

test: lint
	$(BIN)/pytest -n auto --dist loadgroup

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/throughput.py

# What the live gateway costs, with LiteLLM's proxy beside it; about 3 minutes on a quiet machine.
bench-gateway: $(VENV)/.ready
	$(BIN)/python benchmarks/gateway.py --install build/litellm

# The proof of live mode: a paced vLLM on this machine's CPU, about 15 minutes (docs/live.md). Not part of make test.
# Where the CPU build of torch is in an index of its own: make live PIP_LIVE="--extra-index-url URL"
live: $(VENV)/.ready $(LIVE)/.ready
	rm -rf results/live
	$(BIN)/python benchmarks/live.py --python $(LIVE)/bin/python --out results/live

clean:
	rm -rf $(VENV) $(LIVE)

$(LIVE)/.ready: benchmarks/paced_vllm/requirements.txt
	@$(PYTHON_LIVE) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "error: vLLM's CPU build needs Python 3.11; give one, e.g. make live PYTHON_LIVE=/usr/bin/python3.11" >&2; exit 2; }
	$(PYTHON_LIVE) -m venv $(LIVE)
	$(LIVE)/bin/python -m pip install --quiet --no-deps $(PIP_LIVE) --requirement benchmarks/paced_vllm/requirements.txt
	touch $@

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; give a newer one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,dask,docs,kubernetes,live,notebooks,otel,plan,ray,tokenizer]"
	touch $@
