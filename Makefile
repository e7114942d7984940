# Two commands for a fresh clone: `make quickstart` and `make test`. Each makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := runs/quickstart
PYTEST_FLAGS ?= -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   train the tiny policy on the three tasks and write a report"
	@echo "make test         run the test suite"
	@echo "make lint         ruff and mypy"
	@echo "make clean        remove .venv and build outputs (runs/ stays)"

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

quickstart: $(STAMP)
	@number=1; while [ -e $(RUN)-$$number ]; do number=$$((number + 1)); done; \
	out=$(RUN)-$$number; \
	$(BIN)/unigrpo train quickstart --out $$out && \
	echo "open it in a browser: file://$(CURDIR)/$$out/report.html"

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy unigrpo rewards rollouts

clean:
	rm -rf $(VENV) build dist *.egg-info
