# One environment in .venv; `make PYTHON=python3.13 ...` chooses the interpreter.
PYTHON ?= python3
VENV ?= .venv
VENV_GPU ?= .venv-gpu
# requirements-no-tensorflow.txt does without TensorFlow, into another VENV
REQUIREMENTS ?= requirements.txt
BIN := $(VENV)/bin
QUICK := runs/quickstart
# of your-images: a folder of pictures, where everything goes, and laptop, gpu or gpu,small
DATA ?=
WORKDIR ?= runs/your_images
SIZE ?= laptop
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: quickstart your-images test test-newest test-slow test-faults bench-tpu bench-gpu test-gpu-compile lint
.PHONY: clean wheel

$(VENV)/installed: requirements.txt requirements-no-tensorflow.txt requirements-tensorflow.txt \
		requirements-library.txt
	@echo "== installing $(REQUIREMENTS) into $(VENV) (once; a minute or two)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@touch $@

$(VENV)/installed-test: $(VENV)/installed requirements-test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31
	@touch $@

$(VENV)/installed-torch: $(VENV)/installed-test requirements-torch.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-torch.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps DALL-E==0.1
	@touch $@

quickstart: $(VENV)/installed
	@echo "== 1/5 training a small tokenizer on drawn shapes -> $(QUICK)/tokenizer"
	$(BIN)/python main.py --config=configs/quickstart/tokenizer.py --workdir=$(QUICK)/tokenizer
	@echo "== 2/5 pre-training a tiny BEiT: predict the tokens of hidden patches -> $(QUICK)/pretrain"
	$(BIN)/python main.py --config=configs/quickstart/pretrain.py --workdir=$(QUICK)/pretrain
	@echo "== 3/5 drawing curves, reconstructions and attention -> $(QUICK)/pretrain/images"
	$(BIN)/python -m beit_jax.tools.curves --workdir $(QUICK)/pretrain \
		--output $(QUICK)/pretrain/images/curves.png
	$(BIN)/python -m beit_jax.tools.reconstruct --workdir $(QUICK)/pretrain --images shapes \
		--output $(QUICK)/pretrain/images/reconstructions.png
	$(BIN)/python -m beit_jax.tools.attention --checkpoint $(QUICK)/pretrain --images shapes \
		--output $(QUICK)/pretrain/images/attention.png
	@echo "== 4/5 what does the frozen encoder know? linear heads on every layer, and nearest"
	@echo "       neighbours; then the same with random weights"
	$(BIN)/python main.py --config=configs/quickstart/probe.py --workdir=$(QUICK)/probe
	$(BIN)/python main.py --config=configs/quickstart/probe.py:random --workdir=$(QUICK)/probe_random
	@echo "== 5/5 does pre-training pay? the same fine-tuning on 10 labelled pictures a class, from"
	@echo "       the encoder and from random weights"
	$(BIN)/python -m beit_jax.tools.study --study=configs/studies/quickstart.py \
		--workdir=$(QUICK)/study --seeds=1 --choose_rates=false --tasks "200 steps"

# the same for your pictures, `make your-images DATA=DIR`; again: it goes on where it stopped
your-images: $(VENV)/installed
	@$(BIN)/python -m beit_jax.tools.your_images --data.path="$(DATA)" --workdir="$(WORKDIR)" \
		--size="$(SIZE)"

PYTEST := $(BIN)/python -m pytest

test: $(VENV)/installed-torch
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

# the same without what needs PyTorch, and without some long runs (marked `once`):
# `make test-newest PYTHON=python3.13 VENV=.venv313`; runs are ended at three random moments that
# `test` has not
test-newest: $(VENV)/installed-test
	BEIT_JAX_FAULT_SEED=5 BEIT_JAX_FAULT_TRIALS=3 $(PYTEST) -n 2 --dist loadfile \
		--no-loadscope-reorder -m "not slow and not gpu_compile and not once"

# what trains for minutes or takes published sizes; alone on the machine about a quarter of an hour
test-slow: $(VENV)/installed-torch
	$(PYTEST) -m slow -rP --durations=0

# real runs ended at random moments: 30 of each task, and those of two processes; the restart loop on
# a full disk and on data that go; alone on the machine about two hours
test-faults: $(VENV)/installed-test
	BEIT_JAX_FAULT_TRIALS=30 $(PYTEST) -m "slow or not slow" -rP --durations=0 \
		tests/train/test_faults.py

# the TPU compiler's estimates of training steps, on a machine without a TPU; several minutes each
bench-tpu: $(VENV)/installed-test
	$(BIN)/pip install --quiet --disable-pip-version-check "jax[tpu]"
	$(PYTEST) -m slow -rP --durations=0 tests/performance/test_plan_estimates.py

# what is to be measured on a GPU, in eight minutes, into OUTPUT; where JAX (cuda), flax, optax,
# orbax-checkpoint and PyTorch are installed, and nothing else is needed
OUTPUT = gpu
bench-gpu:
	$(PYTHON) -m beit_jax.tools.benchmark gpu --output=$(OUTPUT)

# the recipes' programs compiled for GPUs, on a machine without one; in an environment of its own, for
# CUDA's libraries are 6 GB; about an hour on two cores
test-gpu-compile:
	$(MAKE) VENV=$(VENV_GPU) REQUIREMENTS=requirements-no-tensorflow.txt $(VENV_GPU)/installed-test
	$(VENV_GPU)/bin/pip install --quiet --disable-pip-version-check "jax[cuda13]"
	$(VENV_GPU)/bin/python -m pytest -m gpu_compile -rP --durations=0 \
		tests/performance/test_gpu_compile.py

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# dist/*.whl, with which a recipe is found by name outside the clone
wheel: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check build twine
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target dist/tried dist/*.whl
	cd dist/tried && $(abspath $(BIN))/python -m beit_jax train --config=quickstart/tokenizer --help \
		> /dev/null

clean:
	rm -rf $(VENV) $(VENV_GPU) dist runs
