# Every target sets itself up: .venv/ is made by the first one that needs it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test proofs check static install chaos lock
demo: install
	$(BIN)/nisynth run demo --executor ray --store runs/demo
	$(BIN)/nisynth verify runs/demo --deep
	$(BIN)/nisynth preview runs/demo -o runs/demo.png
	$(BIN)/nisynth report runs/demo -o runs/demo.html
	@echo "images: runs/demo/data/*.parquet   contact sheet: runs/demo.png   card: runs/demo/README.md"
	@echo "the run's page: $(CURDIR)/runs/demo.html"

test: install
	$(BIN)/python -m pytest -q

proofs: install
	$(BIN)/python -m pytest -q -m slow

chaos: install
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.hosts

check: static test

static: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/python -m pytest -q tests/test_layers.py

# The exact versions of docker/Dockerfile, with hashes, for Linux on x86-64.
lock: install
	$(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_28 --custom-compile-command "make lock" \
	    --constraint docker/constraints.txt --output-file docker/requirements.lock pyproject.toml

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("nisynth needs Python 3.11 or newer; make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing into $(VENV)/ (PyTorch and Ray are large: several GB, a few minutes)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
