# make serve: the service with the shipped models.   make test: every test.   make check: lint, types and tests.
# Each sets up what it needs in .venv the first time.

PORT ?= 8000
PYTHON ?= python3
RUNTIME := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

export ORT_DISABLE_TELEMETRY := 1

.PHONY: serve test lint check image-test system-packages bench clean

serve: $(VENV)/.serve
	STYLIZE_PORT=$(PORT) $(BIN)/python -m service

# a file of tests on each of two cores: they took 75 minutes one after another on slow ones
test: $(VENV)/.develop
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

check: lint test

# IMAGE_GPU=1: the target gpu too. The tools that build and run images, as commands: docker, podman, or others with the same words
IMAGE_BUILD ?= docker build
IMAGE_ENGINE ?= docker

image-test: $(VENV)/.develop
	IMAGE_BUILD="$(IMAGE_BUILD)" IMAGE_ENGINE="$(IMAGE_ENGINE)" $(BIN)/python -m pytest tests/deploy/test_image.py

# what is no Python and tests run for real; a test that misses one is skipped and says so
SYSTEM_PACKAGES := chromium faketime haproxy kubectl prometheus rabbitmq-server redis-server

# RUNLEVEL=1: Debian's packages start their services at once, and Prometheus listens on every address
system-packages:
	-apt-get update -qq
	for package in $(SYSTEM_PACKAGES); do \
	  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$package > /dev/null \
	  || echo "SKIPPED: the package $$package, and the tests that need it" >&2; done

bench: $(VENV)/.develop
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[$(RUNTIME),client,video]'
	@touch $@

# torch first and alone: a CPU build where there is one, instead of several GB of CUDA libraries
$(VENV)/.develop: pyproject.toml constraints.txt $(VENV)/.serve
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) --editable '.[$(RUNTIME),export,gatys,distributed,openvino,dev]'
	@touch $@
