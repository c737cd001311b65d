# Every target sets up what it needs: git, make and a Python >= 3.11 with venv and pip are enough.
# PYTHON=/path/to/python picks the interpreter; PYTEST_ARGS="-k pages -x" goes to pytest.

ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
endif
PYTEST_ARGS ?=
# Two files at a time: most of the time is tracing and compiling, which one interpreter does on one core.
PARALLEL ?= -n 2 --dist loadfile

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/stamp
PROTO_VENV := .cache/proto-venv
PROTO_STAMP := $(PROTO_VENV)/stamp
PROTOS := src/triptych/proto/v1/*.proto
PROTOC = $(PROTO_VENV)/bin/python -m grpc_tools.protoc -I src

.PHONY: help setup demo test test-all lint format proto proto-check clean

help:
	@echo "make demo         fetch a small model, serve it as 1P1D and ask it a question"
	@echo "make test         the fast tests (ten to fourteen minutes on two cores)"
	@echo "make test-all     all tests, with the slow ones and those on the default model"
	@echo "make lint         ruff, ruff format, pyright"
	@echo "make format       let ruff rewrite what it can"
	@echo "make proto        regenerate the gRPC stubs;  make proto-check  fails when they are not up to date"
	@echo "make setup        only create the environment in $(VENV)"

setup: $(STAMP)

# Python 3.11 is what CI runs, on exactly the versions in constraints/py311.txt; elsewhere the ranges of pyproject.toml decide.
$(STAMP): pyproject.toml constraints/py311.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv and pip found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -c 'import sys, venv, ensurepip; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv $(VENV)
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; \
	then $(BIN)/python -m pip install -c constraints/py311.txt -e '.[cpu,demo,dev]'; \
	else $(BIN)/python -m pip install -e '.[cpu,demo,dev]'; fi
	touch $@

$(PROTO_STAMP): constraints/proto.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv and pip found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python -m pip install -r constraints/proto.txt
	touch $@

demo: $(STAMP)
	$(BIN)/python -m triptych.tools.demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not real_model" $(PYTEST_ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python --threads 2

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(PROTO_STAMP)
	$(PROTOC) --python_out=src --pyi_out=src --grpc_python_out=src $(PROTOS)

proto-check: $(PROTO_STAMP)
	rm -rf .cache/proto-check && mkdir -p .cache/proto-check
	$(PROTOC) --python_out=.cache/proto-check --pyi_out=.cache/proto-check --grpc_python_out=.cache/proto-check $(PROTOS)
	diff -r -u --exclude='*.proto' --exclude=__init__.py --exclude=__pycache__ .cache/proto-check/triptych/proto/v1 src/triptych/proto/v1 \
	|| { echo "The stubs in proto/v1 are not what their .proto files generate: run 'make proto' and commit the result" >&2; exit 1; }

clean:
	rm -rf $(VENV) .cache build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
