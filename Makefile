# Everything a developer runs. The first target that needs it makes .venv and installs into it what requirements.txt pins.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PINNED := $(VENV)/.pinned
STAMP := $(VENV)/.installed

# The Python that .venv is made with: the first of these that runs, is supported and can make environments.
SUITABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c '$(SUITABLE)' 2>/dev/null && echo $$python && break; done)

# One thread a process: two test workers with as many threads as cores each are many times slower on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test thorough lint types format hooks docs bench lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv and install the pinned requirements and potstill; does nothing when that is done

demo: $(STAMP) ## install, then distil on the handwritten digits: teacher, control and student in one table
	@$(BIN)/potstill demo $(ARGS)

test: lint types ## install, then every check: ruff, mypy, the tests and the doctests (ARGS="-k teacher" picks)
	@$(PYTEST) -m "not long" $(ARGS)

thorough: lint types ## the same with the tests that take long: Ray, a whole race, kills, the commands of the documents, the site
	@$(PYTEST) $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## mypy
	@$(BIN)/mypy

format: $(STAMP) ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

hooks: $(STAMP) ## run ruff and mypy before each commit
	@$(BIN)/pre-commit install

docs: $(STAMP) ## build the site into build/docs, with warnings as errors, and check every link of it
	@rm -rf build/docs build/doctrees
	@$(BIN)/python -m sphinx -b html -W --keep-going -q -E -d build/doctrees docs build/docs
	@$(BIN)/python docs/_site/check_links.py build/docs $(ARGS)

bench: $(STAMP) ## the measurements of docs/performance.md, written into it (DATA=folder of data, ARGS="--only store.py")
	@$(BIN)/python benchmarks/report.py $(if $(DATA),--data $(DATA)) $(ARGS)

lock: $(STAMP) ## write requirements.txt anew from pyproject.toml (ARGS=--upgrade takes newer versions)
	@$(BIN)/uv pip compile pyproject.toml --extra export --extra study --extra docs --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --custom-compile-command "make lock" --quiet --output-file requirements.txt $(ARGS)

clean: ## remove .venv, caches and builds; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, exactly what requirements.txt pins. uv is several times faster than pip but reads none of pip's settings:
# a machine whose pip is told another package index gets pip, and so does one where uv fails. Both check each file's hash.
$(PINNED): requirements.txt
	@$(or $(PYTHON),false) -c '$(SUITABLE)' || { echo "Potstill needs Python 3.11, 3.12 or 3.13 with its venv module," \
		"got '$(PYTHON)'. Install one, or name yours: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON): about 6 GB, as torch brings CUDA's libraries"
	@$(PYTHON) -m venv --clear $(VENV)
	@awk '/^uv==/ {inside = 1} inside; inside && !/\\$$/ {exit}' requirements.txt > $(VENV)/uv.txt
	@quiet=$$([ -t 1 ] || echo --quiet); \
	if [ -z "$$UV_DEFAULT_INDEX$$UV_INDEX_URL$$UV_INDEX" ] && $(PIP) config list | grep -qE '\.(index-url|no-index)='; then \
		echo "pip is told a package index of its own: installing with pip, which takes longer"; \
		$(PIP) install $$quiet --require-hashes -r requirements.txt; \
	else \
		$(PIP) install --quiet --require-hashes -r $(VENV)/uv.txt && \
		$(BIN)/uv pip install $$quiet --python $(BIN)/python --require-hashes -r requirements.txt || { \
			echo "uv could not install the requirements: trying pip"; \
			$(PIP) install $$quiet --require-hashes -r requirements.txt; }; \
	fi
	@touch $@

$(STAMP): $(PINNED) pyproject.toml
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
