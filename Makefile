# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo gallery docs test test-slow faults fuzz lint bench clean

# The stamp is written last: an environment that somebody else made, or half of one, is completed first.
.venv/.installed: pyproject.toml hardware/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("spikeprop needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e hardware -e '.[dev,interop,docs]'
	touch $@

demo: .venv/.installed
	$(BIN)/spikeprop run digits_cnn_stdb --out runs/demo

# Pages that explain five small networks, and their index docs/gallery/index.html.
gallery: .venv/.installed
	$(BIN)/python -m spikeprop.plugins.explain.gallery docs/gallery

# A process for each core, four at most, each with one thread; a file's tests share its fixtures, and long files start first.
test: .venv/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

# Runs that are killed, stopped, damaged and starved on purpose, and held against one that was not; `make test` has a few of them.
faults: .venv/.installed
	$(BIN)/python -m tests.faults

# More than 100,000 corrupted files of every kind that spikeprop reads from elsewhere; follows coverage if atheris is installed.
fuzz: .venv/.installed
	-$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# A short form of every benchmark, a few minutes in all, apart from results/, which holds the figures at full size; each script's first lines have the command at full size.
bench: .venv/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/step.py --timesteps 20 --batch 8 --repeats 3 --out runs/bench/step.json
	$(BIN)/python benchmarks/infer.py --timesteps 50 --batch 16 --images 16 --repeats 2 --out runs/bench/infer.json
	$(BIN)/python benchmarks/memory.py --timesteps 16 64 128 --batch 4 --peer-cap 16 --plot runs/bench/memory.png --out runs/bench/memory.json
	$(BIN)/python benchmarks/balance.py --images 4 --out runs/bench/balance.json
	$(BIN)/python benchmarks/open_neuromorphic.py --sizes 1024 --out runs/bench/open_neuromorphic.json
	$(BIN)/python benchmarks/hardware_speed.py --images 50 --lava 4 --out runs/bench/hardware_speed.json
	$(BIN)/python benchmarks/aad.py --paths 20000 --few 1000 --repeats 3 --memory-paths 20000 80000 --out runs/bench/aad.json
	-$(BIN)/python -m benchmarks.gpu --small --budget 300 --out runs/bench/gpu.json # its exit code is 3 without a GPU

# Into site/; open site/index.html. Nothing is fetched while it is built or read.
docs: .venv/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf .venv runs dist docs/gallery site
