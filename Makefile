# The only entry a newcomer needs. Every target makes its own environment first.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := train,gpu,pipelines,launcher,features,spark,ray,validation,serve,export,peers,dev
NAME ?= recochain
OUT ?= out/demo
PORT ?= 3000
# Test files run side by side in this many processes; each may take 2 GB.
JOBS ?= 2
IMAGES ?= cpu-train cpu-serve gpu-train gpu-serve
BENCH_recochain := decode
BENCH_mari := layer
BENCH_ksa := cache

.PHONY: help demo test test-slow test-images check format compile serve bench images kind clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP)  ## synthetic data -> pipeline -> report -> served top-10 (3 minutes on 2 cores); NAME=mari too
	@$(BIN)/feedworks demo $(NAME) --out $(OUT)

# Not those of images and clusters, which ask for more time and have a target each: a $KUBECONFIG may name any cluster.
test: check  ## check, then every test that this machine can run
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --ignore=tests/house -m "not docker and not kind"

test-slow: check  ## the same, with the tests that take minutes
	@$(BIN)/pytest -n $(JOBS) --dist loadfile --ignore=tests/house -m "not docker and not kind" --slow

check: $(STAMP)  ## style, types, import arrows, compiled pipelines, documentation
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/feedworks compile --check
	@$(BIN)/pytest -q tests/house

format: $(STAMP)  ## mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

compile: $(STAMP)  ## write pipelines/compiled/*.yaml
	@$(BIN)/feedworks compile

serve: $(STAMP)  ## serve the model of the last demo on loopback
	@$(BIN)/feedworks serve $(NAME) --model $(OUT)/model --port $(PORT)

bench: $(STAMP)  ## the kernels against their peers (5 minutes); NAME=recochain|mari|...: a paper's own bench
ifeq ($(origin NAME),file)
	@$(BIN)/python kernels/bench/run.py
else
	@$(BIN)/python -m feedworks.$(NAME).bench $(BENCH_$(NAME))
endif

# All four, or IMAGES="cpu-train cpu-serve" without the gigabytes of CUDA.
images: $(STAMP)  ## build the container images with Docker, with a bill of materials of each in out/images/
	@PIP="$(BIN)/python -m pip" containers/build.sh $(IMAGES)

test-images: $(STAMP)  ## the tests that need Docker and the images cpu-train and cpu-serve (5 minutes)
	@$(BIN)/pytest -m docker tests

# $KUBECONFIG names a cluster, and $KIND_LOAD how images come into its nodes; else `kind` makes one and deletes it.
kind: $(STAMP)  ## the tests on a Kubernetes cluster: of KUBECONFIG, or a new one (20 minutes)
	@PIP="$(BIN)/python -m pip" PYTEST=$(BIN)/pytest tests/kind/run.sh

clean:  ## remove outputs and caches, keep the environment
	@rm -rf out build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# PIP_CONSTRAINT pins the build backend too, which `-c` alone does not reach.
$(STAMP): pyproject.toml constraints.txt
	@echo "making $(VENV): some 150 packages, about 3 minutes; log in $(VENV)/pip.log"
	@$(PYTHON) -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --no-input --disable-pip-version-check \
	  -c constraints.txt -e '.[$(EXTRAS)]' 2>&1 | tee $(VENV)/pip.log | awk ' \
	  /^Collecting/ { if (++n % 25 == 0) { print "  " n " packages found"; fflush() } } \
	  /^Installing collected/ { print "  unpacking"; fflush() } \
	  /^ERROR|^error:/ { print; fflush() }'
	@touch $@
