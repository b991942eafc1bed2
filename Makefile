# Seven verbs, the same on a laptop and in CI: make install | serve | test | chaos | fuzz | lint | bench.
# `make serve` needs the runtime packages only; every other verb adds the development ones.
# Python 3.11 or newer; PYTHON=python3.12 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := aviary bench gateway model_registry tests workers

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: install serve test chaos fuzz lint format bench clean

install: $(VENV)/.dev-installed

serve: $(VENV)/.installed
	@exec $(BIN)/aviary serve

# First what may run beside each other, then what wants the machine to itself.
test: $(VENV)/.dev-installed lint
	$(BIN)/python -m pytest tests/unit tests/integration -m '(unit or parallel) and not long' -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/integration tests/e2e tests/chaos tests/gpu -m 'not (parallel or long)'

# What `make test` does a few times, many times: faults under load, each counted; and machines that fall silent for long.
ROUNDS ?= 20
chaos: $(VENV)/.dev-installed
	$(BIN)/python -m pytest tests/chaos tests/e2e/test_cluster.py tests/integration/test_lost_gateways.py \
		-m 'long or not long' --rounds $(ROUNDS) --timeout 7200

# What `make test` does briefly, for long: whatever the OpenAPI document allows and whatever it does not, new each time;
# a thousand texts of a real model under strict JSON schemas; and what must hold of whatever comes, with new examples.
fuzz: $(VENV)/.dev-installed
	$(BIN)/python -m pytest tests/unit -m hypothesis --hypothesis-profile fuzz -n 2 --timeout 7200
	$(BIN)/python -m pytest tests/integration/test_openapi_fuzz.py tests/integration/test_structured_outputs.py \
		-m 'long or not long' --rounds 50 --timeout 7200

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.dev-installed
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@echo "==> creating $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet "$$(grep '^pip==' constraints.txt)"

# torch goes first and alone: `pip install torch` with its pin takes the build that pip's own settings offer
# for this machine, and what follows then finds it installed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "==> installing torch (1 of 2)"
	@$(PIP) install -c constraints.txt torch
	@echo "==> installing the gateway and the workers (2 of 2)"
	@$(PIP) install -e '.[gateway,workers]' -c constraints.txt
	@touch $@

# llama-cpp-python has no wheels on the package index: this compiles llama.cpp, once, for this machine's CPU. What is not
# needed is left out: its multimodal library, its HTTPS client, its tools. CMAKE_ARGS of your own (such as
# -DGGML_CUDA=on) are added.
LLAMA_CMAKE_ARGS := -DLLAVA_BUILD=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/.ci/llama_cpp.cmake

$(VENV)/.dev-installed: $(VENV)/.installed
	@echo "==> installing the development tools; llama.cpp is compiled, which takes five to ten minutes on two cores"
	@CMAKE_ARGS="$(LLAMA_CMAKE_ARGS) $$CMAKE_ARGS" SKBUILD_BUILD_TARGETS=llama \
		$(PIP) install --quiet -e '.[gateway,workers,deepspeed,llama,s3,gcs,simulate,dev]' -c constraints.txt
	@touch $@
