# make demo   the main job, end to end       make test    the tests
# make check  style, types, layers           make bench   performance claims
# make torture    a corpus build on a cluster, killed 20 times at random points; a training job that loses a node
# Each works from a fresh clone and sets up what it needs in .venv (and, where it may, with apt).

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help demo test torture check bench format setup clean-demo

VENV := .venv
BIN := $(VENV)/bin

help:
	@sed -n '1,4s/^# //p' Makefile

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml launch/setup.sh
	launch/setup.sh
	@touch $@

demo: setup
	launch/demo.sh

# Two at a time, each file by one: tests wait for ranks, nodes and builds as much as they compute.
test: setup
	$(BIN)/pytest -n 2 --dist loadfile

torture: setup
	$(BIN)/pytest -m slow -s tests/cluster

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/shellcheck launch/*.sh slurm/*.sbatch .ci/run

# Reads runs/demo/corpus, which make demo builds. benchmarks/corpus.py reports on configs/corpus/debian.yaml;
# benchmarks/vocabulary.py needs a tokenizer.
bench: setup
	@for name in shards parsing memory replay plan_cluster tokenizer packing pooling train_cpu plan_training \
		checkpoint export_memory linked fuzz_reader embed_speed; do \
		echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean-demo:
	rm -rf runs/demo
