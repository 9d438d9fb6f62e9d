# Two commands on a fresh machine: `make compare` and `make test`. Both set up .venv first; a second run skips that.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= breast_cancer

.PHONY: compare test test-all lint format setup docs benchmark clean

compare: $(VENV)/ready
	@echo "== Comparing objectives on the bundled data set $(DATA) =="
	@$(BIN)/lossary compare $(DATA) --budget 150s

test: lint
	@echo "== Tests (make test-all adds the long ones) =="
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

test-all: lint
	@echo "== All tests =="
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/ready
	@echo "== Format, lint, types, import contracts =="
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

format: $(VENV)/ready
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: $(VENV)/ready
	@echo "== Building the site from cards, docstrings and evidence =="
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "The site: $(CURDIR)/site/index.html"

benchmark: $(VENV)/ready
	@$(BIN)/python benchmarks/compare_speed.py

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Lossary needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || echo missing)."; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "Python's venv module is missing. On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	@echo "== Setting up $(VENV) (once; a few minutes) =="
	@$(PYTHON) -m venv $(VENV)
	@echo "   installing what constraints.txt pins"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache .hypothesis
