# `make demo` and `make test` do all their own set-up: Python 3.10 or newer, make and git are enough.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
WORKERS ?= 2
PORTRAIT := runtime/data/portrait.png
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
CLI := $(BIN)/styleclip-rt
PROMPT ?= purple-hair
SCORE := evaluate --prompt $(PROMPT) --faces 40 --no-curves --times none

.DEFAULT_GOAL := help
.PHONY: help demo optimize mapper directions test check lint types layers format clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo    install, export the prompt bob-cut, edit the sample portrait, say where the pictures are'
	@echo 'make optimize | mapper | directions'
	@echo '             install, run one of the three methods from nothing on PROMPT=purple-hair, score it on 40 faces'
	@echo 'make test    install, run the whole test suite (WORKERS=2 files at a time)'
	@echo 'make check   lint, format, types, layers, tests (what CI runs)'
	@echo 'make lint | types | layers | format | clean'

# The stamps say which extras the environment holds; pyproject.toml decides when they are out of date.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo 'Python 3.10 or newer is needed; name one with PYTHON=...' >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo 'No venv module here: on Debian and Ubuntu, apt install python3-venv' >&2; exit 2; }

$(VENV)/.demo: $(BIN)/python pyproject.toml
	@echo 'installing styleclip-rt[torch] into $(VENV) (some minutes, about 6 GB with the CUDA build of torch)'
	@$(PIP) install --quiet -e '.[torch]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	@echo 'installing styleclip-rt[torch,openvino,align,bench,train,dev] into $(VENV)'
	@$(PIP) install --quiet -e '.[torch,openvino,align,bench,train,dev]'
	@touch $(VENV)/.demo $@

demo: $(VENV)/.demo
	@mkdir -p $(OUT)
	$(CLI) export --prompt bob-cut --out $(OUT)/bundle
	$(CLI) edit $(PORTRAIT) --bundle $(OUT)/bundle --alpha 3 --beta 0.12 --out $(OUT)/bob-cut.png
	$(CLI) edit $(PORTRAIT) --bundle $(OUT)/bundle --grid --out $(OUT)/bob-cut-grid.png
	@echo
	@echo 'before:  $(abspath $(PORTRAIT))'
	@echo 'after:   $(abspath $(OUT))/bob-cut.png         alpha 3, beta 0.12'
	@echo 'sheet:   $(abspath $(OUT))/bob-cut-grid.png    alpha x beta'
	@echo 'bundle:  $(abspath $(OUT))/bundle'

# The three methods of StyleCLIP, each from nothing, CPU only: optimise a face, train a mapper, measure the channel directions.
optimize: $(VENV)/.demo
	@mkdir -p $(OUT)
	$(CLI) optimize $(PORTRAIT) --prompt $(PROMPT) --out $(OUT)/optimized.png
	$(CLI) $(SCORE) --methods optimize --out $(OUT)/optimize

mapper: $(VENV)/.demo
	@mkdir -p $(OUT)
	$(CLI) train mapper --prompt $(PROMPT) --out $(OUT)/mapper-pack
	$(CLI) $(SCORE) --methods mapper --recommend --pack $(OUT)/mapper-pack --out $(OUT)/mapper

directions: $(VENV)/.demo
	@mkdir -p $(OUT)
	$(CLI) train directions --out $(OUT)/directions-pack
	$(CLI) $(SCORE) --methods global --pack $(OUT)/directions-pack --out $(OUT)/directions

# One thread for each worker. The fixtures that cost (exports) belong to a file, so a file stays with one worker; conftest.py
# puts the files with slow tests first. Tests that assert a time run alone afterwards, from the files that have one: to
# collect the others takes longer than to run these. The tests start a hundred processes: compiled sources are kept for them.
test: $(VENV)/.test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 STYLECLIP_RT_THREADS=1 $(BIN)/python -m pytest -m 'not timing' \
		--numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=20
	$(BIN)/python -m pytest -m timing $$(grep -rl --include='test_*.py' 'mark\.timing' tests)

check: lint types layers test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/mypy

layers: $(VENV)/.test
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
