PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
INSTALLED := $(VENV)/.installed
NEWEST ?= .venv-newest
NEWEST_INSTALLED := $(NEWEST)/.installed

# nothing below needs the Hub: refuse it, so that a forgotten download shows
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-newest bench quality style clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## */@/' | awk -F@ '{printf "  make %-12s %s\n", $$1, $$2}'

demo: $(INSTALLED)  ## train a miniature LLaDA on the CPU and watch it answer (two minutes)
	$(BIN)/llada demo

test: $(INSTALLED)  ## run all tests (ARGS="tests/test_package.py -x" for some)
	$(BIN)/python -m pytest -n auto $(ARGS)

# what depends on transformers, and what users copy
test-newest: $(NEWEST_INSTALLED)  ## run the tests of models, sampling, commands, README and notebooks with the newest releases
	$(abspath $(NEWEST))/bin/python -m pytest -n auto -m "not slow" \
		tests/commands tests/evaluation tests/export tests/generation tests/modeling_llada tests/test_readme.py tests/test_notebooks.py $(ARGS)

bench: $(INSTALLED)  ## measure every sampler against a plain loop (half an hour; ARGS="--only 8,192" for less)
	$(BIN)/python -m benchmarks $(ARGS)

quality: $(INSTALLED)  ## lint, formatting, and the types of the wheel as it installs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typed
	$(BIN)/python tests/installed_wheel.py build/typed
	cd build/typed && $(BIN)/mypy --config-file ../../pyproject.toml --python-executable bin/python -p llada -p llada_cli

style: $(INSTALLED)  ## repair what ruff can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## delete the environment and everything built
	rm -rf $(VENV) $(NEWEST) build dist *.egg-info

# torch goes first and pinned: the resolver must never go looking for another build of it
%/.installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "llada needs Python 3.11 or newer (as transformers does); name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet -c constraints.txt torch
	$(@D)/bin/pip install --quiet $(CONSTRAINTS) -e ".[demo,dev]"
	@touch $@

$(INSTALLED): CONSTRAINTS := -c constraints.txt
# the newest releases that setup.cfg allows, around the same torch
$(NEWEST_INSTALLED): CONSTRAINTS := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
