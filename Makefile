# make render   a virtual environment, the package, and the example manifest rendered to a folder of clips
# make test     lint, types, docs and tests
# make docs     the documentation site, in site/
# make reference    the parts of the documentation that are generated from the code
.PHONY: install render test lint types docs reference clean

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
OUT ?= out

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test,docs]'
	touch $@

render: install
	$(BIN)/show1-ray render examples/prompts.parquet --out $(OUT)
	$(BIN)/show1-ray sheet $(OUT) --out $(OUT)/sheet.png

# Two workers: much of a test is waiting for processes to start. A file's tests share its Ray.
test: lint types docs
	$(BIN)/pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

# Any warning fails it, dead links among them.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: install
	$(BIN)/python docs/_reference.py

clean:
	rm -rf $(VENV) $(OUT) build dist site
