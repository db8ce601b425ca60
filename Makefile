# `make demo` and `make test` are each the single command on a bare machine with Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements.lock

.PHONY: demo test check lock clean
demo: .venv/.installed
	$(BIN)/mpxct demo --out demo

test: .venv/.installed-test
	$(BIN)/pytest -m "not slow and not hardware"

check: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# The versions that everybody gets; the GPU extras stay out, for they exclude each other.
lock: .venv/bin/uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --upgrade --python-version 3.11 --extra gui \
	  --group dev pyproject.toml -o requirements.lock

clean:
	rm -rf .venv demo

.venv/.installed: pyproject.toml requirements.lock .venv/bin/uv
	$(UV) --editable .
	@touch $@

.venv/.installed-test: .venv/.installed
	$(UV) --group test
	@touch $@

.venv/.installed-lint: .venv/.installed-test
	$(UV) --group lint
	@touch $@

.venv/bin/uv:
	@PYTHON="$(PYTHON)" sh .ci/venv
