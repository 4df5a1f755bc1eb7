# Everything a person or CI does here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Prerequisites are in the order in which they must be made.
.NOTPARALLEL:

# Caches lie outside the clone, keyed by content; everything also works without them.
export GIANTNETES_CACHE ?= $(HOME)/.cache/giantnetes
# Intermediate results are shared by all checkouts; what is built in the end lies in each checkout's own target/.
export CARGO_BUILD_BUILD_DIR ?= $(GIANTNETES_CACHE)/build
# The last two are where `make deps` puts Rust and Go if the machine has none.
export PATH := /usr/sbin:/sbin:$(PATH):$(HOME)/.cargo/bin:$(GIANTNETES_CACHE)/go/bin

# What `make bench` measured, until it is added to docs/benchmarks.
BENCH := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/bench.jsonl

LAB := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug/lab

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: lab-up ## Set everything up and turn one Cluster object into a running guest
	@e2e/demo.sh up

.PHONY: demo-down
demo-down: build ## Remove the demo's guest, the controller manager and the lab
	@e2e/demo.sh down
	@$(LAB) down

.PHONY: test
test: deps ## Set everything up and run all tests (TEST=fast: without virtual machines; TEST=guest: one slow group)
	@e2e/test.sh

# Cargo tells a checkout's crates from another's by nothing but the age of their files: after another checkout has built,
# ours must look new, or its results would pass for ours.
.PHONY: ours
ours:
	@mkdir -p $(CARGO_BUILD_BUILD_DIR)
	@[[ "$$(cat $(CARGO_BUILD_BUILD_DIR)/.checkout 2>/dev/null)" == "$(CURDIR)" ]] || \
	  { find src tests e2e -name '*.rs' -exec touch {} +; echo "$(CURDIR)" >$(CARGO_BUILD_BUILD_DIR)/.checkout; }

.PHONY: check
check: ours ## Formatting, lints and unit tests: needs nothing but Rust
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo test -p giantnetes

.PHONY: build
build: ours ## Build the product and the lab
	@cargo build --workspace --bins

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@e2e/deps.sh

.PHONY: tools
tools: ## Build the third-party servers that are missing (ONLY="etcd helm": only these)
	@e2e/tools/build.sh $(ONLY)

.PHONY: images
images: deps tools build ## Build the images that are missing (ONLY="pause vm": only these)
	@images/build.sh $(ONLY)

# Of an optimised build, which the tests have no time for.
.PHONY: release-images
release-images: deps tools ours ## Build the images that users get, of an optimised binary
	@cargo build --release --locked -p giantnetes
	@GIANTNETES_BIN=$(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release/giantnetes images/build.sh vm controller

.PHONY: sbom
sbom: images ## Write what the images are made of (CycloneDX) into target/sbom
	@images/sbom.py $(or $(CARGO_TARGET_DIR),target)/sbom

.PHONY: bench
bench: tools ours ## Measure what the manager costs and how fast guests' machines reach each other, into docs/benchmarks (RUNS=3)
	@cargo build --release -p giantnetes
	@cargo build --release -p giantnetes-e2e --bins
	@mkdir -p $(dir $(BENCH)) && rm -f $(BENCH)
	@for run in $$(seq $(or $(RUNS),1)); do \
	  GIANTNETES_BENCH=$(BENCH) cargo test --release -p giantnetes-e2e --test controller --test vault -- \
	    --ignored --nocapture --test-threads=1 bench; \
	done
	@GIANTNETES_BENCH=$(BENCH) TEST=throughput e2e/test.sh
	@docs/benchmarks/tables.py --take $(BENCH)

# Half an hour of builds would be in vain on a machine that cannot carry a lab.
.PHONY: preflight
preflight: deps build ## Check whether this machine can carry the lab
	@$(LAB) preflight --before-build

.PHONY: lab-up
lab-up: preflight images ## Raise the management cluster on this machine
	@next=$$($(LAB) up); \
	  $(LAB) load $$(for name in toolbox vm controller; do images/build.sh --path $$name; done); \
	  echo "$$next"

.PHONY: lab-down
lab-down: build ## Remove it
	@$(LAB) down

.PHONY: lab-status
lab-status: build ## Say what of it runs
	@$(LAB) status

.PHONY: crds
crds: ours ## Write the CustomResourceDefinitions that follow from src/api
	@cargo run -q -p giantnetes -- crds >manifests/crds/giantnetes.io.yaml
	@cp manifests/crds/giantnetes.io.yaml charts/giantnetes/files/crds.yaml

.PHONY: docs
docs: ours ## Write what of the documents follows from the code, from what was measured, and from the chart's values
	@cargo run -q -p giantnetes -- metrics >docs/metrics.md.new && mv docs/metrics.md.new docs/metrics.md
	@cargo run -q -p giantnetes -- reference >docs/fields.md.new && mv docs/fields.md.new docs/fields.md
	@for page in reference api; do \
	  cargo run -q -p giantnetes -- reference docs/$$page.md >docs/$$page.md.new && mv docs/$$page.md.new docs/$$page.md; \
	done
	@docs/benchmarks/tables.py
	@charts/giantnetes/reference.py
