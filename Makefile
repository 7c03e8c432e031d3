# Needs only make and Python 3.11 or newer; everything else goes into .venv.

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
TORCH_CPU := https://download.pytorch.org/whl/cpu

.PHONY: help venv demo test proofs check bench bench-queue bench-rewards bench-frontier bench-method real-size \
	bench-gpu bench-gpu-wheels bench-gpu-offline chaos fuzz openapi-lint compose-test tiny-model tiny-model-report clean

FUZZ_SECONDS ?= 60
CHAOS ?=
REAL_SIZE ?=
REWARD ?= brightness
BENCH_METHOD ?=
BENCH_GPU ?=
GPU_PYTHON ?= 3.12
WITHOUT ?= numpy
SEED ?= 0
BUDGET_MINUTES ?=
SERVICES := $(CURDIR)/services/reward_api:$(CURDIR)/services/surrogate_trainer:$(CURDIR)/services/rewards
TINY_RECIPE := PYTHONPATH=recipes/tiny-sdxl-lcm $(BIN)/python -m tiny_recipe

help:
	@echo "make demo          teach the bundled model to bind colours to shapes; see runs/demo/report.html"
	@echo "make test          run the tests"
	@echo "make proofs        the tests that take minutes each"
	@echo "make check         formatting, lint and types"
	@echo "make bench         what the shipped surrogate's gradient is worth; a minute or two"
	@echo "make bench-queue   the queue beside what Redis itself does with the same bytes; a minute"
	@echo "make bench-rewards how fast the reward API is, beside its limits; six minutes on two idle cores"
	@echo "make bench-frontier  what a run with default settings gains at its drift, compared with the true gradient;"
	@echo "                   tens of minutes; REWARD=redness SEED=1 for another of benchmarks/frontier/rewards.py"
	@echo "make bench-method  every method at equal reward calls, the ablations of LaSRO, and docs/results.md of both: a night and"
	@echo "                   a day on two cores, resumed by the same command; BENCH_METHOD=--quick for a first look in"
	@echo "                   half an hour"
	@echo "make real-size     a model of SSD-1B's size, random weights, through both stages on the CPU: memory and time; 12 GB,"
	@echo "                   tens of minutes; REAL_SIZE='--device cuda --size 1024' on a GPU, '--tiny --size 64' to try it"
	@echo "make bench-gpu     one GPU beside plain diffusers and peft, random weights, ten minutes; BENCH_GPU=--tiny is a"
	@echo "                   smoke test anywhere. For a machine without a network: make bench-gpu-wheels here, which takes"
	@echo "                   GPU_PYTHON=3.12 WITHOUT='numpy transformers', then make bench-gpu-offline PYTHON=python3 there"
	@echo "make chaos         a thousand faults over real processes, and no sample lost; tens of minutes;"
	@echo "                   CHAOS='--faults 100 --rounds 25' for less"
	@echo "make fuzz          look for bodies that a decoder chokes on; FUZZ_SECONDS=60 for each decoder"
	@echo "make openapi-lint  what Redocly and Spectral say of the OpenAPI documents; needs Node.js"
	@echo "make compose-test  the composed stack in a Docker engine: started, used, killed, and given bad input; five minutes"
	@echo "make tiny-model    make the bundled model anew, on a GPU half an hour; BUDGET_MINUTES=25 for all its training"
	@echo "make tiny-model-report   measure the bundled model and the one made, beside what is wanted; ten minutes"
	@echo "make venv          only install into .venv"
	@echo "make clean         delete .venv"

venv: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/lasro demo

test: $(INSTALLED)
	$(BIN)/pytest

proofs: $(INSTALLED)
	$(BIN)/pytest -m proof

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

bench: $(INSTALLED)
	$(BIN)/python benchmarks/climb.py bundled

bench-queue: $(INSTALLED)
	$(BIN)/python benchmarks/queue_throughput.py

bench-rewards: $(INSTALLED)
	$(BIN)/python -m benchmarks.rewards

bench-frontier: $(INSTALLED)
	$(BIN)/python -m benchmarks.frontier run $(REWARD) --seed $(SEED) --out runs/frontier/$(REWARD)-$(SEED)
	$(BIN)/python -m benchmarks.frontier table runs/frontier --pictures runs/frontier

# The page is written of what there is, where a run failed too.
bench-method: $(INSTALLED)
	$(BIN)/python -m benchmarks.methods run $(BENCH_METHOD); done=$$?; \
		test $$done -gt 1 || $(BIN)/python -m benchmarks.methods report $(filter --quick --tiny,$(BENCH_METHOD)) || done=$$?; exit $$done

real-size: $(INSTALLED)
	$(BIN)/python -m benchmarks.real_size $(REAL_SIZE)

bench-gpu: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu $(BENCH_GPU)

# What it imports but for torch, and for what the machine with the GPU has besides; these are no part of the repository.
bench-gpu-wheels: $(INSTALLED)
	rm -rf .whl
	$(BIN)/python -m benchmarks.gpu.wheels .whl --python $(GPU_PYTHON) --without $(WITHOUT)

# Needs a Python that has torch, and nothing else of the network than what was carried in .whl.
bench-gpu-offline:
	$(PYTHON) -m pip install -q --no-index --no-deps --no-compile --upgrade --target .whl/site .whl/*.whl
	PYTHONPATH=$(CURDIR)/.whl/site:$(CURDIR):$(CURDIR)/client:$(SERVICES) $(PYTHON) -m benchmarks.gpu $(BENCH_GPU)

chaos: $(INSTALLED)
	$(BIN)/python -m tests.chaos $(CHAOS)

# Its wheels exist for fewer platforms than the rest, so the tests do without.
fuzz: $(INSTALLED)
	$(BIN)/pip install -c constraints.txt -e '.[dev,fuzz]'
	$(BIN)/python tests/fuzz/coverage_guided.py --seconds $(FUZZ_SECONDS)

openapi-lint: $(INSTALLED)
	PYTHONPATH=tests/support $(BIN)/python -m openapi_documents runs/openapi
	npx --yes @redocly/cli@2.77.0 lint runs/openapi/*.json
	npx --yes @stoplight/spectral-cli@6.16.3 lint --fail-severity warn --ruleset runs/openapi/spectral.yaml runs/openapi/*.json

# Needs no virtual environment, and everything else needs no Docker.
compose-test:
	$(PYTHON) deploy/compose_test.py

# What draws the emoji is wanted here alone.
tiny-model: $(INSTALLED)
	$(BIN)/pip install -c constraints.txt -e '.[dev,recipe]'
	$(TINY_RECIPE) all $(if $(BUDGET_MINUTES),--budget-minutes $(BUDGET_MINUTES))

tiny-model-report: $(INSTALLED)
	$(TINY_RECIPE) report bundled $(wildcard runs/tiny-sdxl-lcm/model)

# Torch first: without a GPU its CPU build, a tenth of the size, from PyTorch's own index; where that index cannot
# be reached, whatever pip finds. The rest then leaves it as it is. Before it a pip that finds out quickly what goes
# together. Modules are compiled at the end, on all cores: pip compiles one after the other. Two in five are tests, or
# models and pipelines that nobody here imports; some packages have templates that are no modules.
UNUSED := /(tests|torch/testing|pip|setuptools|transformers/models/(?!auto|clip|siglip)\w+|diffusers/pipelines/(?!stable_diffusion)\w+)/
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --no-compile -c constraints.txt --upgrade pip
	@if nvidia-smi -L >/dev/null 2>&1; then \
		$(BIN)/pip install --no-compile -c constraints.txt torch; \
	else \
		$(BIN)/pip install --no-compile --timeout 5 --retries 0 --no-deps --index-url $(TORCH_CPU) -c constraints.txt torch \
		|| $(BIN)/pip install --no-compile -c constraints.txt torch; \
	fi
	$(BIN)/pip install --no-compile -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '$(UNUSED)' .venv/lib || true
	@touch $@

clean:
	rm -rf .venv
