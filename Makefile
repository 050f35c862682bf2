# The two commands of the README are `make run` and `make test`. While you work: `make check`. CONTRIBUTING.md lists all.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .demo

FUZZ_SECONDS ?= 600

.PHONY: run check test coverage lint faults fuzz stress bench bench-peers clean

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo,dev]'
	touch $@

run: $(VENV)/.installed
	rm -rf $(DEMO)
	$(BIN)/llgbm-pack demo $(DEMO) -q
	$(BIN)/llgbm-pack build $(DEMO)/zoo $(DEMO)/out --deltas $(DEMO)/deltas --text-tokenizer $(DEMO)/tokenizer \
		--missing-delta skip --shard-bytes 256KiB
	$(BIN)/llgbm-pack check $(DEMO)/out
	$(BIN)/llgbm-pack bench $(DEMO)/out --batch-size 4

bench: $(VENV)/.installed-dev
	$(BIN)/python tests/bench/bench_tokenize.py
	$(BIN)/python tests/bench/bench_build.py
	$(BIN)/python tests/bench/bench_parity.py
	$(BIN)/python tests/bench/bench_loader.py
	$(BIN)/python tests/bench/bench_views.py
	$(BIN)/python tests/bench/bench_check.py
	$(BIN)/python tests/bench/bench_open.py
	$(BIN)/python tests/bench/bench_start.py

bench-peers: $(VENV)/.installed-dev
	$(BIN)/python tests/bench/bench_peers.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What fits into the time between two thoughts: lint, types, and the tests that are not marked slow.
check: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not slow'

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Of this process alone: what workers and commands in processes of their own run does not count.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov=llgbm_shards --cov=llgbm_loader --cov=llgbm_pack --cov-report=term-missing:skip-covered

# 200,000 batches for consumers that keep some, on a machine kept busy, under a watchdog.
stress: $(VENV)/.installed-dev
	PYTHONPATH=shards:loader:pack:tests $(BIN)/python -m stress

# Kills, failing calls, full disks, rivals: every one of them, and a table of the outcomes.
faults: $(VENV)/.installed-dev
	PYTHONPATH=shards:loader:pack:tests $(BIN)/python -m faults

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[demo,dev,fuzz]'
	touch $@

# Every parser under a coverage-guided fuzzer; what fails is kept in fuzz-findings/.
fuzz: $(VENV)/.installed-fuzz
	PYTHONPATH=shards:loader:pack:tests $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
