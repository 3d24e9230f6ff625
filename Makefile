# The two commands of this bundle are `make quickstart` and `make test`; each sets up what it needs in .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := output/quickstart_$(shell date +%Y%m%d_%H%M%S)
CASE := phantom_010
QUIET := PYTHONWARNINGS=ignore

.PHONY: quickstart test check format package

quickstart: $(VENV)/.runtime
	@echo "1/4 training the dual network on generated phantom volumes"
	@$(QUIET) $(BIN)/python -m monai.bundle run training --config_file configs/train.json --patch_size "[32,32,32]" \
		--iterations 60 --val_interval 30 --log_interval 10 --output_dir $(QUICKSTART)
	@echo "2/4 evaluation on the test volumes"
	@$(QUIET) $(BIN)/python -m monai.bundle run --config_file "['configs/train.json','configs/evaluate.json']" --patch_size "[32,32,32]" \
		--output_dir $(QUICKSTART)
	@echo "3/4 segmentation of a test volume"
	@$(QUIET) $(BIN)/python -m monai.bundle run --config_file "['configs/inference.json','$(QUICKSTART)/inference.json']" \
		--dataset_dir data/phantom/images/$(CASE).nii.gz \
		--output_dir $(QUICKSTART)/inference
	@echo "4/4 picture"
	@$(QUIET) $(BIN)/python -m scripts picture --image data/phantom/images/$(CASE).nii.gz \
		--reference data/phantom/labels/$(CASE).nii.gz --prediction $(QUICKSTART)/inference/$(CASE)_seg.nii.gz \
		--output $(QUICKSTART)/$(CASE).png > /dev/null
	@echo; grep '^|' $(QUICKSTART)/evaluation/metrics_summary.md
	@echo; echo "label map: $(QUICKSTART)/inference/$(CASE)_seg.nii.gz"; echo "picture:   $(QUICKSTART)/$(CASE).png"

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 scripts tests
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A task for which this bundle has no weights yet is packaged without. make package OVERWRITE=1 replaces what is there.
package: $(VENV)/.runtime
	$(BIN)/python -m scripts package --task left_atrium --output_dir dist $(if $(OVERWRITE),--overwrite true) $(if $(wildcard models/model.pt),,--without_weights true)
	$(BIN)/python -m scripts package --task hippocampus --output_dir dist $(if $(OVERWRITE),--overwrite true) $(if $(wildcard models/hippocampus/model.pt),,--without_weights true)
	$(BIN)/python -m scripts package --task pancreas --output_dir dist $(if $(OVERWRITE),--overwrite true) $(if $(wildcard models/pancreas/model.pt),,--without_weights true)

$(VENV)/.runtime: requirements.txt
	@python=""; for name in python3.12 python3.11 python3.10 python3.13 python3 python; do \
		if $$name -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
		then python=$$name; break; fi; done; \
	if [ -z "$$python" ]; then echo "error: Python 3.10 to 3.13 with its venv module is needed, none was found." >&2; exit 1; fi; \
	[ -x $(BIN)/python ] || $$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
