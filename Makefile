# make quickstart: set up, train on generated cases, evaluate. make test: set up, run the tests.
# make site: docs/ as pages to browse, in runs/site; a broken link or reference is an error (not with
# mkdocs' --quiet, which counts no warnings).
# make notebooks: writes examples/*.ipynb anew, from the scripts beside them.
# make benchmarks: the speed of training, prediction and reading on this machine, to runs/benchmarks;
# BENCHMARK=--small for a machine without an accelerator, AGAINST=--against=torch beside PyTorch.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
WORKDIR ?= runs/quickstart-fold0

BENCHMARK ?=
AGAINST ?=
REPORTS := runs/benchmarks

.PHONY: quickstart test lint site notebooks benchmarks clean

quickstart: $(VENV)/installed
	$(RUN) main.py --config=configs/quickstart.py --workdir=$(WORKDIR)
	$(RUN) main.py --mode=evaluate --workdir=$(WORKDIR)

test: $(VENV)/installed-tests
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

site: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

notebooks:
	$(PYTHON) tests/helpers/notebooks.py examples/segment.py

benchmarks: $(VENV)/installed
	@mkdir -p $(REPORTS)
	$(RUN) benchmarks/train_step.py $(BENCHMARK) $(AGAINST) > $(REPORTS)/train_step.txt
	$(RUN) benchmarks/train_step.py $(BENCHMARK) --variants default student_only kd_net \
	  --json=$(REPORTS)/recipes.json > $(REPORTS)/recipes.txt
	$(RUN) benchmarks/step_profile.py $(BENCHMARK) > $(REPORTS)/step_profile.txt
	$(RUN) benchmarks/inference.py $(BENCHMARK) $(AGAINST) > $(REPORTS)/inference.txt
	$(RUN) benchmarks/input_pipeline.py $(BENCHMARK) --step-json=$(REPORTS)/recipes.json \
	  > $(REPORTS)/input_pipeline.txt
	@tail -n 100 $(REPORTS)/*.txt

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "kd_jax needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-tests: $(VENV)/installed tests/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	@touch $@

EXTRA_DOCS := import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"];
EXTRA_DOCS += print(*project["optional-dependencies"]["docs"])

$(VENV)/installed-docs: $(VENV)/installed pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check $$($(RUN) -c '$(EXTRA_DOCS)')
	@touch $@

clean:
	rm -rf $(VENV) runs
