# make lint test: what must be green before a commit. bash .ci/run does everything, from nothing.
PYTHON ?= python
C_FILES = $(shell git ls-files "*.cpp" "*.h" "*.cu" "*.cuh")

.PHONY: help install lint format test test-triton test-gpu aot bench wheel clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: ## install with what tests need, compiling csrc/ anew
	$(PYTHON) -m pip install -e '.[test]' clang-format

lint: ## ruff, pyright, clang-format: report, change nothing
	ruff check .
	ruff format --check .
	pyright
	clang-format --dry-run -Werror $(C_FILES)

format: ## ruff and clang-format: change files
	ruff check --fix .
	ruff format .
	clang-format -i $(C_FILES)

test: ## all tests that can run here
	$(PYTHON) -m pytest

test-triton: ## the kernels' tests under Triton's interpreter, no GPU needed
	TRITON_INTERPRET=1 $(PYTHON) -m pytest tests/kernels

test-gpu: ## what needs a GPU
	$(PYTHON) -m pytest -m gpu

aot: ## compile every Triton kernel ahead of time and print what it uses
	$(PYTHON) -m tests.kernels.aot

bench: ## measure every op against eager, torch.compile and a copy
	$(PYTHON) -m pytest bench/ --benchmark

wheel: ## a wheel in dist/
	$(PYTHON) -m pip wheel --no-deps -w dist .

clean: ## remove build output, caches and compiled modules; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .benchmarks
	rm -f kernels/*.so kernels/_build.json
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +
