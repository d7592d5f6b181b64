PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test install lint layout types contracts clean

QUICKSTART := configs/minigrid_quickstart.yaml
CHECKPOINTS := runs/quickstart/checkpoints

quickstart: install  ## set up, train the embedded default, test SFT and SWIRL, print the table
	$(BIN)/swirl fit -c $(QUICKSTART) --ckpt_path last
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/epoch=5.ckpt --verbose false
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/last.ckpt --verbose false
	@echo "table: runs/quickstart/results.json; pictures: $(BIN)/tensorboard --logdir runs"

test: install lint types contracts  ## set up, then ruff, mypy, import-linter and pytest with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=85

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy and import-linter follow files, not the import hook of an editable install: lay the package out as installed
layout:
	rm -rf build/layout && mkdir -p build/layout
	cp -rs $(CURDIR)/src/swirl_lightning build/layout/
	cp -rs $(CURDIR)/callbacks $(CURDIR)/benchmarks build/layout/swirl_lightning/
	cp -rs $(CURDIR)/recipes build/layout/

types: layout
	MYPYPATH=build/layout $(BIN)/mypy -p swirl_lightning -p recipes

contracts: layout  ## the layers of pyproject.toml: engine/ imports nothing of the project, and nothing imports upwards
	cd build/layout && $(CURDIR)/$(BIN)/lint-imports --no-logo --no-cache $(CURDIR)/pyproject.toml

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,minigrid]'
	touch $@

clean:
	rm -rf $(VENV) build
