# Every target sets up what it needs by itself, in $(VENV).
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

.PHONY: help demo test test-browser lint bench

help:
	@echo "make demo          compress and decompress the sample images with the shipped model; results in demo/"
	@echo "make test          all tests that need nothing but Python, the fast ones first"
	@echo "make test-browser  the tests of HTML reports; need chromium and chromedriver"
	@echo "make lint          ruff, lint and format"
	@echo "make bench         speed and memory of every model on this machine"

$(READY): requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	touch $@

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

test-browser: $(READY)
	$(BIN)/python -m pytest -m browser

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python scripts/benchmark.py
