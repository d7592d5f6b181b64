PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LAYOUT := build/layout
# modules are compiled where they are first imported: most never are, and all take as long as the rest of the installation
PIP_OPTIONS := --quiet --no-compile --constraint constraints.txt
# and kept, though an image may be set up otherwise: without that each process takes two to three times as long to start
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test coverage install lint types contracts layout docs clean

QUICKSTART := configs/minigrid_quickstart.yaml
CHECKPOINTS := runs/quickstart/checkpoints

quickstart: install  ## set up, train the embedded default, test SFT and SWIRL, print the table
	$(BIN)/swirl fit -c $(QUICKSTART) --ckpt_path last
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/epoch=23.ckpt --verbose false
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/last.ckpt --verbose false
	@echo "table: runs/quickstart/results.json; images: $(BIN)/tensorboard --logdir runs"

test: install lint contracts  ## set up, then ruff, import-linter, pytest, and mypy beside it, which tells its result at the end
	@$(MAKE) --silent types > build/mypy.txt 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --durations 25 $(COVERAGE); tested=$$?; \
	wait $$types; typed=$$?; cat build/mypy.txt; exit $$((tested | typed))

coverage: COVERAGE := --cov --cov-report=term:skip-covered --cov-fail-under=85
coverage: test  ## the same, and the share of lines that ran; on Python 3.11 it takes a third longer

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: layout
	MYPYPATH=$(LAYOUT) $(BIN)/mypy -p swirl_lightning -p recipes

contracts: layout  ## the layers of pyproject.toml: engine/ imports nothing of the project, and nothing imports upwards
	cd $(LAYOUT) && $(CURDIR)/$(BIN)/lint-imports --no-logo --no-cache $(CURDIR)/pyproject.toml

# mypy, import-linter and the API reference follow files, not the import hook of an editable install: links, laid out as it is installed
layout:
	rm -rf $(LAYOUT) && mkdir -p $(LAYOUT)
	cp -rs $(CURDIR)/src/swirl_lightning $(LAYOUT)/
	cp -rs $(CURDIR)/callbacks $(CURDIR)/benchmarks $(LAYOUT)/swirl_lightning/
	cp -rs $(CURDIR)/recipes $(LAYOUT)/

docs: $(VENV)/.docs layout  ## build the site in build/site; a broken link is an error
	$(BIN)/mkdocs build --strict

$(VENV)/.docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_OPTIONS) --editable '.[docs]'
	touch $@

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_OPTIONS) --editable '.[dev,minigrid]'
	touch $@

clean:
	rm -rf $(VENV) build
