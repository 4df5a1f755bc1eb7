# Everything a person or CI does here. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Caches lie outside the clone, keyed by content; everything also works without them.
export GIANTNETES_CACHE ?= $(HOME)/.cache/giantnetes
export CARGO_TARGET_DIR ?= $(GIANTNETES_CACHE)/target
export PATH := /usr/sbin:/sbin:$(PATH)

LAB := $(CARGO_TARGET_DIR)/debug/lab

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
test: deps ## Set everything up and run all tests (TEST=fast: without virtual machines)
	@e2e/test.sh

.PHONY: check
check: ## Formatting, lints and unit tests: needs nothing but Rust
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@cargo test -p giantnetes

.PHONY: build
build: ## Build the product and the lab
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

.PHONY: lab-up
lab-up: images ## Raise the management cluster on this machine
	@$(LAB) up
	@$(LAB) load $$(for name in toolbox vm controller; do images/build.sh --path $$name; done)

.PHONY: lab-down
lab-down: build ## Remove it
	@$(LAB) down

.PHONY: lab-status
lab-status: build ## Say what of it runs
	@$(LAB) status

.PHONY: crds
crds: ## Write the CustomResourceDefinitions that follow from src/api
	@cargo run -q -p giantnetes -- crds >manifests/crds/giantnetes.io.yaml
	@cp manifests/crds/giantnetes.io.yaml charts/giantnetes/files/crds.yaml
