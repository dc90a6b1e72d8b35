# make lab    set up .venv, then start JupyterLab on notebooks/index.ipynb
# make test   the same set-up, then every check that the project has, but those in a browser
# make site   the documentation in docs/_build/html, from the committed notebooks; it opens as a file and needs no network
# make e2e    the checks in a browser, on the site that `make site` built; needs Chromium (apt-get install chromium)
#
# Variables: PYTHON=python3.12 (3.11 or newer), UV=1 (install with uv, which must be on the PATH),
# LAB_ARGS="--port 8899 --no-browser" (passed on to JupyterLab).

PYTHON ?= python3
UV ?=
LAB_ARGS ?=
CLIENT := $(if $(UV),uv,pip)

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.set-up

# Without a display there is no browser to open: JupyterLab then prints its address. It refuses root unless told.
NO_DISPLAY := $(if $(filter Linux,$(shell uname -s)),$(if $(DISPLAY)$(WAYLAND_DISPLAY),,--no-browser))
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab test test-library test-kernels test-notebooks site e2e notebooks clean
help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "kpt_lab needs Python 3.11 or newer and $(PYTHON) is " + sys.version.split()[0] + "; pass another one: make PYTHON=python3.12 ...")'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(MAKE) --no-print-directory install-with-$(CLIENT)
	@touch $@

# what only some targets need: $(VENV)/.set-up-e2e installs the extra e2e
$(VENV)/.set-up-%: $(STAMP)
	$(MAKE) --no-print-directory install-with-$(CLIENT) EXTRA=$*
	@touch $@

EXTRA ?= test
.PHONY: install-with-pip install-with-uv
install-with-pip:
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRA)]'
install-with-uv:
	uv pip install --quiet --python $(RUN) --constraint constraints.txt --editable '.[$(EXTRA)]'

lab: $(STAMP)
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks/index.ipynb $(NO_DISPLAY) $(AS_ROOT) $(LAB_ARGS)

test: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m kpt_lab claims
	$(MAKE) --no-print-directory --jobs=2 test-library test-kernels test-notebooks

# Two at a time run side by side, the longest first: none times anything, and each keeps one core busy.
test-library: $(STAMP)
	$(RUN) -m pytest kpt_lab tests --ignore=tests/kernels
test-kernels: $(STAMP)
	$(RUN) -m pytest -p no:cacheprovider tests/kernels
test-notebooks: $(STAMP)
	$(RUN) -m pytest -p no:cacheprovider --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg notebooks

# Warnings are errors; afterwards the pages are searched for what they would load from elsewhere, for weight and for dead links.
site: $(VENV)/.set-up-docs
	rm -rf docs/_build
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --nitpicky --quiet --doctree-dir docs/_build/doctrees docs docs/_build/html
	$(RUN) -m kpt_lab.site.audit docs/_build/html

# KPT_LAB_E2E_ALL=1 make e2e    runs all notebooks in JupyterLab, not only three
e2e: $(VENV)/.set-up-e2e
	$(RUN) -m pytest tests/e2e

# Runs every notebook and stores its outputs, without what differs from run to run or from Python to Python: the widgets' state,
# the times of execution, the kernel's version.
NOTEBOOKS := find notebooks -name '*.ipynb' -not -path '*/.*' -exec $(RUN)
KEEP_NAME := import sys, nbformat; [(book := nbformat.read(path, 4), book.metadata.update(language_info={"name": "python"}), \
	nbformat.write(book, path)) for path in sys.argv[1:]]
notebooks: $(STAMP)
	$(NOTEBOOKS) -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.store_widget_state=False --ExecutePreprocessor.record_timing=False {} +
	$(NOTEBOOKS) -c '$(KEEP_NAME)' {} +

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info docs/_build docs/notebooks docs/reference
	find kpt_lab widgets tests notebooks benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
