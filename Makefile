# Two commands matter: `make demo` and `make test`. Both create .venv themselves and reuse it afterwards.
PYTHON ?= python3
BIN := .venv/bin
DEMO_MODELS := infogan-b16 fsrcnn-b1 resnet18-b1

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamps are the installed state: pyproject.toml is the only thing that changes it, sources are linked in place.
.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-test: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/.installed

build/%.onnx: | .venv/.installed
	mkdir -p build
	$(BIN)/python -m bench.models $* -o $@

demo: .venv/.installed $(DEMO_MODELS:%=build/%.onnx)
	set -e; for model in $(DEMO_MODELS); do \
	    $(BIN)/egraph-opt optimize build/$$model.onnx --report build/$$model.report.json; \
	done

test: .venv/.installed-test
	$(BIN)/python -m pytest -n 2

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/.installed
	$(BIN)/python -m bench.run

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
