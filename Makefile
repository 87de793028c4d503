# make render   a virtual environment, the package, and the example manifest rendered to a folder of clips
# make test     lint, types and tests
.PHONY: install render test lint types clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= out

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

render: install
	$(BIN)/show1-ray render examples/prompts.parquet --out $(OUT)
	$(BIN)/show1-ray sheet $(OUT) --out $(OUT)/sheet.png

# Two workers: much of a test is waiting for processes to start. A file's tests share its Ray.
test: lint types
	$(BIN)/pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OUT) build dist
