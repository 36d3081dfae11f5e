# Everything that a checkout needs, with nothing but make and Python (3.11 or newer). `make` lists the targets.
#
# Two environments, kept apart because LiteLLM pins versions that clash with ours: .venv/ has this package, and
# .venv-litellm/ has the LiteLLM proxy that `make run` and the tests talk to (740 MB). Both hold exactly the versions
# of deploy/requirements/. What runs leave behind (databases, logs, keys) is in .mlpa/.

PYTHON ?= python3
ARGS ?=

VENV := .venv
LITELLM := .venv-litellm
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKS := deploy/requirements
PIP := -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help setup litellm run test test-system test-gateway test-auth test-rest test-full lint bench lock audit release rehearse clean distclean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(MAKEFILE_LIST) | while read name text; do printf '  %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP) litellm ## Install everything (again only when a lock changes)

$(STAMP): $(LOCKS)/dev.txt $(LOCKS)/build.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing MLPA into $(VENV)/ (half a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP) install -qq --no-deps -r $(LOCKS)/dev.txt -r $(LOCKS)/build.txt
	@$(BIN)/python $(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

litellm: $(STAMP)
	@$(BIN)/python -m services.local.litellm $(LITELLM) > /dev/null

run: $(STAMP) ## The whole system and a demonstration, until Ctrl-C (ARGS="--no-demo --port-base 9000")
	@$(BIN)/mlpa up $(ARGS)

test: setup ## The tests (ARGS="tests/shared -k money")
ifdef ARGS
	$(BIN)/pytest $(ARGS)
else
	@# four parts that take equally long, at once, since each waits now and then. The one with attacks, which says how
	@# long another user's answers take meanwhile, comes before the others
	@$(MAKE) --no-print-directory --jobs=4 --output-sync=target test-system test-gateway test-auth test-rest
endif

# in this order: `mlpa check`, which tests/system calls, sets up logging for the whole process
test-system:
	$(BIN)/pytest tests/shared/stores tests/system

test-gateway:
	nice -n 10 $(BIN)/pytest tests/services/gateway

test-auth:
	nice -n 10 $(BIN)/pytest tests/services/auth tests/shared/service

test-rest:
	nice -n 10 $(BIN)/pytest --ignore=tests/system --ignore=tests/services/gateway --ignore=tests/services/auth \
		--ignore=tests/shared/stores --ignore=tests/shared/service

test-full: setup ## The tests with full counts
	MLPA_TEST_FULL=1 $(BIN)/pytest $(ARGS)

lint: $(STAMP) ## Style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: setup ## What things cost in time, as one page (ARGS="auth relay"; ARGS=console and ARGS=scale take minutes)
	$(BIN)/python -m tests.bench $(ARGS)

# Every version with the hashes of its files: pip then takes no other ones. uv resolves; pip, which is everywhere, installs
UV := build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" $(ARGS) --output-file

lock: ## Renew the locks of deploy/requirements/ after a change of setup.cfg (ARGS=--upgrade: the newest of all)
	@$(PYTHON) -m venv build/uv && build/uv/bin/python $(PIP) install --quiet uv==0.9.11
	$(UV) $(LOCKS)/runtime.txt setup.cfg
	$(UV) $(LOCKS)/tracing.txt setup.cfg --extra tracing
	$(UV) $(LOCKS)/dev.txt setup.cfg --extra local --extra tracing --extra dev
	$(UV) $(LOCKS)/build.txt $(LOCKS)/build.in
	$(UV) $(LOCKS)/litellm.txt $(LOCKS)/litellm.in

audit: $(STAMP) ## Ask the package index about every locked version, and the advisories where they can be reached
	@$(BIN)/python deploy/audit.py

release: $(STAMP) ## Check the tree and build the wheel (ARGS="--prepare X.Y.Z": begin; ARGS=--tag: tag it as well)
	@$(BIN)/python deploy/release.py $(ARGS)

rehearse: $(STAMP) ## Lose a database and get it back from its backups (ARGS="1000000 10000000": users, ledger rows)
	@$(BIN)/python -m deploy.rehearse $(ARGS)

clean: ## Remove caches, builds and the data of local runs
	rm -rf .mlpa build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## Remove the environments too
	rm -rf $(VENV) $(LITELLM) *.egg-info
