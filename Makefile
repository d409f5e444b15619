# make demo   install, then train -> export -> eval -> chat on the embedded nano model
# make test   install, then lint, types and tests (SLOW=1 for all of them)
# make lint   lint and types only
# make clean  remove what the others made here

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check
TORCH  := 2.13.0
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

HAS_GPU := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)
HAS_CUDA_COMPILER := $(shell command -v nvcc >/dev/null 2>&1 && echo yes)
IS_LINUX_X86 := $(shell [ "$$(uname -sm)" = "Linux x86_64" ] && echo yes)

# llama.cpp compiled by GCC 12 crashes on quantized weights where the CPU has AMX; AVX-512 stays on.
ifeq ($(IS_LINUX_X86),yes)
LLAMA_FLAGS := CFLAGS="$$CFLAGS -mno-amx-tile -mno-amx-int8 -mno-amx-bf16" CXXFLAGS="$$CXXFLAGS -mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
endif
ifeq ($(HAS_GPU)$(HAS_CUDA_COMPILER),yesyes)
LLAMA_FLAGS += CMAKE_ARGS="-DGGML_CUDA=on $$CMAKE_ARGS"
endif

.PHONY: demo test lint install clean

demo: install
	@$(BIN)/ftllm demo

test: install lint
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(if $(SLOW),-m "slow or not slow")

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

install: $(VENV)/.installed

$(VENV)/bin/python:
	@echo "==> making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "ftllm needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# torch comes first and alone: later steps then find it there and leave it be.
$(VENV)/.torch: | $(VENV)/bin/python
ifeq ($(HAS_GPU),yes)
	@echo "==> installing torch $(TORCH) with CUDA (several GB)"
	@$(PIP) install -q torch==$(TORCH)
else
	@echo "==> installing torch $(TORCH) for the CPU (about 200 MB)"
	@$(PIP) install -q torch==$(TORCH)+cpu 2>/dev/null \
	  || $(PIP) install -q torch==$(TORCH)+cpu --retries 0 --index-url $(TORCH_CPU_INDEX) 2>/dev/null \
	  || $(PIP) install -q torch==$(TORCH)
endif
	@touch $@

$(VENV)/.llama: pyproject.toml | $(VENV)/.torch
	@wanted=$$(sed -n 's/.*"\(llama-cpp-python==[0-9.]*\)".*/\1/p' pyproject.toml); \
	echo "==> installing $$wanted: llama.cpp is compiled for this machine, 5 to 10 minutes on two cores"; \
	echo "    (once; pip keeps the result)"; \
	$(LLAMA_FLAGS) $(PIP) install -q "$$wanted"
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch $(VENV)/.llama
ifeq ($(HAS_GPU),yes)
	@echo "==> installing ftllm with training, export and Unsloth"
	@$(PIP) install -q -e ".[train,export,gpu,dev]"
else
	@echo "==> installing ftllm with training and export (about 300 MB)"
	@$(PIP) install -q -e ".[train,export,dev]"
	@echo "==> installing Unsloth for the CPU (without its CUDA parts)"
	@$(PIP) install -q --no-deps "unsloth==2026.10.*" "unsloth_zoo==2026.10.*"
endif
	@touch $@

clean:
	rm -rf $(VENV) build dist runs gguf *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
