# One target per duty; PYTHON picks the interpreter.
PYTHON ?= python

.PHONY: install test slow bench lint docs gpu

install:  ## editable, with the tools of a developer
	$(PYTHON) -m pip install --no-build-isolation -e '.[test]'

test:
	$(PYTHON) -m pytest

slow:  ## what takes longer: sanitizers, processes killed on purpose, Ray, every kernel for every GPU
	$(PYTHON) -m pytest -m slow

bench:
	$(PYTHON) -m pytest benchmarks/ --benchmark-only

# The library may only shrink: lower this with it. The aim is 6,500.
LINES = 7072

lint:  ## layout, types, and the size of the library: at most LINES lines, at most 350 in a file
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	@git ls-files 'crgan/*.py' 'kernels/*.py' 'csrc/*' setup.py | sort -u | xargs wc -l | awk \
	    '$$2 != "total" && $$1 > 350 { print $$2 " has " $$1 " lines; at most 350"; bad = 1 } \
	     $$2 == "total" { print $$1 " lines in the library"; if ($$1 > $(LINES)) { print "at most $(LINES)"; bad = 1 } } \
	     END { exit bad }'

docs:  ## the site, in site/; needs the extra docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

gpu:  ## build, check and time everything on a CUDA machine; figures under OUT
	bash benchmarks/gpu.sh $(or $(OUT),benchmarks/results/new)
