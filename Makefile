# Every target runs from this folder. Never start Python inside hear_transformers/: its ast.py would hide the standard one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SHARED ?= ../shared

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-bulk measure study train clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.stamp-%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.$(filter-out .,$(EXTRA))'
	touch $@

$(VENV)/.stamp-run: EXTRA =
$(VENV)/.stamp-test: EXTRA = [test]
$(VENV)/.stamp-dev: EXTRA = [dev]

demo: $(VENV)/.stamp-run  ## install, then embed the example recording with layer 8 of the embedded model
	$(BIN)/embed-audio tests/audio/example.wav --layer 8 --out demo_output --overwrite

test: $(VENV)/.stamp-test  ## install with the test extra, then run every test
	$(BIN)/python -m pytest

check: $(VENV)/.stamp-dev  ## formatting, lint, types, repeated code: all but the tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pylint --recursive=y hear_transformers cli tests

format: $(VENV)/.stamp-dev  ## reformat the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.stamp-test  ## beside the authors' packages: equal numbers, speed ratios, share of the machine's GEMM peak
	$(BIN)/python -m hear_transformers.benchmark

BULK = $(BIN)/python -m hear_transformers.bulk_benchmark
DEVICE ?= cpu

bench-bulk: $(VENV)/.stamp-test  ## clips from disk beside the network alone, errors of low precision, memory for 10 h (SHARED=folder DEVICE=cuda)
	$(BULK) throughput --audio $(SHARED)/data/esc10/audio --device $(DEVICE)
	$(BULK) precision
	$(BULK) memory

measure: $(VENV)/.stamp-test  ## score the embedded model on ESC-10 and spoken digits (SHARED=folder with data/)
	$(BIN)/python -m hear_transformers.training.embedded measure --data $(SHARED)/data

STUDY ?= ../study-run
TEACHER ?= $(SHARED)/weights/mn04_as_mAP_432.pt

study: $(VENV)/.stamp-test  ## small networks of all families on ESC-10, from scratch: hours on a CPU (STUDY=folder TEACHER=checkpoint)
	$(BIN)/python -m hear_transformers.training.study --data $(SHARED)/data/esc10 --out $(STUDY) --mn04 $(TEACHER)

RUN ?= ../tiny-run
TRAINING = $(BIN)/python -m hear_transformers.training.embedded

train: $(VENV)/.stamp-test  ## make the embedded model again, hours on a CPU; needs espeak-ng, RUN=folder TEACHER=checkpoint
	$(TRAINING) synthesise --shards $(RUN)/shards --workers 2
	$(TRAINING) targets --shards $(RUN)/shards --teacher $(TEACHER)
	$(TRAINING) train --shards $(RUN)/shards --out $(RUN)

clean:  ## remove the virtual environment and what was built
	rm -rf $(VENV) build dist *.egg-info demo_output
