# stepfleet's tasks. `make` alone lists them. Everything is installed below this directory:
# .venv (Python, from python/requirements.lock), .cache (tools), bin (the binary).

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PY      := .venv/bin/python
STAMPS  := .venv/.stamps
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo dev)

# Tools, by the version that wrote the code as it is.
STATICCHECK := .cache/bin/staticcheck-v0.8.2
GOFUMPT     := .cache/bin/gofumpt-v0.12.0

# Go's race detector needs a C compiler.
RACE := $(if $(shell command -v cc gcc clang 2>/dev/null),-race,)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

.PHONY: setup
setup: $(STAMPS)/projects ## install Python packages into .venv, from the lock
	@echo "setup: .venv is ready ($$($(PY) --version))"

$(STAMPS)/lock: python/requirements.lock scripts/setup-python
	@scripts/setup-python lock
	@mkdir -p $(@D) && touch $@

$(STAMPS)/projects: $(STAMPS)/lock python/pyproject.toml examples/pyproject.toml
	@scripts/setup-python projects
	@mkdir -p $(@D) && touch $@

.PHONY: build
build: ## build bin/stepfleet
	@mkdir -p bin
	CGO_ENABLED=0 go build -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/stepfleet ./cmd/stepfleet

.PHONY: dev
dev: setup build ## start the whole stack with the example project; Ctrl-C stops it
	cd examples && ../bin/stepfleet dev --python ../$(PY) --dir ../.stepfleet

.PHONY: demo
demo: setup build ## run the example jobs on a stack of their own, kill a worker, verify
	@bin/stepfleet demo --python $(PY)

.PHONY: test
test: ## every test that must pass before a change goes in
	@RACE="$(RACE)" scripts/test

.PHONY: test-aws
test-aws: setup build ## the local AWS with every client, beside another emulator, under kill -9
	@scripts/test-aws

.PHONY: model
model: ## model-check the protocol and its mutants with spin
	@scripts/model

DURATION ?= 5m
SEED ?= 1
SEEDS ?= 10000

.PHONY: sim
sim: ## the protocol in SEEDS (10000) simulated histories from SEED (1) on, and the mistakes it must find
	CGO_ENABLED=0 go test ./internal/sim -count=1 -v -timeout 30m -seed $(SEED) -seeds $(SEEDS)

.PHONY: chaos
# On FIFO queues: make chaos CHAOS_OPTIONS=-fifo
chaos: setup ## real Dagster runs under faults for DURATION (5m), by the schedule of SEED (1)
	@scripts/chaos -duration $(DURATION) -seed $(SEED) $(CHAOS_OPTIONS)

.PHONY: failpoints
failpoints: ## kill, pause and refuse a server and a worker at every edge of the protocol
	@scripts/failpoints

.PHONY: mutants
mutants: setup ## seed bugs into the product, one at a time, and have the tests find each
	@scripts/mutants

.PHONY: check
check: setup $(STATICCHECK) $(GOFUMPT) ## formats, vet, staticcheck, ruff, mypy, pyright
	@STATICCHECK=$(STATICCHECK) GOFUMPT=$(GOFUMPT) scripts/check

.PHONY: full
full: setup build ## what takes longer: check, parity, demo three times and on the wheel, matrix, model, failpoints, mutants, test-aws, benchmark
	@RACE="$(RACE)" scripts/full

.PHONY: matrix
matrix: setup build ## the tests that depend on Dagster's version, on the older ones
	@scripts/matrix

.PHONY: fmt
fmt: setup $(GOFUMPT) ## format Go and Python
	$(GOFUMPT) -w $$(git ls-files -co --exclude-standard '*.go')
	.venv/bin/ruff format python examples e2e/parity
	.venv/bin/ruff check --fix python examples e2e/parity

.PHONY: parity
parity: setup build ## run every job under each executor and compare; fails after 20 minutes
	$(PY) e2e/parity/run.py

.PHONY: bench-dagster
# A second run beside the first: make bench-dagster BENCH_OPTIONS="--publish dagster-2"
bench-dagster: setup build ## measure steps and starts of runs through Dagster
	$(PY) bench/dagster_bench.py $(BENCH_OPTIONS)

.PHONY: bench-sqs
bench-sqs: setup build ## measure the local SQS beside other servers, under 12 minutes
	@scripts/bench-peers
	go run ./bench/sqs

# One lock for each list: the newest Dagster, and the older ones of the matrix.
LOCKS := python/requirements.lock $(patsubst %.in,%.lock,$(wildcard python/requirements-[0-9]*.in)) localaws/clients/requirements.lock e2e/servers/localstack.lock

.PHONY: lock
lock: ## renew the locks of Python packages from the requirements*.in beside them
	@for lock in $(LOCKS); do \
	  echo "lock: $$lock"; \
	  oldest=3.10; if [[ $$lock == *localstack* ]]; then oldest=3.13; fi; \
	  UV_PYTHON_DOWNLOADS=never $$(scripts/setup-python uv) pip compile --quiet --universal --python-version $$oldest \
	    --generate-hashes --no-emit-index-url --no-emit-find-links --no-header -o $$lock $${lock%.lock}.in; \
	done

.PHONY: clean
clean: ## remove what was built (not .venv*, not .stepfleet)
	rm -rf bin .cache

$(STATICCHECK):
	@scripts/go-tool $@ honnef.co/go/tools/cmd/staticcheck v0.8.2

$(GOFUMPT):
	@scripts/go-tool $@ mvdan.cc/gofumpt v0.12.0
