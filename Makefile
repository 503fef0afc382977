# make demo | test | check | docs | pictures | bench | format | clean
# Each target sets up .venv itself, once; delete .venv to start over.

PYTHON ?= python3
PYTEST_ARGS ?= -n auto --maxprocesses=4

VENV := .venv
PY := $(VENV)/bin/python
LISTS := pyproject.toml constraints.txt

# Every install goes through constraints.txt: it pins the tested versions.
install = $(PY) -m pip install --disable-pip-version-check -c constraints.txt -e

.PHONY: help demo test check docs pictures bench format clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@echo 'make demo      diagnose a sick network on real data; prints the verdict, writes report.html'
	@echo 'make test      run the whole test suite'
	@echo 'make check     lint, format, types, import order, documentation'
	@echo 'make docs      build the documentation into docs/_build/html'
	@echo 'make pictures  draw the pictures of the README again (needs chromium)'
	@echo 'make bench     measure the cost against plain training steps'
	@echo 'make format    rewrite the code in the house style'
	@echo 'make clean     remove .venv and everything built'

demo: $(VENV)/.demo
	@$(PY) examples/demo.py

# One thread per worker: with several workers on few cores more of them only wait for each other.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_ARGS)

check: $(VENV)/.check
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyrefly check --python-interpreter-path $(PY) --progress-bar no
	$(PY) $(VENV)/bin/lint-imports --no-cache --no-logo
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

docs: $(VENV)/.check
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo 'docs/_build/html/index.html'

pictures: $(VENV)/.test
	@PYTHONPATH=. $(PY) docs/pictures.py

# Not through xdist: two measurements at once measure each other.
bench: $(VENV)/.test
	$(PY) -m pytest benchmarks -p no:randomly -p no:xdist --benchmark-columns=min,median,iqr,rounds

format: $(VENV)/.check
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf $(VENV) build dist docs/_build docs/_generated docs/api.md docs/rules.md docs/rules-over-time.md docs/studies.md report.html
	rm -rf .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Set-up. A stamp is written last, so an interrupted install is taken up again; it is older than
# its lists when these change, and only then is pip asked.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'signalprop needs Python 3.11 or later; name one with: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo 'Setting up .venv (once; torch is the large part, expect some minutes) ...'
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(LISTS) | $(PY)
	$(install) '.[studies]'
	@touch $@

$(VENV)/.test: $(LISTS) | $(PY)
	$(install) '.[studies,test]'
	@touch $@

$(VENV)/.check: $(LISTS) | $(PY)
	$(install) '.[studies,check]'
	@touch $@
