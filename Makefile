# Two commands from a bare clone: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# an environment is reused until the requirements, or the clone that it serves, change
KEY := $(shell (echo "$(CURDIR)"; cat setup.cfg pyproject.toml) | cksum | cut -d' ' -f1)

.PHONY: demo test lint types docs clean

# nine atoms are no work for several threads, which wait for each other on a busy machine
demo: $(VENV)/.installed-xtb-$(KEY)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python examples/demo.py --output demo-output

# a file of tests is run by one process; each takes about 1.5 GB
test: $(VENV)/.installed-test-$(KEY) lint types
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_OPTIONS)

lint: $(VENV)/.installed-test-$(KEY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# the three folders are one package only when installed, so types are checked on the wheel's tree;
# what an earlier build left would be in it, too
types: $(VENV)/.installed-test-$(KEY)
	rm -rf build && $(BIN)/pip install -q --no-deps --no-build-isolation --target build/types .
	$(BIN)/mypy build/types/ase_biasgrad

docs: $(VENV)/.installed-docs-$(KEY)
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html

$(VENV)/.installed-%-$(KEY): | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[$*]'
	find $(VENV) -maxdepth 1 -name '.installed-*' ! -name '*-$(KEY)' -delete
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip 'setuptools>=77' wheel

clean:
	rm -rf build dist docs/_build demo-output *.egg-info
