# Every target makes its own virtual environment: nothing else has to be installed first.
.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench chaos fuzz soak audit clean

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
POINTS ?= 220
SEED ?= 1
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## Compose 24 pieces, tag them, show where they land
	$(BIN)/mer-batch demo

# In two processes, a file at a time: most tests wait for others, and each process keeps one Ray.
test: $(VENV)/installed-test  ## Run the tests; MER_BATCH_DATA names a folder of research data
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-lint  ## Check format, style, types and layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-lint  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed-bench  ## Measure the jobs beside bare decoding and other engines (an hour)
	$(BIN)/python -m tests.benchmarks.tagging
	$(BIN)/python -m tests.benchmarks.rescoring
	$(BIN)/python -m tests.benchmarks.ledger
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.reading
	$(BIN)/python -m tests.benchmarks.nights
	$(BIN)/python -m tests.benchmarks.simulation --tracks 100000

chaos: $(VENV)/installed-test  ## Kill -9 at every step of a run, hundreds of times; POINTS, SEED
	$(BIN)/python -m tests.chaos --points $(POINTS) --seed $(SEED)

fuzz: $(VENV)/installed-test  ## Tag 20,000 broken files; MER_BATCH_DATA adds those of its corpus
	$(BIN)/python -m tests.fuzz

soak: $(VENV)/installed-test  ## Decode 50,000 tracks in one child and watch its memory
	$(BIN)/python -m tests.fuzz.soak

audit: $(VENV)/audit/installed  ## Look the pinned versions up among known vulnerabilities (needs the network)
	@$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict || { \
		echo 'audit: a version has a known fault, or the advisories could not be fetched: see above'; \
		exit 1; }

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) build *.egg-info mer_batch/audio/_native*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mer_batch needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt $(wildcard mer_batch/*/*.[ch]) | $(BIN)/python
	$(PIP) --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	touch $@

# The engines that we are measured beside. One has wheels for some Pythons only: it is left out then.
$(VENV)/installed-bench: $(VENV)/installed-test
	$(PIP) --editable '.[test,bench]'
	$(PIP) --only-binary essentia essentia || echo 'bench: Essentia has no wheel here and is left out'
	touch $@

$(VENV)/installed-lint: $(VENV)/installed-test
	$(PIP) --editable '.[test,lint]'
	touch $@

$(VENV)/audit/installed: | $(BIN)/python
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.9,<3'
	touch $@
