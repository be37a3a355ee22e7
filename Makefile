# Two commands on a fresh machine (Debian 12: apt install python3 python3-venv make):
#   make demo    the main job on the built-in phantom: teacher, distillation, INT8 export, bench, picture, closing table
#   make test    all tests
#   make soak    their mass forms
# Everything is installed into .venv, pinned by constraints.txt. TORCH_INDEX=URL takes torch from there first.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

.PHONY: demo test soak lint install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv "$(VENV)"
	@echo "installing into $(VENV), a few minutes: torch first$(if $(TORCH_INDEX), from $(TORCH_INDEX))"
	$(PIP) install -q $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch "$(INSTALLED)"

demo: $(INSTALLED)
	$(PY) benchmarks/demo.py --out demo

# One process a folder: torch, OpenVINO and ONNX Runtime change the state of the process that loads them (denormals,
# thread pools), and no product process loads all three either.
ALL := $(sort $(dir $(wildcard tests/*/test_*.py)))
LONG := $(patsubst %,tests/%/,serve distill bundle benchmarks cli e2e measure)  # the longest first: both jobs end together
FOLDERS := $(filter $(ALL),$(LONG)) $(filter-out $(LONG),$(ALL))

# Two folders at a time; what a folder said comes when it has ended.
JOBS ?= 2

test: $(INSTALLED)
	@printf '%s\n' $(FOLDERS) | xargs -P $(JOBS) -I{} sh -c 'log=$$(mktemp); \
	  $(PY) -m pytest -q -m "not soak" {} > "$$log" 2>&1; code=$$?; echo {}; cat "$$log"; rm -f "$$log"; exit $$code'

# The mass forms: many random protocols, every rung in both runtimes, ...
soak: $(INSTALLED)
	@set -e; for folder in $(FOLDERS); do echo "$$folder"; $(PY) -m pytest -q -m soak "$$folder" || [ $$? -eq 5 ]; done

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m mypy

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
