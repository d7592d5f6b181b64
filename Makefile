PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test install lint types clean

QUICKSTART := configs/minigrid_quickstart.yaml
CHECKPOINTS := runs/quickstart/checkpoints

quickstart: install  ## set up, train the embedded default, test SFT and SWIRL, print the table
	$(BIN)/swirl fit -c $(QUICKSTART) --ckpt_path last
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/epoch=5.ckpt --verbose false
	$(BIN)/swirl test -c $(QUICKSTART) --ckpt_path $(CHECKPOINTS)/last.ckpt --verbose false
	@echo "table: runs/quickstart/results.json; pictures: $(BIN)/tensorboard --logdir runs"

test: install lint types  ## set up, then ruff, mypy and pytest with coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=85

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy follows files, not the import hook of an editable install: lay the package out as it is installed
types:
	rm -rf build/types && mkdir -p build/types
	cp -rs $(CURDIR)/src/swirl_lightning build/types/
	cp -rs $(CURDIR)/callbacks $(CURDIR)/benchmarks build/types/swirl_lightning/
	cp -rs $(CURDIR)/recipes build/types/
	MYPYPATH=build/types $(BIN)/mypy -p swirl_lightning -p recipes

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,minigrid]'
	touch $@

clean:
	rm -rf $(VENV) build
