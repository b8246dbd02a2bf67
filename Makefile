# `make demo` and `make test` are all a fresh machine needs: Python >= 3.10, git and a package index; no compiler.
#   PYTHON       the interpreter that makes the environment (python3)
#   VENV         the environment (.venv); one that exists is used as it is, and only gets what it lacks
#   JOBS         processes that test, of one thread each (2)
#   TORCH_INDEX  another index for torch and torchvision, such as one with CPU wheels

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
JOBS ?= 2
EXTRAS := dev,timm,export

BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.seg_ext-installed
# An environment that this file made carries a mark: constraints.txt holds there, and nowhere else.
MARK := $(VENV)/.seg_ext-made
OURS := $(if $(wildcard $(BIN)/python),$(wildcard $(MARK)),yes)
PINS := $(if $(OURS),--constraint constraints.txt)
BUILD := $(if $(OURS),--no-build-isolation)
PYTEST := $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal
EDITABLE := PYTHONWARNINGS='ignore:Editable installation' $(PIP) install $(PINS) $(BUILD) --editable

.PHONY: help install demo test test-slow latest lint typecheck wheel bench clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "make %-10s %s\n", $$1, $$2 }'

install: $(STAMP) ## the environment, torch, seg_ext and detectron2 where it is missing

demo: export DETECTRON2_DATASETS := datasets
demo: $(STAMP) ## train and evaluate on real data: a few minutes on a CPU
	$(BIN)/python -m seg_ext data prepare nuclei
	$(BIN)/python tools/train_net.py --config-file configs/nuclei/panoptic_unet_R_18_FPN.yaml OUTPUT_DIR output/demo
	@echo "The gallery: output/demo/gallery/index.html"

test: $(STAMP) ## all tests but the slow ones
	$(PYTEST)

test-slow: $(STAMP) ## the tests at full size
	$(BIN)/python -m pytest -m slow -o faulthandler_timeout=0

latest: ## test with the newest packages in .venv-latest and list what differs from constraints.txt
	rm -rf .venv-latest
	$(MAKE) VENV=.venv-latest PINS= install
	@status=0; $(PYTEST:$(BIN)%=.venv-latest/bin%) || status=$$?; \
	.venv-latest/bin/python -c "$$DIFFERENCES"; exit $$status

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

typecheck: $(STAMP) ## mypy
	$(BIN)/python -m mypy

wheel: $(STAMP) ## a wheel in dist/, configs included
	rm -rf build
	$(PIP) wheel --no-deps $(BUILD) --wheel-dir dist .
	rm -rf build

bench: $(STAMP) ## the benchmarks, side by side with peers
	$(EDITABLE) '.[bench]' --quiet
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do $(BIN)/python $$script; done

clean: ## remove what was built or cached; environments, data and results stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find seg_ext tools tests projects benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: make PYTHON=/path/to/python3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 10) else \
	"seg_ext needs Python 3.10 or newer, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.10 or newer" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make environments: install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	mkdir -p $(VENV)
	touch $(MARK)
	$(PYTHON) -m venv $(VENV)

$(STAMP): setup.py pyproject.toml constraints.txt | $(BIN)/python
	$(if $(OURS),$(PIP) install --quiet --upgrade $(PINS) pip setuptools wheel)
	$(if $(TORCH_INDEX),$(PIP) install $(PINS) --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	@echo "Installing into $(VENV): a few minutes the first time"
	$(EDITABLE) '.[$(EXTRAS)]'
	$(BIN)/python -m seg_ext install-detectron2
	@touch $@

define DIFFERENCES
from importlib.metadata import distributions
from pathlib import Path
from packaging.requirements import Requirement
lines = [line for line in Path("constraints.txt").read_text().splitlines() if line and line[0] != "#"]
here = {d.name.lower().replace("_", "-"): d.version for d in distributions()}
pins = [r for r in map(Requirement, lines) if r.name in here and (r.marker is None or r.marker.evaluate())]
differ = [r for r in pins if str(r.specifier) != f"=={here[r.name]}"]
for pin in differ:
    print(f"{pin.name}: {here[pin.name]} here, {pin.specifier} in constraints.txt")
print(f"{len(differ)} of {len(pins)} installed packages differ from constraints.txt")
endef
export DIFFERENCES
