# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint bench clean

.venv: pyproject.toml hardware/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("spikeprop needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e hardware -e '.[dev,interop]'
	touch .venv

demo: .venv
	$(BIN)/spikeprop run digits_cnn_stdb --out runs/demo

test: .venv
	$(BIN)/python -m pytest -m 'not slow'

test-slow: .venv
	$(BIN)/python -m pytest -m slow

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf .venv runs dist
