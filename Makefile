# `make demo` and `make test` set up everything they need; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := .venv-stubs
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
SEED ?= 0
FAULTS ?= 100
HOSTILE ?= 10000

.DEFAULT_GOAL := help
.PHONY: help demo test faults check docs bench paper stubs stubs-check format clean

help:
	@echo "make demo [SEED=1]  one server and six clients on this machine train together"
	@echo "make test           the tests"
	@echo "make faults [FAULTS=100 SEED=0]  the fault bench: half an hour on two cores"
	@echo "make check          lint, format, types, freshness of generated stubs, the site"
	@echo "make docs           the pages of docs/ as a site in site/"
	@echo "make bench          the benchmarks; results in benchmarks/out"
	@echo "make paper DATA=FOLDER [TABLE=name MINUTES=60 SEARCH=1 DEVICE=cuda JOBS=8]  the papers' tables; stop and go on at will"
	@echo "make stubs          generate the protobuf stubs again"

# The stamp is newer than pyproject.toml once everything in it is installed.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "python3 -m venv failed; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV); this happens once and takes some minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

# grpcio-tools is pinned to the oldest supported version: stubs of newer ones refuse older
# runtimes. Its wheels end at Python 3.11; a newer Python checks with the newest instead.
$(STUBS)/.installed: proto/generate.py
	@echo "installing into $(STUBS); this happens once"
	@test -x $(STUBS)/bin/python || $(PYTHON) -m venv $(STUBS)
	@$(STUBS)/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools<80' && \
	if $(STUBS)/bin/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; \
	then wanted='grpcio-tools==1.49.1'; else wanted='grpcio-tools numpy'; fi && \
	$(STUBS)/bin/python -m pip install --quiet --disable-pip-version-check $$wanted
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py --seed $(SEED)

# Three processes for two cores, each with one thread: most tests wait for processes, sockets and
# disks. Bytecode is kept even where the environment forbids it: tests start hundreds of processes.
test: $(VENV)/.installed
	@$(PYTEST) -n $$(( ($$(getconf _NPROCESSORS_ONLN) * 3 + 1) / 2 )) --dist worksteal -m 'not alone'
	@$(PYTEST) -m alone $$(grep -rl --include='*.py' 'mark.alone' tests)

# The time limits bound the whole: 45 minutes of schedules, 15 of hostile inputs, 15 of the rest.
faults: $(VENV)/.installed
	@echo "the fault bench: about half an hour on two cores, 75 minutes at most"
	@timeout 2700 $(BIN)/python tests/faults/chaos.py --schedules $(FAULTS) --seed $(SEED)
	@timeout 600 $(BIN)/python tests/faults/hostile.py --inputs $(HOSTILE) --seed $(SEED)
	@timeout 300 $(BIN)/python tests/faults/hostile.py --inputs $(HOSTILE) --seed $(SEED) --plain
	@FAULTS_LONG=1 timeout 900 $(BIN)/python -m pytest -rs tests/faults/test_disturbances.py

check: $(VENV)/.installed stubs-check docs
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# The theme advertises against mkdocs 2, which pyproject.toml keeps out.
docs: $(VENV)/.installed
	@NO_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet

bench: $(VENV)/.installed
	@for name in core quped_step fedmpq_step fedp3_bytes training_memory cuts memory simulation export; do $(BIN)/python benchmarks/$$name.py || exit 1; done

# Goes on where it was stopped; without TABLE all of them, in order of worth.
paper: $(VENV)/.installed
	@$(BIN)/python benchmarks/papers/paper.py $(TABLE) $(if $(DATA),--data $(DATA)) \
	  $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEARCH),--search) \
	  $(if $(DEVICE),--device $(DEVICE)) $(if $(JOBS),--jobs $(JOBS))

stubs: $(STUBS)/.installed
	@$(STUBS)/bin/python proto/generate.py

stubs-check: $(STUBS)/.installed
	@$(STUBS)/bin/python proto/generate.py --check

format: $(VENV)/.installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(STUBS) build dist site demo-out .mypy_cache .pytest_cache .ruff_cache
