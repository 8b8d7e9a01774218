# One target per duty; PYTHON picks the interpreter.
PYTHON ?= python

.PHONY: install test slow bench lint gpu

install:  ## editable, with the tools of a developer
	$(PYTHON) -m pip install --no-build-isolation -e '.[test]'

test:
	$(PYTHON) -m pytest

slow:  ## what takes longer: sanitizers, processes killed on purpose, Ray, every kernel for every GPU
	$(PYTHON) -m pytest -m slow

bench:
	$(PYTHON) -m pytest benchmarks/ --benchmark-only

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

gpu:  ## build, check and time everything on a CUDA machine; figures under OUT
	bash benchmarks/gpu.sh $(or $(OUT),benchmarks/results/new)
