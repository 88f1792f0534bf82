# Each target sets up what it needs: a Python of 3.12 or newer is all that must be there.
.DEFAULT_GOAL := help
.PHONY: help demo quick test roles test-roles test-long-answers test-local gateway test-backends lint check bench bench-failover bench-sleeping bench-paired bench-roles bench-clients sim fuzz chaos user-changes cases clean

# Tests start a thousand processes: without byte code each would compile all that it imports, as long as it takes to run.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
WORKERS ?= auto

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

# What a user installs, and what the tests need besides: two coding agents are some 500 MB.
.venv/.stamp: pyproject.toml .ci/venv
	@bash .ci/venv all $@

.venv/.stamp-dev: pyproject.toml .ci/venv tests/local/requirements.txt
	@bash .ci/venv all,claude,codex,local,dev $@

.venv/.stamp-local: pyproject.toml .ci/venv tests/local/requirements.txt
	@bash .ci/venv all,local $@

.venv-litellm/.stamp: tests/node/backends/litellm.txt .venv/.stamp-dev
	@.venv/bin/python -m venv .venv-litellm && .venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

demo: .venv/.stamp$(if $(filter local,$(MODEL)),-local) ## Watch an agent outlive its node, in half a minute; MODEL=local for a small, real model
	@MODEL=$(MODEL) $(PY) examples/triage/demo.py

quick: .venv/.stamp-dev ## Run the tests that need no server and no other process, in less than a minute
	@$(PYTEST) -n $(WORKERS) -m quick $(ARGS)

test: .venv/.stamp-dev ## Run all tests
	@$(PYTEST) -n $(WORKERS) --dist worksteal --durations=10 $(ARGS)

roles: .venv/.stamp-dev ## The shorter live tests with each process logged in by its role and all else denied
	@TEST_ROLES=1 $(PYTEST) -q -n $(WORKERS) --dist worksteal -m "not slow" tests/live $(ARGS)

test-roles: .venv/.stamp-dev ## The live tests with each process logged in by its role and all else denied: nothing may be refused
	@used=$$(mktemp -d) && trap 'rm -r $$used' EXIT && TEST_ROLES=$$used $(PYTEST) -n $(WORKERS) --dist worksteal tests/live tests/client/test_cli.py \
		tests/client/test_lifecycle.py tests/client/test_traces.py tests/client/cli $(ARGS) && \
		PYTHONPATH=tests $(PY) tests/used.py $$used

test-long-answers: .venv/.stamp-dev ## Answers to callers in another account, up to one that takes ten minutes, on one server and on three
	@$(PYTEST) -n 0 -s tests/access_kit/long_answers.py $(ARGS)

test-local: .venv/.stamp-dev ## A real, small model behind each backend, some minutes: what it says is printed
	@$(PYTEST) -n 0 -s tests/local/test_small_model.py tests/local/vendors.py tests/local/gateway.py $(ARGS)

gateway: .venv-litellm/.stamp ## Install LiteLLM beside the project, for its test: a minute and 730 MB

test-backends: .venv/.stamp-dev ## What Arize Phoenix and Jaeger show of a mesh; installed once, outside the checkout, in ten minutes and 1.6 GB
	@PYTHONPATH=tests $(PY) -m trace_backends.installed
	@$(PYTEST) -n 0 -s tests/trace_backends/shown.py $(ARGS)

lint: .venv/.stamp-dev ## Lint, format, types, imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports

check: gateway lint test roles ## Everything: what must hold before a change is done

bench: .venv/.stamp-dev ## Measure the mesh beside its floors, in a few minutes
	@$(PY) -c 'import faststream' 2>/dev/null || $(PY) -m pip install --quiet -e '.[bench]' || true
	@$(PY) -m tests.bench $(ARGS)

bench-failover: .venv/.stamp-dev ## Kill nodes, leaders and servers under waiting callers; times and losses
	@PYTHONPATH=tests $(PY) -m bench.failover $(ARGS)

bench-sleeping: .venv/.stamp-dev ## What 100,000 sleeping agents cost (ARGS="--agents 10000" for fewer)
	@PYTHONPATH=tests $(PY) -m bench.sleeping $(ARGS)

bench-paired: .venv/.stamp-dev ## This checkout's node beside another version's: make bench-paired OTHER=/tmp/other (a git worktree)
	@PYTHONPATH=tests $(PY) -m bench.paired $(OTHER) $(ARGS)

bench-roles: .venv/.stamp-dev ## What roles cost beside an open mesh, and what one tenant's flood does to another
	@PYTHONPATH=tests $(PY) -m bench.under_roles $(ARGS)

bench-clients: .venv/.stamp-dev ## What asks by the clients for other languages take beside by hand, at a mesh that runs: ARGS=AGENT
	@PYTHONPATH=tests $(PY) -m bench.clients $(ARGS)

sim: .venv/.stamp-dev ## Simulate: make sim SEED=1 SEEDS=1000, or MINUTES=5; one seed with ARGS=--trace shows each step
	@$(PY) -m tests.sim --seed $(or $(SEED),1) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

fuzz: .venv/.stamp-dev ## Mutated streams against the backends' readers: make fuzz SEED=1 STREAMS=100000; one with ARGS="--reader codex --show"
	@$(PY) -m tests.fuzz --seed $(or $(SEED),1) $(if $(STREAMS),--streams $(STREAMS)) $(ARGS)

chaos: .venv/.stamp-dev ## Kill, stop and cut off a real mesh: make chaos SEED=1 SEEDS=3 MINUTES=4; prints what to do about a failed seed
	@$(PY) -m tests.chaos --seed $(or $(SEED),1) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

user-changes: .venv/.stamp-dev ## 500 users added, removed, rotated under asks and kills (SERVERS=3); prints how long they were cut off
	@PYTHONPATH=tests $(PY) -m live.user_changes --servers $(or $(SERVERS),1) $(ARGS)

cases: .venv/.stamp-dev ## List the numbered cases of docs/semantics.md that no test shows
	@$(PY) tests/cases.py

clean: ## Remove the virtual environment and caches
	rm -rf .venv .venv-litellm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
