# Set-up, demo and tests of a fresh clone. Needs Python 3.10 or newer with pip and venv; all else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help demo test faults lint install clean
.DEFAULT_GOAL := help

help:
	@echo "make install set up .venv (demo and test do so, too)"
	@echo "make demo    run the whole chain on the bundled synthetic sample, offline, and write a report"
	@echo "make test    lint and run the tests"
	@echo "make faults  kill training at 20 random points with one process and with two, and compare (ten minutes)"
	@echo "make clean   remove what demo and tests made (not .venv)"

install: $(INSTALLED)

# The stamp is newer than the files it was made from, so a changed pin installs again.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[crawl,deepspeed,features,language,ray,test,vectors]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m launch.pipeline launch/recipes/demo.yaml --output runs/demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror finetune/*.cpp finetune/*.h launch/*.cpp

# One thread a worker: workers that share cores slow each other down many times over.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

faults: $(INSTALLED)
	$(BIN)/python tests/faults/kill_points.py

clean:
	rm -rf runs/demo .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
