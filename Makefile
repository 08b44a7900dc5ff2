# Two commands matter: `make demo` and `make test`. Each sets up what it needs in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test test-all bench docs lint clean

help:
	@echo "make demo      set up, run the four systems at smoke scale on bundled real data, print where the report is"
	@echo "make test      set up, run the tests"
	@echo "make test-all  the slow tests too, every check, Chromium required"
	@echo "make bench     time operators and training steps against their frozen baselines"
	@echo "make docs      build the site into site/"
	@echo "make lint      ruff, mypy and the floors"

# A stamp per set of extras, made anew when the requirements change.
$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[export,hdr,text,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable '.[docs]'
	@touch $@

demo: $(VENV)/.core
	$(BIN)/repertory reproduce dilateformer bake hwa pyramid_texture_filtering --scale smoke --out reproduced/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-all: $(VENV)/.dev $(VENV)/.docs lint
	REPERTORY_REQUIRE_CHROMIUM=1 $(BIN)/python -m pytest -m "not gpu"
	$(BIN)/repertory verify

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.dilated_attention
	$(BIN)/python -m benchmarks.bilateral
	$(BIN)/python -m benchmarks.elsa
	$(BIN)/python -m benchmarks.criss_cross
	$(BIN)/python -m benchmarks.frequency_filter
	$(BIN)/python -m benchmarks.reste_estimator
	$(BIN)/python -m benchmarks.binary_conv
	$(BIN)/python -m benchmarks.supernet_step
	$(BIN)/python -m benchmarks.petl
	$(BIN)/python -m benchmarks.dap
	$(BIN)/python -m benchmarks.fnas
	$(BIN)/python -m benchmarks.method_step

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "the site is in site/; to read it with its search: python3 -m http.server --directory site"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build site runs reproduced
